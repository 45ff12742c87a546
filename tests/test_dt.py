"""MA-DT: delivers the return it is told to deliver; windows, masks and returns to go are what they claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, networks, normalisation, planning
from networld_jax.baselines import DTConfig, dt, make_dt
from tests import small_problems as problems
from tests import tiny

STEPS = 4
CONFIG = DTConfig(
    batch_size=64,
    context=3,
    width=16,
    num_layers=1,
    num_heads=2,
    dropout=0.0,
    sub_episode_steps=STEPS,
    learning_rate=1e-2,
    num_updates=300,
    ema_decay=0.9,
)


@pytest.fixture(scope="module")
def constant_actions():
    """200 trajectories of 6 steps, each repeating its own a ~ U(-1, 1), which is the reward: a return of R over the 4
    steps of a sub-episode is delivered by a = R / 4. (The last two steps fill no sub-episode.)"""
    rng = np.random.default_rng(0)
    action = np.repeat(rng.uniform(-1, 1, (200, 1, 1, 1)), 6, axis=1)
    task = problems.spec()
    data = datasets.from_arrays(np.zeros((200, 7, 1, 1)), action, action[..., 0], np.zeros((1, 1)))
    return task, data, normalisation.task_stats(data, task, problems.MODEL)


@pytest.fixture(scope="module")
def trained(constant_actions):
    task, data, stats = constant_actions
    baseline = make_dt(task, CONFIG)
    with jax.debug_key_reuse(True):
        state, stats, _ = problems.train(baseline, data, stats, CONFIG.num_updates)
    return baseline, state, stats


def test_the_action_matches_the_commanded_return_step_after_step(trained):
    """Commanded 4 a, it acts a; having earned a each time, it goes on; after the sub-episode the command is new."""
    baseline, state, stats = trained
    act = jax.jit(
        lambda params, carry: baseline.policy.act(None, params, carry, jnp.zeros((1, 1)), jnp.zeros((1, 1)), None)
    )
    scale = float(stats.extra["return_scale"])
    for wanted in (-0.6, 0.0, 0.7):
        standard = STEPS * (wanted - float(stats.reward_mean)) / float(stats.reward_std)
        target = stats.replace(extra=stats.extra | {"target_return": jnp.float32(standard / scale)})
        params = planning.PolicyParams(state.ema_params, target)
        carry = baseline.policy.init(None, 1)
        for _ in range(STEPS + 1):
            action, carry = act(params, carry)
            np.testing.assert_allclose(action, [[wanted]], atol=0.12)
            carry = baseline.policy.observe_reward(carry, jnp.array([wanted]))


def test_the_target_is_a_quantile_of_the_sub_episodes_returns(constant_actions, trained):
    """a ~ U(-1, 1): the 95 % quantile of 4 a is 3.6; returns are scaled to 95 % of |R| over all times."""
    _, data, _ = constant_actions
    _, _, stats = trained
    returns = STEPS * data.action[:, 0, 0, 0]
    raw = stats.extra["target_return"] * stats.extra["return_scale"] * stats.reward_std + STEPS * stats.reward_mean
    np.testing.assert_allclose(raw, np.quantile(returns, 0.95), rtol=1e-3)


def test_returns_to_go_end_with_the_sub_episode():
    reward = np.arange(1.0, 8.0).reshape(1, 7, 1)
    np.testing.assert_array_equal(dt.returns_to_go(reward, 3)[0, :, 0], [6, 5, 3, 15, 11, 6])  # 7 fills nothing


@pytest.mark.slow
def test_the_rolling_window_is_the_training_window(monkeypatch):
    """Played through a logged trajectory of four agents, the policy's window equals the one that training cuts out of
    the log, before, at and after the edge of a sub-episode; with the neighbourhood label, what an agent subtracts
    holds its share of its neighbours' rewards."""
    data = tiny.linear_task(1, 9)
    spec = datasets.spec_from_trajectories("line", data)
    stats = normalisation.task_stats(data, spec, tiny.CONFIG)
    config = dataclasses.replace(CONFIG, use_mean_field=True, message_bits=0, label="neighbourhood", batch_size=4)
    baseline = make_dt(spec, config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(baseline.init, jax.random.key(0), stats).params
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    logged, stats = baseline.prepare(data, stats)
    policy_params = planning.PolicyParams(params, stats)
    graph = jnp.asarray(tiny.path_graph(tiny.AGENTS))
    act = jax.jit(lambda carry, obs: baseline.policy.act(None, policy_params, carry, obs, graph, None))
    carry, played, windows = baseline.policy.init(None, tiny.AGENTS), [], []
    for t in range(8):
        action, carry = act(carry, jnp.asarray(data.obs[0, t]))
        played.append(action)
        windows.append(carry)
        carry = baseline.policy.observe_reward(carry, jnp.asarray(data.reward[0, t]))
    action = np.stack([*played, played[-1]])[None]
    logged = jax.tree.map(jnp.asarray, logged.replace(trajectories=logged.trajectories.replace(action=action)))
    for t, carry in enumerate(windows):
        monkeypatch.setattr(dt.returns, "sample_labelled", lambda *args, t=t: jnp.array([[0, t]]))
        cut = baseline.sample(jax.random.key(0), logged, stats)
        real = np.asarray(carry.valid) > 0
        np.testing.assert_array_equal(cut.valid, np.tile(carry.valid, (tiny.AGENTS, 1)))
        assert real.sum() == min(t % STEPS + 1, CONFIG.context)
        np.testing.assert_array_equal(cut.time[:, real], np.tile(carry.time[real], (tiny.AGENTS, 1)))
        np.testing.assert_allclose(cut.features[:, real], carry.features[:, real], atol=1e-5)
        scaled = dt.actions.scale_action(cut.action, spec, stats)
        np.testing.assert_allclose(scaled[:, real], carry.action[:, real], atol=1e-5)
        # what the policy subtracts is what the labels fall by
        earned = np.diff(cut.return_to_go[:, real], axis=1)
        np.testing.assert_allclose(
            earned, np.diff(carry.return_to_go[:, real], axis=1), atol=2e-3
        )  # shares are sent as float16


# ------------------------------------------------------------------------------------------------ the transformer


@pytest.fixture(scope="module")
def transformer():
    """(apply(tokens) -> logits [1, 4, 1, 3], tokens): random weights, the first of four steps is padding."""
    net = networks.DecisionTransformer(action_dim=1, num_bins=3, max_steps=8, width=16, num_layers=2, num_heads=2)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    tokens = (draw(1, 4), draw(1, 4, 2), draw(1, 4, 1), jnp.array([[0, 0, 1, 2]]), jnp.array([[0.0, 1.0, 1.0, 1.0]]))
    shapes = jax.eval_shape(net.init, jax.random.key(0), *tokens)["params"]
    params = jax.tree.map(lambda leaf: draw(*leaf.shape) * 0.5, shapes)
    return jax.jit(lambda tokens: net.apply({"params": params}, *tokens)), tokens


def moved(transformer, which, step):
    """Which of the three real steps' logits change when one token does."""
    apply, tokens = transformer
    changed = list(tokens)
    changed[which] = tokens[which].at[:, step].add(1)
    return (np.abs(apply(tuple(changed)) - apply(tokens)).max((0, 2, 3))[1:] > 1e-6).tolist()


def test_attention_is_causal_and_the_action_is_read_before_it_is_known(transformer):
    assert moved(transformer, 0, 2) == [False, True, True]  # return to go
    assert moved(transformer, 1, 2) == [False, True, True]  # features
    assert moved(transformer, 2, 2) == [False, False, True]  # action: only what comes after


@pytest.mark.parametrize("which", [0, 1, 2])
def test_nobody_looks_at_padding(transformer, which):
    assert moved(transformer, which, 0) == [False, False, False]


def test_the_rate_warms_up_and_never_falls():
    rate = dt.warmup_then_constant(2.0, 4)
    assert [float(rate(jnp.int32(i))) for i in (0, 1, 3, 4, 10_000)] == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="width must be divisible by num_heads=3"):
        DTConfig(width=16, num_heads=3)
    with pytest.raises(ValueError, match="context must lie in"):
        DTConfig(context=0)
