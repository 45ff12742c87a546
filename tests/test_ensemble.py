"""Ensembles: the mean action of members with their own weights, memories and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs.types import Policy
from networld_jax import ensemble

OBS = jnp.asarray([[1.0], [2.0], [4.0]])


def scaled(noise=0.0):
    """a = weight * o + the sum of rewards seen + noise; two bytes of message."""

    def act(key, params, carry, obs, adjacency, env_state):
        return params["weight"] * obs + carry[:, None] + noise * jax.random.normal(key, obs.shape), carry + 1.0

    return Policy(
        init=lambda key, num_agents: jnp.zeros(num_agents),
        act=act,
        observe_reward=lambda carry, reward: carry + reward,
        message_bytes=2,
    )


def play(policy, weights, steps=1, rewards=()):
    params = ensemble.stack([{"weight": jnp.float32(w)} for w in weights])
    carry = policy.init(jax.random.key(0), 3)
    for step in range(steps):
        action, carry = policy.act(jax.random.key(step), params, carry, OBS, None, None)
        for reward in rewards:
            carry = policy.observe_reward(carry, reward)
    return np.asarray(action)


def test_the_action_is_the_members_mean():
    np.testing.assert_allclose(play(ensemble.mean_action(scaled(), 3), [1.0, 2.0, 6.0]), 3.0 * OBS)


def test_every_member_remembers_and_hears_rewards():
    """Second step: the memory is 1 from acting plus the reward of each agent."""
    reward = jnp.asarray([0.0, 1.0, 2.0])
    action = play(ensemble.mean_action(scaled(), 2), [1.0, 3.0], steps=2, rewards=[reward])
    np.testing.assert_allclose(action, 2.0 * OBS + 1.0 + reward[:, None])


def test_members_draw_their_own_noise():
    """With 400 members the mean of unit noise has a standard deviation of 0.05."""
    action = play(ensemble.mean_action(scaled(noise=1.0), 400), [1.0] * 400)
    assert 0.0 < np.abs(action - OBS).max() < 0.25


def test_messages_count_once_where_members_share_them():
    assert ensemble.mean_action(scaled(), 4).message_bytes == 2
    assert ensemble.mean_action(scaled(), 4, shared_message=False).message_bytes == 8


def test_what_cannot_be_an_ensemble_is_refused():
    with pytest.raises(ValueError, match="num_members must be at least 1, got 0"):
        ensemble.mean_action(scaled(), 0)
    with pytest.raises(ValueError, match="at least one member"):
        ensemble.stack([])
    with pytest.raises(ValueError, match=r"members \[2\]"):
        ensemble.stack([jnp.zeros(2), jnp.ones(2), jnp.zeros(3)])
