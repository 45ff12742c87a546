"""The controls break what they claim to break and leave the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import adapt
from experiments.configs import default
from networld_jax import checkpoints, datasets, labels, lookahead, losses, negative_controls, planning, training
from networld_jax.evaluation import Protocol, evaluate
from networld_jax.transforms import symlog
from networld_jax.types import LossConfig
from networld_jax.world_model import make_world_model
from tests import tiny, toy_environment

DATA = tiny.linear_task(num_runs=8, num_steps=200)


def lag_correlation(x: np.ndarray) -> np.ndarray:
    """[O] correlation of successive observations [R, L, N, O]."""
    now, then = (part.reshape(-1, x.shape[-1]) for part in (x[:, :-1], x[:, 1:]))
    return np.array([np.corrcoef(now[:, i], then[:, i])[0, 1] for i in range(x.shape[-1])])


def test_shuffled_time_keeps_every_step_and_loses_their_order():
    shuffled = negative_controls.shuffle_time(jax.random.key(0), DATA)
    for r in range(2):
        pairs = [np.concatenate([d.obs[r, :-1], d.action[r], d.reward[r][..., None]], -1) for d in (DATA, shuffled)]
        rows = [sorted(map(bytes, p)) for p in pairs]
        assert rows[0] == rows[1]  # the same (observation, action, reward) of all agents together
    assert np.all(lag_correlation(DATA.obs) > 0.25)
    assert np.all(np.abs(lag_correlation(shuffled.obs)) < 0.1)  # 6 400 pairs: standard error 0.0125
    np.testing.assert_array_equal(DATA.adjacency, shuffled.adjacency)
    assert np.any(DATA.obs != shuffled.obs)  # the input was not changed in place


def test_autoregressive_noise_keeps_mean_spread_and_smoothness_only():
    synthetic = negative_controls.autoregressive(jax.random.key(1), DATA)
    real, fake = (np.asarray(symlog(jnp.asarray(d.obs))) for d in (DATA, synthetic))
    np.testing.assert_allclose(real.mean((0, 1, 2)), fake.mean((0, 1, 2)), atol=0.12)
    np.testing.assert_allclose(real.std((0, 1, 2)), fake.std((0, 1, 2)), rtol=0.1)
    np.testing.assert_allclose(lag_correlation(real), lag_correlation(fake), atol=0.06)
    # actions steer the real states and have nothing to do with the synthetic ones
    steered = [np.corrcoef(d.action[..., 0].ravel(), d.obs[:, :-1, :, 0].ravel())[0, 1] for d in (DATA, synthetic)]
    assert abs(steered[0]) > 0.15 and abs(steered[1]) < 0.08
    np.testing.assert_array_equal(DATA.reward, synthetic.reward)


def test_absent_agents_stay_absent_in_synthetic_data():
    mask = np.ones((8, tiny.AGENTS), np.float32)
    mask[:, 0] = 0
    obs = DATA.obs.copy()
    obs[:, :, 0] = 0
    synthetic = negative_controls.autoregressive(jax.random.key(2), DATA.replace(obs=obs, agent_mask=mask))
    assert not synthetic.obs[:, :, 0].any() and synthetic.obs[:, :, 1].any()


def test_the_same_amount_of_data_from_more_networks():
    few, many = (datasets.take_topologies(DATA, n, 200) for n in (2, 8))
    assert few.reward.shape[:2] == (2, 100) and many.reward.shape[:2] == (8, 25)
    assert many.obs.shape[1] == 26
    np.testing.assert_array_equal(many.obs, DATA.obs[:, :26])
    with pytest.raises(ValueError, match=r"num_topologies must lie in 1\.\.8"):
        datasets.take_topologies(DATA, 9, 200)
    with pytest.raises(ValueError, match="divide num_steps"):
        datasets.take_topologies(DATA, 3, 200)


def test_labels_count_a_fixed_number_of_steps_whatever_the_plan():
    segments = tiny.random_segments()
    stats = tiny.build().stats
    short = segments.replace(reward=segments.reward[..., :2])
    config = LossConfig(label="own", label_horizon=2)
    expected = (labels.own_return(short, config.discount) - stats.return_mean["own"]) / stats.return_std["own"]
    np.testing.assert_allclose(losses.standardised_label(segments, stats, config), expected, rtol=1e-6)
    whole = losses.standardised_label(segments, stats, LossConfig(label="own"))
    assert np.abs(whole - expected).max() > 0.1


@pytest.mark.parametrize("transfer", [("denoiser",), ("denoiser", "classifier"), ()])
def test_adaptation_starts_from_the_nets_that_transfer(tmp_path, transfer):
    """The rest, and all that belongs to the new task, are the weights of a fresh init."""
    line = tiny.build()
    specs = [line.spec, dataclasses.replace(line.spec, name="target")]
    model = make_world_model(tiny.CONFIG, specs)
    weights = tiny.random_params(model)
    checkpoints.save_model(tmp_path / "model", model, weights, {"line": line.stats}, sources=["line"])
    fresh = tiny.random_params(model, seed=1)
    config = default.get_config("target")
    config.adapt.transfer = transfer
    params, anew = adapt.initial_params(config, model, lambda key: fresh, tmp_path / "model")
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))  # noqa: E731
    assert anew == tuple(net for net in training.SHARED if net not in transfer)
    for net in training.SHARED:
        assert same(params[net]["down0_0"], (weights if net in transfer else fresh)[net]["down0_0"])
    assert same(params["inverse_dynamics"]["target"], fresh["inverse_dynamics"]["target"])
    assert same(params["inverse_dynamics"]["line"], weights["inverse_dynamics"]["line"])


def test_frozen_random_nets_have_trained_readouts():
    """finetune 0 and readout 1: of the shared nets only the last layers move."""
    params = {
        "denoiser": {"down0_0": {"kernel": jnp.ones(2)}, "final_conv": {"kernel": jnp.ones(2)}},
        "classifier": {"down0_0": {"kernel": jnp.ones(2)}, "head": {"fc0": {"kernel": jnp.ones(2)}}},
        "encoder": {"rb": {"kernel": jnp.ones(2)}, "ns": {"kernel": jnp.ones(2)}},
    }
    optimiser = training.make_adaptation_optimiser(params, "rb", lambda count: 0.1, 0.0, readout_scale=1.0)
    updates, _ = optimiser.update(params, optimiser.init(params), params)
    moved = {jax.tree_util.keystr(path): bool(np.any(u)) for path, u in jax.tree_util.tree_leaves_with_path(updates)}
    assert [name for name, is_moved in moved.items() if is_moved] == [
        "['classifier']['head']['fc0']['kernel']",
        "['denoiser']['final_conv']['kernel']",
        "['encoder']['rb']['kernel']",
    ]


# ------------------------------------------------------------------------------------------------ sham guidance


@pytest.fixture(scope="module")
def guidances():
    """Gradients of every kind at the same x [S, H, C], by name."""
    with jax.debug_key_reuse(True):
        task = tiny.with_linear_nets(tiny.build())
        model, name = task.world_model, task.spec.name
        policy_params = planning.PolicyParams(task.params, task.stats)
        mask = model.channel_mask(name)
        keys = jax.random.split(jax.random.key(3), 5)
        x = jax.random.normal(jax.random.key(4), (5, model.config.horizon, mask.size)) * mask[None, None, :]
        k = jnp.arange(5, dtype=jnp.int32)
        ascent = planning.return_gradient(model, name)
        kinds = {
            "return": ascent,
            "flipped": planning.flipped(ascent),
            "random": planning.random_direction(ascent, mask),
            "value": planning.value_gradient(model, name, ascent),
        }
        found = {kind: np.asarray(guidance(policy_params, keys)(x, k)) for kind, guidance in kinds.items()}
        other_level = np.asarray(kinds["random"](policy_params, keys)(x, k + 1))
        return found, other_level, np.asarray(mask)


def test_shams_have_the_norm_of_the_gradient(guidances):
    found, _, mask = guidances
    norms = {kind: np.sqrt((g**2).sum((1, 2))) for kind, g in found.items()}
    for kind in ("flipped", "random", "value"):
        np.testing.assert_allclose(norms[kind], norms["return"], rtol=1e-5)
    assert not found["random"][..., mask == 0].any()


def test_shams_point_elsewhere(guidances):
    found, other_level, mask = guidances
    unit = lambda g: g / np.sqrt((g**2).sum((1, 2), keepdims=True))  # noqa: E731
    cosine = lambda kind: (unit(found[kind]) * unit(found["return"])).sum((1, 2))  # noqa: E731
    np.testing.assert_allclose(cosine("flipped"), -1, rtol=1e-5)
    assert np.all(np.abs(cosine("random")) < 0.7)  # 32 free entries: standard deviation 0.18
    assert np.all(np.abs(cosine("value")) < 0.999)
    assert np.all((found["random"] != other_level)[..., mask > 0])  # a new direction at every level
    assert len(np.unique(found["random"][:, 0, 0])) == 5  # and for every plan


# ------------------------------------------------------------------------------------------------ lookahead


def test_lookahead_in_the_simulator_beats_its_base_policy():
    """A base policy that never serves its queue: one step of lookahead must find that serving pays."""
    env = toy_environment.make_queues()
    lazy = toy_environment.policies(env.default_params)["random"]
    lazy = lazy._replace(act=lambda key, params, carry, obs, adjacency, state: (0.2 + 0 * obs[:, :1], carry))
    config = lookahead.LookaheadConfig(num_candidates=8, num_futures=2, num_steps=4)
    seer = lookahead.make_lookahead(env, lazy, lookahead.perturbation(env, size=0.3), config)
    assert seer.information == "global" and seer.reads_state
    protocol = Protocol(num_instances=4, num_steps=20)
    base, better = (evaluate(env, policy, {}, protocol).reward for policy in (lazy, seer))
    assert np.all(better > base)


def test_lookahead_respects_the_action_set():
    env = toy_environment.make_queues()
    expert = toy_environment.policies(env.default_params)["expert"]
    seer = lookahead.make_lookahead(env, expert, lookahead.perturbation(env, 5.0))
    state, obs = env.reset(jax.random.key(5), env.default_params)
    adjacency = env.adjacency(state, env.default_params)
    action, _ = jax.jit(seer.act)(jax.random.key(6), {}, (), obs, adjacency, state)
    assert action.shape == (5, 1) and np.all((action >= 0) & (action <= 1))
    with pytest.raises(ValueError, match="num_futures must be at least 1, got 0"):
        lookahead.LookaheadConfig(num_futures=0)
