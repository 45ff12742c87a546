"""MA-CQL on bandits and a chain whose values are known; gamma = 0 makes Q the expected reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, normalisation
from networld_jax.baselines import CQLConfig, actions, cql, make_cql
from tests import small_problems as problems

CONFIG = CQLConfig(
    hidden=(16, 16),
    batch_size=64,
    learning_rate=1e-2,
    policy_learning_rate=1e-2,
    num_updates=300,
    target_rate=0.05,
    discount=0.0,
    ema_decay=0.9,
    num_actions=3,
)


def with_config(**changes):
    return CQLConfig(**{field: getattr(CONFIG, field) for field in CONFIG.__dataclass_fields__} | changes)


# ------------------------------------------------------------------------------------------------ box actions


def critic_values(state, u):
    """Q [len(u)] of the smaller twin at the only context."""
    net = cql.networks.MLP((*CONFIG.hidden, 1))
    x = jnp.stack([jnp.zeros(len(u)), jnp.asarray(u, jnp.float32)], -1)
    return np.asarray(cql.networks.apply_twins(net, state.params["critic"], x)[..., 0].min(0))


@pytest.fixture(scope="module")
def gap_problem():
    """The data have no action in (-0.4, 0.4). Their reward rises towards the gap, 1 - |a|; inside it the truth is 0."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0.4, 1.0, (2000, 1)) * rng.choice([-1.0, 1.0], (2000, 1))
    a[:2] = [[-1.0], [1.0]]
    task = problems.spec()
    return task, *problems.bandit(np.zeros((2000, 1)), a, 1 - np.abs(a[:, 0]), task)


def trained_with(gap_problem, weight):
    task, data, stats = gap_problem
    baseline = make_cql(task, with_config(cql_weight=weight))
    with jax.debug_key_reuse(True):
        state, *_ = problems.train(baseline, data, stats, CONFIG.num_updates, change=problems.unit_rewards)
    return state, problems.act(baseline, state.ema_params, stats, np.zeros((1, 1)))[0, 0]


@pytest.mark.slow
def test_actions_outside_the_data_are_valued_below_the_truth_and_the_order_is_restored(gap_problem):
    """And so the greedy policy stays with the data."""
    state, action = trained_with(gap_problem, 1.0)
    values = critic_values(state, [-0.45, 0.0, 0.45])
    assert values[1] < 0.0 < min(values[0], values[2])
    assert abs(action) > 0.3


@pytest.mark.slow
def test_without_the_conservative_term_the_gap_looks_best(gap_problem):
    """The contrast: right where there are data, wrong order outside, and the policy walks into the gap."""
    state, action = trained_with(gap_problem, 0.0)
    values = critic_values(state, [-0.45, 0.0, 0.45])
    assert values[1] > max(values[0], values[2])
    np.testing.assert_allclose(values[[0, 2]], 0.55, atol=0.1)
    assert abs(action) < 0.3


def test_the_gap_estimates_the_log_integral():
    """Q = c + g . u on [-1, 1]^2: int exp Q = e^c prod 2 sinh(g) / g. Uniform and Gaussian proposals agree."""
    slope, offset = jnp.array([1.0, -0.5]), 0.3
    keys = jax.random.split(jax.random.key(0), 2)
    uniform = jax.random.uniform(keys[0], (4000, 1, 2), minval=-1.0, maxval=1.0)
    mean, log_std = jnp.zeros((4000, 1, 2)), jnp.full((4000, 1, 2), -0.3)
    squashed, log_density = actions.tanh_gaussian_sample(keys[1], mean, log_std)
    exact = offset + np.log(np.prod(2 * np.sinh(np.asarray(slope)) / np.asarray(slope)))
    for proposals, density in ((uniform, jnp.full((4000, 1), -2 * jnp.log(2.0))), (squashed, log_density)):
        q = (offset + proposals @ slope)[None].repeat(2, 0)
        estimate = cql.conservative_gap(q, density, jnp.zeros((2, 1)), 1.0)
        np.testing.assert_allclose(estimate, np.full((2, 1), exact), atol=0.05)  # 4000 draws: s.e. about 0.01


def test_the_log_density_is_that_of_the_action_given():
    """Against the change of variables in float64; the density of a fresh sample (a bug of a reference) ignores u."""
    u, mean, std = np.array([[-0.9, 0.2], [0.5, 0.99]]), 0.3, 0.7
    x = np.arctanh(u)
    normal = -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    expected = (normal - np.log(1 - u**2)).sum(-1)
    log_std = jnp.full((2, 2), np.log(std), jnp.float32)
    got = actions.tanh_gaussian_log_prob(jnp.asarray(u, jnp.float32), jnp.full((2, 2), mean), log_std)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    drawn, density = actions.tanh_gaussian_sample(jax.random.key(0), jnp.full((2, 2), mean), log_std)
    np.testing.assert_allclose(
        density, actions.tanh_gaussian_log_prob(drawn, jnp.full((2, 2), mean), log_std), rtol=1e-4
    )


@pytest.mark.slow
def test_the_warm_start_clones(gap_problem):
    """With clone_fraction 1 the policy is the data's mean whatever the critic says: here 0.7 after a shift of the
    data to one side."""
    task, data, stats = gap_problem
    one_sided = data.replace(action=np.abs(data.action))
    config = with_config(clone_fraction=1.0, num_updates=100)
    state, *_ = problems.train(make_cql(task, config), one_sided, stats, 100)
    action = problems.act(make_cql(task, config), state.ema_params, stats, np.zeros((1, 1)))
    np.testing.assert_allclose(action, [[0.75]], atol=0.12)  # tanh of the mean of atanh a: a little above the mean 0.7


# ------------------------------------------------------------------------------------------------ integers, chain


def test_a_cut_is_no_end():
    """Reward 1 for ever, seen in pieces of 4 steps: Q = 1 / (1 - 0.8) = 5. An end at the cut gives at most 2.95."""
    task = problems.spec(low=(0.0,), high=(1.0,), kind="integer")
    rng = np.random.default_rng(0)
    obs, action = np.zeros((8, 5, 1, 1)), rng.integers(0, 2, (8, 4, 1, 1)).astype(float)
    data = datasets.from_arrays(obs, action, np.ones((8, 4, 1)), np.zeros((1, 1)))
    data = data.replace(truncated=np.arange(4)[None] == np.full((8, 1), 3))
    stats = normalisation.task_stats(data, task, problems.MODEL)
    baseline = make_cql(task, with_config(discount=0.8, cql_weight=0.0))
    _, _, metrics = problems.train(baseline, data, stats, 500, change=problems.unit_rewards)
    np.testing.assert_allclose(metrics["q"][-1], 5.0, atol=0.15)


@pytest.fixture(scope="module")
def chain():
    """Two states. In state 0, action 0 costs 3 and stays; action 1 costs 4 and leads to state 1, where action 1 costs 1
    and stays, action 0 costs 4 and leads back. A second component is irrelevant.

    gamma 0.8: the optimum is action 1 in both, Q*(1, 1) = -5, Q*(0, 1) = -4 - 0.8 * 5 = -8, Q*(0, 0) = -3 - 0.8 * 8 =
    -9.4, Q*(1, 0) = -10.4. Action 2 of the first component never appears in the data: an untrained net values it at 0.
    """
    rng = np.random.default_rng(0)
    obs, action, reward = np.zeros((1, 3001, 1, 1)), np.zeros((1, 3000, 1, 2)), np.zeros((1, 3000, 1))
    state = 0
    for t in range(3000):
        a = rng.integers(0, 2)
        obs[0, t], action[0, t, 0] = state, (a, rng.integers(0, 2))
        reward[0, t] = (-3.0 if a == 0 else -4.0) if state == 0 else (-1.0 if a == 1 else -4.0)
        state = a
    obs[0, 3000] = state
    data = datasets.from_arrays(obs, action, reward, np.zeros((1, 1)))
    task = problems.spec(low=(0.0, 0.0), high=(2.0, 1.0), kind="integer")
    return task, data, normalisation.task_stats(data, task, problems.MODEL)


def joint_values(task, stats, state, config):
    """Mean twin value [2 states, 3, 3] of every joint action."""
    net = cql.networks.MLP((*config.hidden, 6))
    x = normalisation.normalise_obs(jnp.array([[0.0], [1.0]]), stats)
    tables = cql.networks.apply_twins(net, state.params["critic"], x).mean(0).reshape(2, 2, 3)
    return np.asarray(tables[:, 0, :, None] + tables[:, 1, None, :])


def test_the_chain_is_solved_and_unseen_actions_are_avoided(chain):
    """The greedy policy takes the dear step to the better state; the unseen action, which would look best (and whose
    value the targets would take over), is pushed below those in the data, whose values stay right."""
    task, data, stats = chain
    config = with_config(discount=0.8, cql_weight=0.1, num_updates=600)
    baseline = make_cql(task, config)
    state, *_ = problems.train(baseline, data, stats, 600, change=problems.unit_rewards)
    action = problems.act(baseline, state.ema_params, stats, np.array([[0.0], [1.0]]))
    np.testing.assert_array_equal(action[:, 0], [1.0, 1.0])
    values = joint_values(task, stats, state, config)[:, :, :2].mean(-1)  # over the irrelevant component
    np.testing.assert_allclose(values[:, :2], [[-9.4, -8.0], [-10.4, -5.0]], atol=0.8)
    assert np.all(values[:, 2] < values[:, :2].max(-1) - 1.0)


def test_integers_outside_a_components_range_are_neither_chosen_nor_valued(chain):
    """The second component has no 2. A net that values it at 100 still acts within the range, and neither the targets
    nor the log-sum-exp see the 100."""
    task, data, stats = chain
    baseline = make_cql(task, with_config(discount=0.8))
    state = baseline.init(jax.random.key(0), stats)
    last = state.params["critic"]["fc2"]
    params = {"critic": state.params["critic"] | {"fc2": last | {"bias": last["bias"].at[:, 5].set(100.0)}}}
    state = state.replace(params=params, ema_params=params)
    assert problems.act(baseline, params, stats, np.zeros((1, 1)))[0, 1] <= 1.0
    rows = baseline.sample(jax.random.key(0), jax.tree.map(jnp.asarray, data), stats)
    _, metrics = jax.jit(baseline.update)(jax.random.key(1), state, rows, stats)
    assert metrics["td"] < 100.0 and metrics["conservative"] < 10.0


def test_the_integral_over_joint_actions_is_the_sum_over_components():
    table = jax.random.normal(jax.random.key(0), (5, 2, 3))
    joint = table[:, 0, :, None] + table[:, 1, None, :]
    expected = jax.nn.logsumexp(joint.reshape(5, -1), axis=-1)
    np.testing.assert_allclose(jax.nn.logsumexp(table, axis=-1).sum(-1), expected, rtol=1e-5)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="num_actions must lie in"):
        CQLConfig(num_actions=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        CQLConfig(temperature=0.0)
