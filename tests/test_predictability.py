"""Action predictability against data whose answer is known."""

import numpy as np
import pytest

from networld_jax.predictability import action_predictability
from networld_jax.types import Trajectories


def trajectories(action_fn, runs=8, steps=300, agents=3):
    """Observations are white noise; the next one carries the action in its second entry."""
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1.0, 1.0, size=(runs, steps + 1, agents, 2)).astype(np.float32)
    action = np.stack([action_fn(rng, obs[:, :-1]), np.ones(obs[:, :-1, :, 0].shape)], -1).astype(np.float32)
    obs[:, 1:, :, 1] = action[..., 0]
    mask = np.ones((runs, agents), np.float32)
    mask[:, 2] = 0.0
    action[:, :, 2] = np.nan  # absent agents do not count
    graph = np.zeros((runs, agents, agents), np.float32)
    graph[:, 0, 1] = graph[:, 1, 0] = 1.0
    reward, no = np.zeros((runs, steps, agents), np.float32), np.zeros((runs, steps), bool)
    yes = np.ones((runs, steps), bool)
    yes[:, -5:] = False
    action[:, -5:] = 7.0  # nor do disturbances
    return Trajectories(
        obs=obs, action=action, reward=reward, adjacency=graph, agent_mask=mask, terminated=no, truncated=no,
        is_demonstration=yes,
    )  # fmt: skip


def test_a_rule_is_explained_by_the_present():
    share = action_predictability(trajectories(lambda rng, obs: np.abs(obs[..., 0])))
    assert share.from_present > 0.95 and share.with_next > 0.95


def test_a_rule_of_the_neighbours_is_too():
    share = action_predictability(trajectories(lambda rng, obs: obs[:, :, [1, 0, 2], 0]))
    assert share.from_present > 0.95


def test_whim_shows_in_the_next_step_only():
    share = action_predictability(trajectories(lambda rng, obs: rng.uniform(-1, 1, obs.shape[:3])))
    assert share.from_present < 0.1 and share.with_next > 0.95


def test_half_and_half():
    share = action_predictability(trajectories(lambda rng, obs: obs[..., 0] + rng.uniform(-1, 1, obs.shape[:3])))
    assert 0.35 < share.from_present < 0.65


def test_one_trajectory_is_not_enough():
    with pytest.raises(ValueError, match="at least 2 trajectories"):
        action_predictability(trajectories(lambda rng, obs: obs[..., 0], runs=1))
