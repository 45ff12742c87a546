"""JaxMARL: what its environments promise, and its own unmodified training scripts learning on ours.

The scripts are not in JaxMARL's wheel: NETWORLD_JAXMARL names a checkout of github.com/FLAIROx/JaxMARL.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networld_envs
from networld_jax.transforms import symlog

pytest.importorskip("jaxmarl", reason="needs JaxMARL: pip install 'networld-jax[jaxmarl]'")

from jaxmarl.environments.multi_agent_env import MultiAgentEnv
from jaxmarl.environments.spaces import Box, Discrete
from jaxmarl.wrappers.baselines import CTRolloutManager, LogWrapper

from networld_envs.adapters.jaxmarl import to_jaxmarl

ROOT = Path(__file__).parents[1]
CHECKOUT = os.environ.get("NETWORLD_JAXMARL", "")
SMALL = {"cbf": dict(num_cells=7), "rb": dict(alive_choices=(8,)), "ns": dict(preset="tiny")}
TASKS = sorted(SMALL)
party = lambda check: pytest.mark.interop(party="JaxMARL", package="jaxmarl", check=check)  # noqa: E731
pytestmark = pytest.mark.interop


@functools.cache
def adapted(task):
    return to_jaxmarl(networld_envs.make(task, episode_steps=2, **SMALL[task]), observation_fn=symlog, num_networks=3)


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return request.param


@functools.cache
def played(task):
    """(reset's observations, [three steps' results]) with random actions."""
    with jax.debug_key_reuse(False):  # JaxMARL's keys are raw
        env = adapted(task)
        obs, state = env.reset(jax.random.PRNGKey(0))
        steps = []
        for t in range(3):
            keys = dict(zip(env.agents, jax.random.split(jax.random.PRNGKey(t), env.num_agents), strict=True))
            actions = {a: env.action_space(a).sample(keys[a]) for a in env.agents}
            steps.append(env.step(jax.random.PRNGKey(10 + t), state, actions))
            state = steps[-1][1]
        return obs, steps


@party("MultiAgentEnv: spaces and names, {task}")
def test_spaces(task):
    env = adapted(task)
    assert isinstance(env, MultiAgentEnv) and env.name == f"networld_{task}"
    assert not any(word in env.name for word in ("smax", "overcooked", "hanabi")), "names their wrappers treat apart"
    assert env.agent_classes == {task: env.agents}
    for agent in env.agents:
        assert env.observation_space(agent) is env.observation_spaces[agent]
        assert isinstance(env.observation_space(agent), Box)
        assert isinstance(env.action_space(agent), Discrete if task == "rb" else Box)
    assert {"cbf": 6, "rb": (), "ns": 3}[task] == (env.action_space("agent_0").shape or ((),))[0]


@party("MultiAgentEnv: reset, step, automatic reset, {task}")
def test_steps(task):
    env = adapted(task)
    first, steps = played(task)
    spec = env.env.spec
    for obs, _, rewards, dones, info in steps:
        assert set(obs) == set(rewards) == set(env.agents) and set(dones) == {*env.agents, "__all__"}
        for agent in env.agents:
            assert env.observation_space(agent).contains(obs[agent]) and obs[agent].shape == (spec.obs_dim,)
            assert rewards[agent].shape == () and dones[agent].dtype == jnp.bool_
        for name, value in info.items():
            assert value.shape == (spec.max_agents,), f"{name}: IPPO reshapes every leaf to one number per agent"
            assert np.isfinite(np.asarray(value, np.float32)).all(), name
    assert [bool(s[3]["__all__"]) for s in steps] == [False, True, False]
    assert [bool(s[4]["truncated"][0]) for s in steps] == [False, True, False]
    assert [int(s[1].step) for s in steps] == [1, 0, 1], "step resets by itself"
    assert all(o.shape == (spec.obs_dim,) for o in first.values())


@party("absent agents are done, silent and unpaid, rb")
def test_absent_agents():
    env = adapted("rb")
    first, steps = played("rb")
    alive = np.asarray(steps[0][4]["alive"])
    assert alive.sum() == 8
    absent = env.agents[int(np.argmin(alive))]
    assert not np.asarray(first[absent]).any()
    for obs, _, rewards, dones, _ in steps:
        assert not np.asarray(obs[absent]).any() and rewards[absent] == 0 and dones[absent]
    available = env.get_avail_actions(steps[0][1])
    assert np.asarray(available[absent]).tolist() == [True] + [False] * 9
    assert np.asarray(available[env.agents[int(np.argmax(alive))]]).all()
    with pytest.raises(NotImplementedError, match="continuous"):
        adapted("ns").get_avail_actions(played("ns")[1][0][1])


@party("actions from [-1, 1] reach the task's bounds, ns")
def test_actions_are_scaled():
    env = adapted("ns")
    ask = {a: jnp.array([-3.0, 0.0, 1.0]) for a in env.agents}
    np.testing.assert_allclose(env.task_action(ask)[0], [0.0, 5e6, 10e6])
    with pytest.raises(ValueError, match=r"action of agent_0 must have shape \(3,\), got \(2,\)"):
        env.task_action(ask | {"agent_0": jnp.zeros(2)})
    grid = adapted("rb")
    for shape in ((), (1,)):
        np.testing.assert_array_equal(grid.task_action(dict.fromkeys(grid.agents, jnp.full(shape, 7)))[:, 0], 7.0)


@party("LogWrapper and CTRolloutManager, rb")
def test_their_wrappers():
    with jax.debug_key_reuse(False):
        env = CTRolloutManager(LogWrapper(adapted("rb")), batch_size=2)
        obs, state = env.batch_reset(jax.random.PRNGKey(0))
        spec = adapted("rb").env.spec
        assert obs["__all__"].shape == (2, 9 * spec.obs_dim) and env.max_action_space == 10
        actions = dict.fromkeys(env.agents, jnp.full(2, 4))
        for _ in range(2):
            obs, state, reward, _, info = env.batch_step(jax.random.PRNGKey(1), state, actions)
        total = sum(reward[a] for a in env.agents)
        np.testing.assert_allclose(reward["__all__"], total, rtol=1e-5, atol=1e-5)
        assert np.asarray(info["returned_episode"]).all()
        assert np.abs(np.asarray(info["returned_episode_returns"])).max() > 0


@party("networks prepared once are the ones episodes start in, cbf")
def test_prepared_networks():
    env = adapted("cbf")
    starts = {np.asarray(env.reset(jax.random.PRNGKey(s))[0]["agent_0"]).tobytes() for s in range(20)}
    assert len(starts) == 3
    with pytest.raises(ValueError, match="num_networks must be at least 1"):
        to_jaxmarl(networld_envs.make("cbf"), num_networks=0)


# --------------------------------------------------------------------------------------------- their own scripts

ENVIRONMENTS = {
    "cbf": dict(num_cells=7, episode_steps=20, local_reward=0.05),
    "ns": dict(preset="tiny", bandwidth_hz=5e6, max_change_hz=5e6, episode_steps=20, local_reward=0.05),
    "rb": dict(episode_steps=25, team_reward=0.1),
}
PPO = ("NUM_ENVS=16", "UPDATE_EPOCHS=4", "NUM_MINIBATCHES=4", "ANNEAL_LR=False", "LR=1e-3")
RUNS = {
    "IPPO, cbf": (
        "baselines/IPPO/ippo_ff_mabrax.py", "cbf", (*PPO, "NUM_STEPS=40", "TOTAL_TIMESTEPS=96000", "GAMMA=0.3")
    ),
    "IPPO, ns": (
        "baselines/IPPO/ippo_ff_mabrax.py", "ns", (*PPO, "NUM_STEPS=40", "TOTAL_TIMESTEPS=64000", "GAMMA=0.6")
    ),
    "IPPO, rb": (
        "baselines/IPPO/ippo_ff_mpe.py", "rb", (*PPO, "NUM_SEEDS=1", "NUM_STEPS=50", "TOTAL_TIMESTEPS=80000")
    ),
    "MAPPO, rb": (
        "baselines/MAPPO/mappo_rnn_mpe.py", "rb",
        (*PPO, "NUM_STEPS=50", "TOTAL_TIMESTEPS=40000", "FC_DIM_SIZE=64", "GRU_HIDDEN_DIM=64"),
    ),
    "QMIX, rb": (
        "baselines/QLearning/qmix_rnn.py", "rb",
        ("+alg=ql_rnn_mpe", "SAVE_PATH=null", "alg.NUM_ENVS=8", "alg.NUM_STEPS=25", "alg.TOTAL_TIMESTEPS=80000",
         "alg.LEARNING_STARTS=2000", "alg.TEST_DURING_TRAINING=False", "alg.LR=0.002", "alg.BUFFER_SIZE=1000",
         "alg.EPS_DECAY=0.5", "WANDB_MODE=online"),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="set NETWORLD_JAXMARL to a checkout of github.com/FLAIROx/JaxMARL")
@party("unmodified script learns: {name}")
@pytest.mark.parametrize("name", RUNS)
def test_their_scripts_learn(name, tmp_path, record_property):
    """Mean return of finished episodes: the last fifth of training against the first tenth (without the first update,
    in which no episode had ended before), by more than four standard errors."""
    script, task, overrides = RUNS[name]
    command = [
        sys.executable, "-m", "tools.run_jaxmarl", CHECKOUT, script, task, json.dumps(ENVIRONMENTS[task]),
        str(tmp_path / "log.jsonl"), *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'envs'}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    returns = np.array([row.get("returned_episode_returns", row.get("returns")) for row in rows])
    early, late = returns[1 : 1 + len(returns) // 10], returns[-len(returns) // 5 :]
    error = np.hypot(early.std(ddof=1) / len(early) ** 0.5, late.std(ddof=1) / len(late) ** 0.5)
    numbers = f"{early.mean():.4g} -> {late.mean():.4g} ± {error:.2g}"
    record_property("measured", f"return logged by the script {numbers} in {len(returns)} updates")
    assert late.mean() > early.mean() + 4 * error
