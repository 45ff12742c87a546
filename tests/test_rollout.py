"""The closed loop: what is stored stands where it belongs, and the environment's draws do not depend on the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs.policies import disturbed, stateless
from networld_envs.types import Policy
from networld_jax.rollout import rollout
from tests import toy_environment

STEPS, N = 9, toy_environment.NUM_QUEUES
ENV = toy_environment.make_queues()
RULES = toy_environment.policies(ENV.default_params)


def play(policy, seed=0, params=None):
    run = jax.jit(lambda key: rollout(key, ENV, ENV.default_params, policy, params, STEPS))
    return jax.tree.map(np.asarray, run(jax.random.key(seed)))


@pytest.fixture(scope="module")
def played():
    with jax.debug_key_reuse(True):
        return {name: play(policy) for name, policy in RULES.items()}


def test_policies_meet_the_same_randomness(played):
    """Same first observation, same arrivals at every step, whatever the actions."""
    random, expert = played["random"], played["expert"]
    np.testing.assert_array_equal(random.obs[0], expert.obs[0])
    np.testing.assert_array_equal(random.obs[..., 1], expert.obs[..., 1])
    assert not np.array_equal(random.action, expert.action)


def test_keys_give_different_instances(played):
    other = play(RULES["expert"], seed=1)
    assert not np.array_equal(other.obs[0], played["expert"].obs[0])
    assert not np.array_equal(other.obs[1:, :, 1], played["expert"].obs[1:, :, 1])
    arrivals = played["expert"].obs[1:, :, 1]
    assert len(np.unique(arrivals)) == arrivals.size  # and every step draws anew


def test_entries_line_up(played):
    """obs[t] -> action[t] -> reward[t], obs[t+1]."""
    t = played["expert"]
    assert t.obs.shape == (STEPS + 1, N, 2) and t.action.shape == (STEPS, N, 1) and t.reward.shape == (STEPS, N)
    np.testing.assert_allclose(t.action[..., 0], np.clip(t.obs[:-1, :, 0], 0, 1), atol=1e-6)
    np.testing.assert_allclose(t.reward, -t.obs[1:, :, 0] - 0.1 * t.action[..., 0], atol=1e-5)
    np.testing.assert_array_equal(t.adjacency, toy_environment.ring())
    assert t.is_demonstration.all() and t.agent_mask.all() and not t.terminated.any()


def test_learned_policies_never_see_the_state():
    seen = []

    def act(key, params, carry, obs, adjacency, env_state):
        seen.append(env_state)
        return jnp.zeros((N, 1)), carry

    for reads_state in (True, False):
        policy = Policy(lambda key, num_agents: (), act, reads_state=reads_state)
        jax.eval_shape(lambda key, p=policy: rollout(key, ENV, ENV.default_params, p, None, 2), jax.random.key(0))
    assert seen[0] is not None and seen[-1] is None


def test_rewards_reach_the_policy():
    """A policy that acts with its last total reward: the loop hands it over before the next decision."""
    policy = Policy(
        init=lambda key, num_agents: jnp.zeros(num_agents),
        act=lambda key, params, carry, obs, adjacency, state: (jnp.clip(-carry[:, None] / 10, 0, 1), carry),
        observe_reward=lambda carry, reward: reward,
    )
    t = play(policy)
    np.testing.assert_allclose(t.action[1:, :, 0], np.clip(-t.reward[:-1] / 10, 0, 1), atol=1e-6)


def test_disturbing_actions_are_marked():
    ones = stateless(lambda key, obs, adjacency, state: jnp.ones((N, 1)))
    halves = stateless(lambda key, obs, adjacency, state: jnp.full((N, 1), 0.5))
    t = play(disturbed(ones, halves, period_steps=4, max_random_steps=2))
    np.testing.assert_array_equal(t.is_demonstration, (t.action == 1).all((1, 2)))
    assert 0 < t.is_demonstration.sum() < STEPS
