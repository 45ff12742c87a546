"""PettingZoo's own tests on all three tasks, and that the adapter plays what the environment plays."""

import jax
import numpy as np
import pytest

import networld_envs

pytest.importorskip("pettingzoo", reason="needs PettingZoo: pip install 'networld-jax[pettingzoo]'")

from pettingzoo import test as pettingzoo_test

from networld_envs.adapters.pettingzoo import to_pettingzoo

SMALL = {"cbf": dict(num_cells=7), "rb": {}, "ns": dict(preset="tiny")}
TASKS = sorted(SMALL)
party = lambda check: pytest.mark.interop(party="PettingZoo", package="pettingzoo", check=check)  # noqa: E731
pytestmark = pytest.mark.interop


def small(task, **overrides):
    return networld_envs.make(task, episode_steps=6, **SMALL[task], **overrides)


@pytest.fixture(scope="module")
def adapted():
    """One adapter per task: compiled once, reset by every test."""
    return {task: to_pettingzoo(small(task)) for task in TASKS}


@party("parallel_api_test, {task}")
@pytest.mark.parametrize("task", TASKS)
# Where one of rb's nine possible nodes is absent for the whole episode, PettingZoo warns that it never finished.
@pytest.mark.filterwarnings("ignore:No agents present but not all possible_agents:UserWarning")
def test_parallel_api(adapted, task, capsys):
    pettingzoo_test.parallel_api_test(adapted[task], num_cycles=20)
    assert "Passed Parallel API test" in capsys.readouterr().out


@party("parallel_seed_test, {task}")
@pytest.mark.parametrize("task", TASKS)
def test_seeding(adapted, task):
    compiled = adapted[task]

    def build():
        env = to_pettingzoo(compiled.env)
        env._jitted_reset, env._jitted_step = compiled._jitted_reset, compiled._jitted_step  # not compiled twice more
        return env

    def build_deaf():
        env = build()
        env.reset, heard = lambda seed=None, options=None: heard(None, options), env.reset
        return env

    pettingzoo_test.parallel_seed_test(build, num_cycles=20)
    with pytest.raises(AssertionError):  # so it would notice an environment that does not listen to its seed
        pettingzoo_test.parallel_seed_test(build_deaf, num_cycles=20)


def test_seeds_select_networks(adapted):
    env = adapted["cbf"]
    first, again, other = (env.reset(seed=s)[0]["agent_0"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(env.reset()[0]["agent_0"] - env.reset()[0]["agent_0"]).max() > 1e-3, "the stream goes on"


@party("an absent agent is no agent, rb")
def test_absent_agents_are_not_listed():
    env = to_pettingzoo(small("rb", alive_choices=(8,)))
    obs, _ = env.reset(seed=0)
    assert len(env.agents) == 8 and len(env.possible_agents) == 9 and set(obs) == set(env.agents)
    with pytest.raises(ValueError, match="every present agent needs an action; missing: "):
        env.step({})
    for t in range(6):
        obs, reward, _, truncated, info = env.step(dict.fromkeys(env.agents, 3))
        assert len(obs) == len(reward) == len(info) == 8
        assert all(truncated.values()) == (t == 5)
    assert env.agents == [] and env.state().shape == (9 * env.env.spec.obs_dim,)
    with pytest.raises(ValueError, match="the episode is over"):
        env.step({})


@party("same steps as the environment itself, ns")
def test_the_adapter_plays_the_environment(adapted):
    env = adapted["ns"]
    env.reset(seed=0)
    spec, state, key = env.env.spec, env._state, jax.random.clone(env._key)
    actions = {a: np.array([1.0, 2.0, 3.0], np.float32) * (i + 1) for i, a in enumerate(env.agents)}
    obs, reward, *_ = env.step(actions)
    _, step_key = jax.random.split(key)
    stacked = np.stack(list(actions.values()))
    _, expected = jax.jit(lambda key, s, a: env.env.step(key, s, a, env.params))(step_key, state, stacked)
    np.testing.assert_allclose([reward[a] for a in env.agents], expected.reward, rtol=1e-6)
    np.testing.assert_allclose(np.stack([obs[a] for a in env.agents]), expected.obs, rtol=1e-6)
    assert spec.max_agents == len(env.agents)
