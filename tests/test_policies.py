"""The combinators that mix data tiers, on policies whose every action is known."""

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.policies import disturbed, mixture, stateless
from networld_envs.types import Policy

AGENTS, OBS = 6, 3


def constant(value, **fields):
    return stateless(lambda key, obs, adjacency, env_state: jnp.full((obs.shape[0], 1), float(value)), **fields)


def counting():
    """Acts with the number of times it was asked before: shows that a carry survives."""
    return Policy(
        init=lambda key, num_agents: jnp.float32(0),
        act=lambda key, params, carry, obs, adjacency, env_state: (jnp.full((obs.shape[0], 1), carry), carry + 1),
    )


def play(policy, steps, seed=0):
    """(actions [steps, AGENTS], is_demonstration [steps])."""
    is_demonstration = policy.is_demonstration or (lambda carry: jnp.bool_(True))
    obs, graph = jnp.zeros((AGENTS, OBS)), jnp.zeros((AGENTS, AGENTS))

    def frame(carry, key):
        action, carry = policy.act(key, None, carry, obs, graph, None)
        return carry, (action[:, 0], is_demonstration(carry))

    @jax.jit
    def run(key):
        init_key, act_key = jax.random.split(key)
        return jax.lax.scan(frame, policy.init(init_key, AGENTS), jax.random.split(act_key, steps))[1]

    return jax.device_get(run(jax.random.key(seed)))


def test_mixture_holds_each_agents_member_for_a_segment():
    members = [constant(v) for v in range(4)]
    actions, _ = play(mixture(members, segment_steps=5), 400)
    segments = actions.reshape(80, 5, AGENTS)
    assert (segments == segments[:, :1]).all()
    counts = np.bincount(segments[:, 0].astype(int).ravel(), minlength=4)
    # 480 draws over 4 members: 120 +- 9.5 each; agents are not in step with each other.
    assert (np.abs(counts - 120) < 4.5 * 9.5).all()
    assert (segments[:, 0].std(axis=1) > 0).mean() > 0.9
    changed = (np.diff(segments[:, 0], axis=0) != 0).mean()
    assert abs(changed - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / 474)


def test_mixture_advances_every_members_memory():
    """A member that nobody follows in a segment still sees the frames go by."""
    actions, _ = play(mixture([counting(), constant(-1.0)], segment_steps=3), 60)
    step = np.broadcast_to(np.arange(60.0)[:, None], actions.shape)
    follows = actions >= 0
    np.testing.assert_array_equal(actions[follows], step[follows])
    assert 0.2 < follows.mean() < 0.8


def test_mixture_perturbs_with_the_stated_probability():
    policy = mixture([constant(0.0)], 10, lambda key, action: action + 7.0, perturb_probability=0.2)
    actions, _ = play(policy, 500)
    assert set(np.unique(actions)) == {0.0, 7.0}
    assert abs((actions == 7.0).mean() - 0.2) < 4.5 * np.sqrt(0.2 * 0.8 / actions.size)


def test_disturbed_marks_exactly_its_random_steps():
    """Each period of 10 starts with 1..4 random actions, each count equally often, and only those are no
    demonstrations."""
    actions, is_demonstration = play(
        disturbed(constant(1.0), constant(-1.0), period_steps=10, max_random_steps=4), 4000
    )
    is_random = actions[:, 0] < 0
    np.testing.assert_array_equal(is_random, ~is_demonstration)
    periods = is_random.reshape(400, 10)
    counts = periods.sum(1)
    np.testing.assert_array_equal(periods, np.arange(10)[None, :] < counts[:, None])
    histogram = np.bincount(counts, minlength=5)
    assert histogram[0] == 0
    assert (np.abs(histogram[1:] - 100) < 4.5 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_disturbed_lets_the_expert_watch():
    """The expert's memory advances in random steps too."""
    actions, is_demonstration = play(disturbed(counting(), constant(-1.0), period_steps=8, max_random_steps=3), 40)
    np.testing.assert_array_equal(actions[is_demonstration, 0], np.arange(40.0)[is_demonstration])


def test_rewards_reach_the_members():
    """A combinator of policies that learn from rewards hands the reward on."""
    learner = constant(0.0)._replace(
        init=lambda key, num_agents: jnp.zeros(num_agents), observe_reward=lambda carry, reward: carry + reward
    )
    reward = jnp.arange(float(AGENTS))
    mixed = mixture([learner, constant(1.0)], 5)
    carry = mixed.observe_reward(mixed.init(jax.random.key(0), AGENTS), reward)
    np.testing.assert_array_equal(carry.members[0], reward)
    shaken = disturbed(learner, constant(1.0))
    carry = shaken.observe_reward(shaken.init(jax.random.key(0), AGENTS), reward)
    np.testing.assert_array_equal(carry.inner, reward)
