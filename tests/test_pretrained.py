"""Planners that come with the package: they act, and (slow) reach the reward that their facts promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networld_envs
from networld_jax import evaluate, pretrained
from networld_jax.evaluation import Protocol

NAMES = pretrained.pretrained_names()


def test_every_task_has_a_planner():
    assert {pretrained.load_pretrained(name).task for name in NAMES} == {"cbf", "rb", "ns"}


@pytest.mark.parametrize("name", NAMES)
def test_a_planner_acts_within_its_task(name):
    planner = pretrained.load_pretrained(name)
    spec = planner.world_model.specs[planner.task]
    assert spec == networld_envs.make(planner.task).spec
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(4, spec.obs_dim)), jnp.float32)
    graph = jnp.ones((4, 4)) - jnp.eye(4)
    act = jax.jit(lambda key, carry: planner.policy.act(key, planner.policy_params, carry, obs, graph, None)[0])
    action = np.asarray(act(jax.random.key(0), planner.policy.init(jax.random.key(1), 4)))
    assert action.shape == (4, spec.action_dim)
    assert np.all(action >= np.array(spec.action_low) - 1e-3) and np.all(action <= np.array(spec.action_high) + 1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("full_compile")  # it computes much
@pytest.mark.parametrize("name", NAMES)
def test_a_planner_reaches_its_expected_reward(name):
    planner = pretrained.load_pretrained(name)
    expected = planner.facts["expected"]
    protocol = Protocol(**expected["protocol"])
    env = networld_envs.make(planner.task)
    scores = evaluate(env, planner.policy, planner.policy_params, protocol)
    wanted = np.array(expected["instance_rewards"])
    error = (scores.reward - wanted).std(ddof=1) / np.sqrt(len(wanted))  # other machines round otherwise
    assert abs(scores.reward.mean() - wanted.mean()) < 0.02 * abs(wanted.mean()) + 3 * error
