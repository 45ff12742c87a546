"""Writes the adapted agent of the held-out task as two compiled programs that need JAX and NumPy only.

    python -m experiments.export --config=experiments/configs/small.py --workdir=runs/small
    python -m experiments.export ... --publish                                (also into results/deployment.json)

Reads <workdir>/adapt_<held_out>/model, writes <workdir>/export_<held_out>/ (message.stablehlo, action.stablehlo,
agent.json, agent.py), checks that the exported agents act as the batched planner on one network, and reports bytes per
agent and step and the time of a decision. docs/deploy.md shows how an agent runs.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import runtime, settings
from experiments.adapt import adapt_dir
from experiments.tables import print_table
from networld_envs.instances import instance_keys
from networld_envs.types import Environment, Policy
from networld_jax import checkpoints, planning
from networld_jax.files import write_atomically
from networld_jax.interop import deployment
from networld_jax.interop.agent_runtime import Agent, agent_key
from networld_jax.rollout import rollout
from networld_jax.schedules import cosine_schedule

UNITS = {
    "cbf": {"action": "sqrt(mW): antenna weights, real then imaginary parts", "observation": "see entries"},
    "rb": {"action": "resource blocks", "observation": "packets, frames, RBs; see entries"},
    "ns": {"action": "Hz per slice", "observation": "packets, shares of the band, ratios; see entries"},
}
TIMED_DECISIONS = 100


class ExportError(ValueError):
    """An exported agent that does not act as the planner."""


def export_dir(workdir: Path, task: str) -> Path:
    """Where the exported agent of a task lives."""
    return Path(workdir) / f"export_{task}"


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Exports, checks, measures; returns what was measured (also in <export folder>/measured.json)."""
    task = config.held_out
    env = settings.environment(config, task)
    world_model, params, stats, facts = checkpoints.load_model(adapt_dir(workdir, task, False) / "model")
    policy_params = planning.PolicyParams(params, stats[task])
    directory = deployment.export_agent(
        export_dir(workdir, task),
        world_model,
        cosine_schedule(world_model.config.diffusion_steps),
        task,
        policy_params,
        settings.planner_config(config),
        platforms=tuple(config.export.platforms),
        units=UNITS.get(task),
        facts=facts,
        project_fn=lambda action: env.project_action(action[None], env.default_params)[0],
        **settings.planner_functions(config, world_model, task),
    )
    policy = settings.make_planner(config, world_model, task)
    measured = compare(env, policy, policy_params, Agent(directory), config.export.check_steps)
    measured |= {"task": task, "device": runtime.device_name(), "versions": runtime.versions()}
    write_atomically(directory / "measured.json", json.dumps(measured, indent=1).encode())
    shown = {name: value for name, value in measured.items() if name not in ("task", "versions")}
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in shown.items()]
    print_table(runtime.console, f"{task}: exported agent in {directory}", ("measured", ""), rows)
    return measured


def compare(env: Environment, policy: Policy, policy_params: Any, agent: Agent, num_steps: int) -> dict[str, Any]:
    """Plays `num_steps` steps of a validation network with the batched planner, and again agent by agent on the same
    observations with messages as bytes.

    Returns the largest difference of an executed action relative to the action range, bytes and times. Raises
    ExportError when an integer action differs, or a box action by more than a thousandth of the range.
    """
    spec, params = env.spec, env.default_params
    key = instance_keys(spec.name, "validation", 1)[0]
    with runtime.progress(f"check exported {spec.name}", num_steps) as advance:
        played = jax.jit(lambda key, p: rollout(key, env, params, policy, p, num_steps))(key, policy_params)
        obs, adjacency = np.asarray(played.obs), np.asarray(played.adjacency)
        present = np.flatnonzero(np.asarray(played.agent_mask))
        delay, air, largest = agent.facts["message"]["expected_delay_steps"], [], 0.0
        for t in range(num_steps):
            air.append({i: agent.message(obs[t, i]) for i in present})
            late = air[max(0, t - delay)]
            for i in present:
                heard = [late[j] for j in present if adjacency[i, j]]
                action = agent.act(obs[t, i], heard, rollout_key(key, t, i))
                width = np.array(spec.action_high) - np.array(spec.action_low)
                largest = max(largest, float((np.abs(action - played.action[t, i]) / width).max()))
            advance(1, difference=largest)
    if largest > (0 if spec.action_kind == "integer" else 1e-3):
        raise ExportError(f"an exported agent differs from the planner by {largest:.2g} of the action range")
    return {
        "largest_difference": largest,
        "bytes_per_agent_and_step": agent.facts["message"]["bytes"],
        "message_ms": _median_ms(lambda: agent.message(obs[0, 0])),
        "action_ms": _median_ms(lambda: agent.act(obs[0, 0], [], agent_key(0, 0, 0))),
        "checked_agents": len(present),
        "checked_steps": num_steps,
    }


def rollout_key(key: jax.Array, t: int, agent: int) -> np.ndarray:
    """The raw key with which `agent` plans at step t of `rollout(key, ...)`."""
    act_key, _ = jax.random.split(jax.random.fold_in(key, 1 + t))
    _, plan_key = jax.random.split(act_key)
    return np.asarray(jax.random.key_data(jax.random.fold_in(plan_key, agent)))


def _median_ms(call: Any) -> float:
    call()
    times = []
    for _ in range(TIMED_DECISIONS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def publish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """results/deployment.json: what was measured, by task."""
    path, task = Path("results/deployment.json"), config.held_out
    results = json.loads(path.read_text()) if path.exists() else {}
    results[task] = json.loads((export_dir(workdir, task) / "measured.json").read_text())
    write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    runtime.main(run, publish)
