"""MA-IQL against closed forms: one context and gamma = 0 make Q the reward, V an expectile of the data."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, normalisation
from networld_jax.baselines import IQLConfig, iql, make_iql
from tests import small_problems as problems

PROBABILITY, REWARD = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 2.0])
CONFIG = IQLConfig(
    hidden=(16,),
    batch_size=256,
    learning_rate=2e-2,
    num_updates=500,
    target_rate=0.1,
    discount=0.0,
    expectile=0.8,
    beta=1.0,
    ema_decay=0.98,
)


def expectile(values, probabilities, tau):
    """The v with sum p |tau - 1(x < v)| (x - v) = 0, by bisection."""
    low, high = values.min(), values.max()
    for _ in range(60):
        v = (low + high) / 2
        pull = np.sum(probabilities * np.where(values > v, tau, 1 - tau) * (values - v))
        low, high = (v, high) if pull > 0 else (low, v)
    return v


@pytest.fixture(scope="module")
def discrete():
    rng = np.random.default_rng(0)
    a = rng.choice(4, (4000, 1), p=PROBABILITY).astype(float)
    task = problems.spec(low=(0.0,), high=(3.0,), kind="integer")
    data, stats = problems.bandit(np.zeros((4000, 1)), a, REWARD[a[:, 0].astype(int)], task)
    baseline = make_iql(task, CONFIG)
    state, stats, metrics = problems.train(baseline, data, stats, 500, change=problems.unit_rewards)
    frequency = np.bincount(a[:, 0].astype(int)) / len(a)
    return task, state, stats, metrics, frequency


def test_the_value_is_the_expectile(discrete):
    *_, metrics, frequency = discrete
    exact = expectile(REWARD, frequency, CONFIG.expectile)
    assert abs(np.sum(frequency * REWARD) - exact) > 0.3  # the mean would be far off
    np.testing.assert_allclose(metrics["v"][-50:].mean(), exact, atol=0.03)


def test_the_policy_is_the_data_reweighted_by_the_advantage(discrete):
    """pi(a) proportional to p(a) exp(beta (Q(a) - V)); V cancels."""
    task, state, stats, _, frequency = discrete
    heads = iql.integer_heads(task, CONFIG)
    rows = jnp.arange(4.0)[:, None]
    probability = jnp.exp(heads.log_prob(state.ema_params["policy"], stats, jnp.zeros((4, 1)), rows))
    exact = frequency * np.exp(CONFIG.beta * REWARD)
    np.testing.assert_allclose(probability, exact / exact.sum(), atol=0.03)
    mean = problems.act(make_iql(task, CONFIG), state.ema_params, stats, np.zeros((1, 1)))
    np.testing.assert_allclose(mean, [[np.sum(np.arange(4) * exact) / exact.sum()]], atol=0.1)
    mode = make_iql(task, dataclasses.replace(CONFIG, decode="mode"))
    assert problems.act(mode, state.ema_params, stats, np.zeros((1, 1)))[0, 0] == np.argmax(exact)


def test_the_box_policy_moves_to_the_weighted_mean():
    """a ~ U(-1, 1), Q = a: the Gaussian's mean becomes E a e^(beta a) / E e^(beta a) = coth(beta) - 1 / beta."""
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (4000, 1))
    a[:2] = [[-1.0], [1.0]]
    task = problems.spec()
    data, stats = problems.bandit(np.zeros((4000, 1)), a, a[:, 0], task)
    baseline = make_iql(task, dataclasses.replace(CONFIG, beta=2.0))
    state, stats, _ = problems.train(baseline, data, stats, 500, change=problems.unit_rewards)
    action = problems.act(baseline, state.ema_params, stats, np.zeros((1, 1)))
    np.testing.assert_allclose(action, [[1 / np.tanh(2.0) - 0.5]], atol=0.05)


def test_a_cut_is_no_end():
    """Reward 1 for ever, seen in pieces of 4 steps: V = 1 / (1 - 0.8) = 5."""
    task = problems.spec()
    rng = np.random.default_rng(0)
    obs, action = np.zeros((8, 5, 1, 1)), rng.uniform(-1, 1, (8, 4, 1, 1))
    data = datasets.from_arrays(obs, action, np.ones((8, 4, 1)), np.zeros((1, 1)))
    data = data.replace(truncated=np.arange(4)[None] == np.full((8, 1), 3))
    stats = normalisation.task_stats(data, task, problems.MODEL)
    baseline = make_iql(task, dataclasses.replace(CONFIG, discount=0.8, batch_size=64))
    _, _, metrics = problems.train(baseline, data, stats, 500, change=problems.unit_rewards)
    np.testing.assert_allclose(metrics["v"][-1], 5.0, atol=0.15)


def test_the_expectile_loss_is_asymmetric():
    np.testing.assert_allclose(iql.expectile_loss(jnp.array([-2.0, 2.0]), 0.9), [0.4, 3.6], rtol=1e-6)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="decode must be"):
        IQLConfig(decode="sample")
    with pytest.raises(ValueError, match="expectile must lie in"):
        IQLConfig(expectile=1.5)
