"""An exported agent, run without this library, does what the batched planner does for it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import planning
from networld_jax.interop import deployment
from networld_jax.mean_field import quantise
from networld_jax.types import PlannerConfig
from tests import tiny

N, STEPS, SEED = tiny.AGENTS, 4, 11
CONFIG = PlannerConfig(num_steps=2, action_shift_std=0.2)


@pytest.fixture(scope="module")
def box():
    return tiny.with_linear_nets(tiny.build())


@pytest.fixture(scope="module")
def params(box):
    return planning.PolicyParams(box.params, box.stats)


@pytest.fixture(scope="module")
def exported(box, params, tmp_path_factory):
    """The artefacts; actions doubled on the way out, so that project_fn is seen to act."""
    return deployment.export_agent(
        tmp_path_factory.mktemp("agent"), box.world_model, box.schedule, "line", params, CONFIG,
        project_fn=lambda action: 2.0 * action, units={"action": "m"}, facts={"origin": "test"},
    )  # fmt: skip


def batched(box, params, config, obs, links):
    """Actions [T, N, A] of the planner along obs [T, N, O], links [T, N, N]."""
    policy = planning.make_planner(box.world_model, box.schedule, "line", config)
    act = jax.jit(lambda key, carry, obs, links: policy.act(key, params, carry, obs, links, None))
    carry, actions = policy.init(jax.random.key(0), N), []
    for t in range(len(obs)):
        action, carry = act(jax.random.fold_in(jax.random.key(SEED), t), carry, obs[t], links[t])
        actions.append(np.asarray(action))
    return np.stack(actions)


def alone(exported, tmp_path, obs, links, delay=0):
    """Actions [T, N, A] of the exported agents in a process of their own, and the size of a message."""
    np.savez(tmp_path / "case.npz", obs=obs, links=links, delay=delay, seed=SEED)
    script = Path(__file__).parent / "deployed_agents.py"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": ""}
    command = [sys.executable, str(script), str(exported), str(tmp_path / "case.npz"), str(tmp_path / "result.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = np.load(tmp_path / "result.npz")
    return result["actions"], int(result["num_bytes"])


@pytest.fixture(scope="module")
def obs():
    return np.random.default_rng(3).normal(size=(STEPS, N, tiny.OBS)).astype(np.float32)


def graph(lost=()):
    """[T, N, N] links; `lost` = (t, i, j) entries are down."""
    links = np.tile(tiny.path_graph(N), (STEPS, 1, 1))
    for t, i, j in lost:
        links[t, i, j] = 0
    return links


LOST = [(1, 1, 0), (2, 1, 0), (2, 1, 2), *((3, i, j) for i in range(N) for j in range(N))]


@pytest.mark.interop(
    party="JAX alone", package="jax", check="exported agents act as the batched planner, messages {delay} steps late"
)
@pytest.mark.parametrize("delay, lost", [(0, ()), (1, LOST)], ids=["on time", "late and lost"])
def test_agents_alone_do_what_the_planner_does(box, params, exported, obs, tmp_path, delay, lost, record_property):
    """Whoever hears nothing (agent 1 at step 2, everybody at step 3) acts on its own observation."""
    config = dataclasses.replace(CONFIG, message_delay_steps=delay)
    expected = batched(box, params, config, jnp.asarray(obs), jnp.asarray(graph(lost)))
    actions, num_bytes = alone(exported, tmp_path, obs, graph(lost), delay)
    lost_share = f", {int((graph() - graph(lost)).sum())} of {int(graph().sum())} messages lost" if lost else ""
    record_property("measured", f"{num_bytes} bytes per agent and step{lost_share}")
    np.testing.assert_allclose(actions, 2.0 * expected, atol=2e-5)  # one row against N: rounding of matrix products
    assert num_bytes == planning.message_bytes(box.world_model, "line", CONFIG.message_bits)
    deaf = batched(box, params, config, jnp.asarray(obs), jnp.asarray(graph() * 0))
    assert np.abs(deaf[0] - expected[0]).max() > 1e-3, "messages must matter for this test to mean anything"


def test_the_description_is_complete_and_checked(box, exported, tmp_path):
    facts = json.loads((exported / "agent.json").read_text())
    assert facts["message"]["bytes"] == 2 and facts["message"]["entries"] == tiny.OBS  # 4 entries of 4 bits
    assert facts["action"]["unit"] == "m" and facts["facts"] == {"origin": "test"}
    assert [x["shape"] for x in facts["action"]["inputs"]] == [[tiny.OBS], [tiny.OBS], [2]]
    for name in ("message.stablehlo", "agent.json"):
        broken = tmp_path / name.split(".")[1]
        broken.mkdir()
        for path in exported.iterdir():
            content = bytearray(path.read_bytes())
            if path.name == name:
                content[len(content) // 2] ^= 1
            (broken / path.name).write_bytes(content)
        from networld_jax.interop.agent_runtime import Agent

        with pytest.raises(ValueError, match="does not match its checksum"):
            Agent(broken)


@pytest.mark.parametrize("bits", [0, 2, 3, 4, 7, 12])
def test_packed_messages_decode_to_what_the_planner_hears(exported, bits):
    from networld_jax.interop.agent_runtime import Agent

    z = np.random.default_rng(0).normal(size=7).astype(np.float32) * 2
    packed = np.asarray(jax.jit(deployment.pack, static_argnums=(1, 2))(z, bits, 3.0))
    assert packed.nbytes == -(-7 * (bits or 32) // 8)
    agent = Agent(exported)
    half = 2 ** (bits - 1) - 1 if bits else 0
    agent.facts["message"] |= {"bytes": packed.nbytes, "entries": 7, "bits": bits, "half_levels": half, "range": 3.0}
    heard = quantise(jnp.asarray(z), bits, 3.0)
    np.testing.assert_allclose(agent.decode(packed.tobytes()), heard, rtol=1e-6)
    with pytest.raises(ValueError, match=f"a message has {packed.nbytes} bytes, got {packed.nbytes + 1}"):
        agent.decode(packed.tobytes() + b"\0")


def test_mistakes_are_named(box, params, tmp_path):
    export = lambda **options: deployment.export_agent(  # noqa: E731
        tmp_path, box.world_model, box.schedule, **({"task": "line", "policy_params": params} | options)
    )
    with pytest.raises(ValueError, match="platforms must be among cpu, cuda, rocm, tpu, got 'gpu'"):
        export(platforms=("gpu",))
    with pytest.raises(ValueError, match=r"task must be one of \['line'\], got 'rb'"):
        export(task="rb")
    with pytest.raises(ValueError, match="message_bits must be 0"):
        export(config=PlannerConfig(message_bits=1))
    with pytest.raises(ValueError, match=r"warm_start must be 0: .* got 0\.3"):
        export(config=PlannerConfig(warm_start=0.3))
