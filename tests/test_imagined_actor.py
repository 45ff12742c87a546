"""The imagined actor: finds what is best for all where returns in the data reward taking more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, normalisation, planning
from networld_jax.baselines import ImaginedActorConfig, make_imagined_actor
from tests import small_problems as problems

AGENTS, COST = 4, 2.0
CONFIG = ImaginedActorConfig(
    use_mean_field=True,
    hidden=(32,),
    batch_size=256,
    num_updates=360,
    learning_rate=3e-3,
    actor_learning_rate=3e-3,
    model_hidden=32,
    model_rounds=1,
    num_obs_bins=4,
    horizon=2,
    num_imagined=32,
    anchor=0.01,
    ema_decay=0.95,
)


@pytest.fixture(scope="module")
def commons():
    """r_i = a_i - COST (mean of all)^2, everybody in reach of everybody, actions anywhere in [0, 1].

    One's own return says 1 (d r_i / d a_i = 1 - 2 COST mean / N > 0), a clone says 0.5, the team's mean 1 / (2 COST).
    """
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(8, 101, AGENTS, 1))
    action = rng.uniform(0.0, 1.0, (8, 100, AGENTS, 1))
    reward = action[..., 0] - COST * action[..., 0].mean(-1, keepdims=True) ** 2
    data = datasets.from_arrays(obs, action, reward, 1.0 - np.eye(AGENTS))
    spec = problems.spec(low=(0.0,), agents=AGENTS)
    return spec, data, normalisation.task_stats(data, spec, problems.MODEL)


def trained(commons, updates=CONFIG.num_updates, **fields):
    spec, data, stats = commons
    baseline = make_imagined_actor(spec, dataclasses.replace(CONFIG, **fields))
    with jax.debug_key_reuse(True):
        state, stats, metrics = problems.train(baseline, data, stats, updates)
    return baseline, state, stats, metrics


def mean_action(baseline, params, stats):
    graph = jnp.asarray(1.0 - np.eye(AGENTS), jnp.float32)
    obs = jnp.asarray(np.random.default_rng(1).normal(size=(50, AGENTS, 1)), jnp.float32)
    carry = baseline.policy.init(jax.random.key(0), AGENTS)
    policy_params = planning.PolicyParams(params, stats)
    act = lambda obs: baseline.policy.act(None, policy_params, carry, obs, graph, None)[0]  # noqa: E731
    return float(jax.vmap(act)(obs).mean())


def test_what_is_best_for_all_where_taking_more_pays(commons):
    _, data, _ = commons
    own = np.corrcoef(data.action[..., 0].ravel(), data.reward.ravel())[0, 1]
    assert own > 0.3  # the data reward taking more
    baseline, state, stats, metrics = trained(commons)
    clone = dict(state.ema_params, actor=state.ema_params["clone"])
    assert abs(mean_action(baseline, clone, stats) - 0.5) < 0.06
    assert abs(mean_action(baseline, state.ema_params, stats) - 1 / (2 * COST)) < 0.08
    rewards = metrics["imagined_reward"][CONFIG.num_updates // 2 :]
    assert rewards[-20:].mean() > rewards[:20].mean() + 0.1


def test_first_the_clone_then_the_actor(commons):
    """Until the model's share of the updates is over actor and clone are one; then the clone stands still."""
    spec, data, stats = commons
    baseline = make_imagined_actor(spec, dataclasses.replace(CONFIG, num_updates=8, hidden=(4,), batch_size=32))
    data, stats = baseline.prepare(data, stats)
    batch = baseline.sample(jax.random.key(0), jax.tree.map(jnp.asarray, data), stats)
    update = jax.jit(lambda key, state: baseline.update(key, state, batch, stats))
    states, rewards = [baseline.init(jax.random.key(1), stats)], []
    for step in range(8):
        state, metrics = update(jax.random.key(step), states[-1])
        states.append(state)
        rewards.append(float(metrics["imagined_reward"]))
    np.testing.assert_array_equal(np.array(rewards) != 0, np.arange(8) >= 4)
    early, late = states[4].params, states[8].params
    jax.tree.map(np.testing.assert_array_equal, early["actor"], early["clone"])
    jax.tree.map(np.testing.assert_array_equal, late["clone"], early["clone"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), late, early)
    assert any(jax.tree.leaves(moved["actor"])) and all(jax.tree.leaves(moved["simulator"]))


def test_a_heavy_anchor_holds_the_actor_at_the_clone(commons):
    baseline, state, stats, _ = trained(commons, 100, num_updates=100, anchor=100.0, horizon=1)
    clone = dict(state.ema_params, actor=state.ema_params["clone"])
    held = mean_action(baseline, state.ema_params, stats) - mean_action(baseline, clone, stats)
    assert abs(held) < 0.02


def test_settings_are_checked():
    for fields, message in (
        (dict(model_fraction=1.5), "ImaginedActorConfig.model_fraction must lie in"),
        (dict(horizon=0), "ImaginedActorConfig.horizon must lie in"),
        (dict(num_obs_bins=1), "ImaginedActorConfig.num_obs_bins must lie in"),
        (dict(actor_learning_rate=0.0), "ImaginedActorConfig.actor_learning_rate must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **fields)
