"""The learned environment asks its simulator in the simulator's units and answers in the task's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs.policies import stateless
from networld_jax import graph_dynamics, rollout
from networld_jax.learned_environment import make_learned_environment
from networld_jax.normalisation import normalise_obs, raw_obs, raw_reward, standardise_reward
from tests import tiny

TINY = tiny.build()
STATS = graph_dynamics.with_observation_bins(TINY.data, TINY.stats, 8)


def drift(key, params, stats, obs, action, adjacency):
    """A simulator that is known: o' = 0.5 o + its member's number + the mean of one's action, r = the number of
    neighbours; in standardised units."""
    del key, stats
    return 0.5 * obs + params + action.mean(-1, keepdims=True), adjacency.sum(-1)


def build(num_members=2, **options):
    simulator = graph_dynamics.Simulator(init=None, loss=None, step=drift)
    members = jnp.arange(num_members, dtype=jnp.float32)
    return make_learned_environment(TINY.spec, simulator, members, STATS, TINY.data, **options)


def test_units_come_back():
    obs, reward = jnp.asarray(TINY.data.obs[0]), jnp.asarray(TINY.data.reward[0])
    np.testing.assert_allclose(raw_obs(normalise_obs(obs, STATS), STATS), obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw_reward(standardise_reward(reward, STATS), STATS), reward, rtol=1e-4, atol=1e-5)


def test_an_episode_starts_at_a_logged_moment_and_follows_one_simulator():
    env = build()
    states, obs = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(0), 64), env.default_params)
    logged = np.asarray(TINY.data.obs).reshape(-1, *obs.shape[1:])
    assert all((logged == one).all((1, 2)).any() for one in np.asarray(obs))
    assert len({one.tobytes() for one in np.asarray(obs)}) > 32  # of 300 moments
    assert set(states.member.tolist()) == {0, 1}


def test_a_step_is_the_simulators_in_the_tasks_units():
    env = build(num_members=1, episode_steps=2)
    state, obs = env.reset(jax.random.key(0), env.default_params)
    high = np.asarray(TINY.spec.action_high, np.float32)
    wild = jnp.broadcast_to(10.0 * high, (tiny.AGENTS, tiny.ACTIONS))
    after, step = env.step(jax.random.key(1), state, wild, env.default_params)
    np.testing.assert_allclose(step.action, np.broadcast_to(high, wild.shape), rtol=1e-6)
    expected = 0.5 * normalise_obs(obs, STATS) + high.mean()
    np.testing.assert_allclose(normalise_obs(step.obs, STATS), expected, atol=1e-4)
    neighbours = tiny.path_graph(tiny.AGENTS).sum(-1)
    np.testing.assert_allclose(standardise_reward(step.reward, STATS), neighbours, atol=1e-4)
    _, last = env.step(jax.random.key(2), after, wild, env.default_params)
    assert (bool(step.truncated), bool(last.truncated)) == (False, True)


def test_a_policy_rolls_out_in_it():
    """With no action, o_h = 0.5^h o_0 in standardised units: a trajectory as any environment's."""
    env = build(num_members=1)
    nothing = stateless(lambda key, obs, adjacency, state: jnp.zeros((tiny.AGENTS, tiny.ACTIONS)))
    path = jax.jit(lambda key: rollout(key, env, env.default_params, nothing, None, 4))(jax.random.key(0))
    z = normalise_obs(path.obs, STATS)
    np.testing.assert_allclose(z[1:], 0.5 * z[:-1], atol=1e-4)
    np.testing.assert_array_equal(path.adjacency, tiny.path_graph(tiny.AGENTS))


def test_constants_without_bins_are_refused():
    simulator = graph_dynamics.Simulator(init=None, loss=None, step=drift)
    with pytest.raises(ValueError, match="with_observation_bins"):
        make_learned_environment(TINY.spec, simulator, jnp.zeros(1), TINY.stats, TINY.data)
