"""Filtering and conditioning by advantage, where raw returns mislead: easy states pay 10 more whatever one does.

Context x is 0 (hard) or 1 (easy), a ~ U(-1, 1), r = 10 x - (a - 0.5)^2. The best action is 0.5 everywhere, the data's
mean 0; the 40 % of the actions with the largest advantage are [0.1, 0.9], mean 0.5.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax.baselines import AdvantageBCConfig, advantage_bc, make_filtered_bc, make_rc_bc
from tests import small_problems as problems

CONTEXTS = np.array([[0.0], [1.0]])
CONFIG = AdvantageBCConfig(
    hidden=(32,), batch_size=256, learning_rate=1e-2, num_updates=400, return_steps=1, ema_decay=0.9, keep_fraction=0.4
)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, a = rng.integers(0, 2, (2000, 1)).astype(float), rng.uniform(-1, 1, (2000, 1))
    task = problems.spec()
    return task, *problems.bandit(x, a, (10 * x - (a - 0.5) ** 2)[:, 0], task)


def actions_of(make, problem, config=CONFIG):
    task, data, stats = problem
    baseline = make(task, config)
    state, stats, _ = problems.train(baseline, data, stats, CONFIG.num_updates)
    return problems.act(baseline, state.ema_params, stats, CONTEXTS)[:, 0], baseline, state, stats


@pytest.fixture(scope="module")
def conditioned(problem):
    with jax.debug_key_reuse(True):
        return actions_of(make_rc_bc, problem)


def test_filtering_by_advantage_finds_the_good_half_in_easy_and_hard_states(problem):
    action, *_ = actions_of(make_filtered_bc, problem)
    np.testing.assert_allclose(action, [0.5, 0.5], atol=0.12)


def test_filtering_by_return_keeps_easy_states_and_bad_actions(problem, monkeypatch):
    """The comparison that the method is for: the same code with the raw return in place of the advantage. Hard
    states have no rows left, easy ones nearly all of theirs: both answers stay far from the best action."""
    monkeypatch.setattr(advantage_bc, "standardised_advantage", lambda label, value, mask: (label, jnp.float32(1.0)))
    action, *_ = actions_of(make_filtered_bc, problem)
    assert np.all(np.abs(action - 0.5) > 0.2)


def test_a_commanded_advantage_is_delivered(problem, conditioned):
    """A high command asks for actions near 0.5; A = -1.5 std is reached only far from it, at about -0.4."""
    good, _, state, stats = conditioned
    np.testing.assert_allclose(good, [0.5, 0.5], atol=0.15)
    poor = make_rc_bc(problem[0], dataclasses.replace(CONFIG, target_advantage=-1.5))
    np.testing.assert_array_less(problems.act(poor, state.ema_params, stats, CONTEXTS)[:, 0], 0.0)


def test_the_clone_sends_no_gradient_into_the_value(problem):
    label, mask = jnp.array([1.0, 2.0, 4.0]), jnp.ones(3)
    moved = jax.grad(lambda v: advantage_bc.standardised_advantage(label, v, mask)[0].sum())(jnp.zeros(3))
    np.testing.assert_array_equal(moved, np.zeros(3))


def test_the_top_half_counts_present_rows_only():
    advantage = jnp.array([5.0, 1.0, 2.0, 3.0, 4.0])
    mask = jnp.array([0.0, 1.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(advantage_bc.top_rows(advantage, mask, 0.5), [1.0, 0.0, 0.0, 1.0, 1.0])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="label must be one of"):
        AdvantageBCConfig(label="team")
    with pytest.raises(ValueError, match="keep_fraction must lie in"):
        AdvantageBCConfig(keep_fraction=2.0)
