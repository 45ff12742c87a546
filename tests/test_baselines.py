"""The contract, kept by every baseline for boxes and integers; nothing here is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import baselines as stage
from experiments.configs import default, paper
from networld_jax import datasets, normalisation, planning
from networld_jax.baselines import BASELINES, DEFAULTS, actions
from tests import tiny

SMALL = dict(
    hidden=(8,),
    batch_size=8,
    num_updates=10,
    return_steps=3,
    horizon=2,
    width=8,
    width_mults=(1,),
    diffusion_steps=4,
    num_steps=2,
    num_candidates=2,
    num_layers=1,
    context=3,
    sub_episode_steps=5,
    num_actions=2,
    model_hidden=8,
    num_obs_bins=4,
    num_imagined=2,
)


def small(name, **changes):
    """The method's configuration as small as it goes."""
    known = {field.name for field in dataclasses.fields(DEFAULTS[name])}
    fields = {key: value for key, value in (SMALL | changes).items() if key in known}
    return dataclasses.replace(DEFAULTS[name], **fields)


def problem(kind):
    """(spec with late messages, data, stats) of four agents on a path."""
    data = tiny.linear_task(2, 8)
    spec = datasets.spec_from_trajectories("line", data)
    if kind == "integer":
        spec = dataclasses.replace(spec, action_kind="integer", action_low=(0.0, 1.0), action_high=(4.0, 3.0))
        data = data.replace(action=np.clip(np.round(2 + data.action), 1, 3))
    spec = dataclasses.replace(spec, message_delay_steps=1)
    return spec, data, normalisation.task_stats(data, spec, tiny.CONFIG)


def like(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@pytest.mark.parametrize("kind", ["box", "integer"])
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_keeps_the_contract(name, kind):
    """Shapes only: the state survives an update and the carry a step unchanged in structure, as scans need it."""
    spec, data, stats = problem(kind)
    hears = kind == "box"
    baseline = BASELINES[name](spec, small(name, use_mean_field=hears, label="neighbourhood" if hears else "own"))
    data, stats = baseline.prepare(data, stats)
    key = jax.random.key(0)
    state = jax.eval_shape(baseline.init, key, stats)
    batch = jax.eval_shape(baseline.sample, key, jax.tree.map(jnp.asarray, data), stats)
    after, metrics = jax.eval_shape(baseline.update, key, state, batch, stats)
    assert like(after) == like(state) and jax.tree.structure(after.ema_params) == jax.tree.structure(state.params)
    assert "loss" in metrics and all(value.shape == () for value in metrics.values())

    policy, n = baseline.policy, tiny.AGENTS
    carry = jax.eval_shape(lambda key: policy.init(key, n), key)
    params = planning.PolicyParams(state.ema_params, stats)
    obs, graph = jnp.zeros((n, tiny.OBS)), jnp.asarray(tiny.path_graph(n))
    action, next_carry = jax.eval_shape(lambda *args: policy.act(*args, None), key, params, carry, obs, graph)
    assert action.shape == (n, tiny.ACTIONS) and like(next_carry) == like(carry)
    assert like(jax.eval_shape(policy.observe_reward, carry, jnp.zeros(n))) == like(carry)

    assert policy.information == ("one_hop" if hears else "own") and not policy.reads_state
    charged = tiny.OBS * 4 // 8 + (2 if name == "ma_dt" else 0)  # 4 bits per entry; DT also hears rewards
    assert policy.message_bytes == (charged if hears else 0)


@pytest.mark.parametrize("kind", ["box", "integer"])
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_weight_decay_reaches_every_optimiser(name, kind):
    """An optimiser that decays keeps another state, that of its mask."""
    spec, data, stats = problem(kind)

    def optimiser_of(weight_decay):
        baseline = BASELINES[name](spec, small(name, weight_decay=weight_decay))
        _, prepared = baseline.prepare(data, stats)
        return jax.tree.structure(jax.eval_shape(baseline.init, jax.random.key(0), prepared).opt_state)

    assert optimiser_of(1.0) != optimiser_of(0.0)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_actions_depend_on_neighbours_only(name):
    """Random weights; agent 0's observation moves its own action and that of its neighbour, nobody else's."""
    spec, data, stats = problem("box")
    spec = dataclasses.replace(spec, message_delay_steps=0)
    baseline = BASELINES[name](spec, small(name, use_mean_field=True, message_bits=0))
    _, stats = baseline.prepare(data, stats)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(baseline.init, jax.random.key(0), stats).ema_params
    weights = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    params, graph = planning.PolicyParams(weights, stats), jnp.asarray(tiny.path_graph(tiny.AGENTS))
    obs = jnp.asarray(data.obs[0, 1])

    @jax.jit
    def act(obs):
        carry = baseline.policy.init(None, tiny.AGENTS)
        return baseline.policy.act(jax.random.key(1), params, carry, obs, graph, None)[0]

    moved = np.abs(act(obs.at[0].add(0.5)) - act(obs)).max(-1) > 0
    assert moved.tolist() == [True, True, False, False]


def test_integers_are_executed_rounded_and_within_each_components_range():
    spec, _, _ = problem("integer")
    action = jnp.array([[-0.7, 0.2], [2.6, 9.0]])
    np.testing.assert_array_equal(actions.executed(action, spec), [[0.0, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(jax.grad(lambda a: actions.executed(a, spec).sum())(action), np.ones((2, 2)))
    np.testing.assert_array_equal(actions.executed(action, problem("box")[0]), action)


def test_every_method_has_its_section_and_its_factory():
    for config in (default.get_config(), paper.get_config()):
        for name in BASELINES:
            built = stage.baseline_config(config, f"{name}_mf")
            assert type(built) is type(DEFAULTS[name]) and built.use_mean_field
            assert built.num_updates == config.baselines.num_updates


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"baseline must be one of \['bc_quantile', .*got 'ma_sac'"):
        stage.base_name("ma_sac")
