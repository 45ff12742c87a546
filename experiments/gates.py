"""Does `ns` reward planning? Three differences of mean reward, simulated.

    python -m experiments.gates --config=experiments/configs/ns_gates.py --workdir=runs/ns_gates [--publish]

(a) look-ahead oracle - greedy oracle; (b) expert - best constant split in hindsight, per BS; (c) the best joint
allocation - the best independent one (`experiments.joint`). Writes <workdir>/ns_gates.json one entry at a time, so that
a second start goes on where the first one stopped; with --publish also results/ns_gates.json and the tables of
docs/environments_ns.md.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import joint, runtime, settings
from experiments.calibrate import HINDSIGHT, row
from experiments.evaluate import Evaluator
from experiments.hindsight import hindsight_constant
from experiments.tables import markdown_table, replace_blocks
from networld_envs.experts import ns
from networld_envs.instances import instance_keys
from networld_envs.ns_slots import RB_HZ
from networld_envs.types import Environment
from networld_jax.evaluation import Protocol, make_evaluator, paired_difference
from networld_jax.files import write_atomically

CHECKED_INSTANCES, CHECKED_RBS = (0,), 4
POLICIES = ("greedy_oracle", "lookahead_oracle", "expert")
WANTED = {"a": 0.02, "b": 0.03, "c": 0.01}
MEANING = {"a": "look-ahead - greedy oracle", "b": "expert - hindsight constant", "c": "joint - independent"}
PAIRS = {"a": ("lookahead_oracle", "greedy_oracle"), "b": ("expert", HINDSIGHT)}
"""Gate -> the policies whose mean rewards it compares; (c) compares allocations."""
PAGE = Path("docs/environments_ns.md")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Measures what is not yet in the file: {"rows": ..., "joint": ..., "hindsight": ..., "gates": ...}."""
    path = Path(workdir) / "ns_gates.json"
    runtime.save_config(config, workdir, "gates", ("environment", "evaluate"))
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for section, name, measure in _work(config):
        entries = results.setdefault(section, {})
        if name not in entries:
            entries[name] = measure()
            write_atomically(path, json.dumps(results, indent=1).encode())
    results["gates"] = gates(results)
    write_atomically(path, json.dumps(results, indent=1).encode())
    return results


def _work(config: ml_collections.ConfigDict) -> list[tuple[str, str, Callable[[], Any]]]:
    """(section, entry, how it is measured), in order."""
    env, protocol = settings.environment(config, "ns"), settings.protocol(config, "ns")
    split = config.evaluate.split
    evaluator = Evaluator(env, protocol, split, config.evaluate.num_parallel)
    policies = ns.policies(env.default_params)
    score_fns = {name: partial(evaluator, policies[name], {}) for name in POLICIES}
    score_fns[HINDSIGHT] = partial(hindsight_constant, env, protocol, split)

    def simulate(name: str) -> dict[str, Any]:
        with runtime.progress(name, protocol.num_instances) as advance:
            return row(score_fns[name](advance), protocol.num_steps, ())

    work = [("rows", name, partial(simulate, name)) for name in score_fns]
    work += [("joint", str(i), partial(joint.compare, env, split, i)) for i in range(protocol.num_instances)]
    return work + [("hindsight", str(i), partial(more_constants, env, protocol, split, i)) for i in CHECKED_INSTANCES]


def more_constants(env: Environment, protocol: Protocol, split: str, instance: int) -> dict[str, Any]:
    """Simulates six more constant splits per BS: the model's choice, `CHECKED_RBS` moved between two slices.

    "best": mean over BSs of the highest reward among the choice and the six. A check on the row `hindsight_constant`.
    """
    params, keys = env.default_params, instance_keys("ns", split, 1, instance)
    chosen = np.asarray(jax.jit(lambda k: ns.hindsight_shares(k, params, protocol.num_steps, protocol.burn_in_steps))(
        keys[0]
    ))  # fmt: skip
    run, rewards = make_evaluator(env, ns.given_split(params), protocol), []
    moved = CHECKED_RBS * RB_HZ / float(params.bandwidth_hz)
    for giver, taker in ((None, None), *itertools.permutations(range(3), 2)):
        shares = chosen.copy()
        if giver is not None:
            given = np.minimum(shares[:, giver], moved)
            shares[:, giver] -= given
            shares[:, taker] += given
        rewards.append(run(keys, jnp.asarray(shares), params).per_agent["reward"][0])
    return {"chosen": float(rewards[0].mean()), "best": float(np.max(rewards, axis=0).mean())}


def gates(results: dict[str, Any]) -> dict[str, Any]:
    """{gate: wanted, difference per instance, mean, standard error over instances}."""
    rewards = {name: np.asarray(entry["instance_rewards"]) for name, entry in results["rows"].items()}
    joint_gain = np.asarray([entry["gain"] for entry in results["joint"].values()])
    pairs = {gate: (rewards[high], rewards[low]) for gate, (high, low) in PAIRS.items()}
    pairs["c"] = (joint_gain, np.zeros_like(joint_gain))
    result = {}
    for gate, (high, low) in pairs.items():
        mean, error = paired_difference(high, low)
        result[gate] = {"wanted": WANTED[gate], "instances": (high - low).tolist(), "mean": mean, "sem": error}
    return result


def tables(results: dict[str, Any]) -> str:
    """The gates and what they rest on as Markdown."""

    def with_error(entry: dict[str, Any]) -> str:
        return f"{entry['mean']:.3f} +- {entry['sem']:.3f}"

    def ends(values: list[float], digits: int) -> str:
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    measured = [(f"({gate}) {what}", results["gates"][gate]) for gate, what in MEANING.items()]
    gate_rows = [(name, g["wanted"], with_error(g), ends(g["instances"], 3)) for name, g in measured]
    fields = ("sem", "expected_gain", "in_half_to_one")
    sem, expected, in_half_to_one = ([entry[f] for entry in results["joint"].values()] for f in fields)
    rows = sorted(((name, with_error(entry)) for name, entry in results["rows"].items()), key=lambda row: row[1])
    return "\n".join((
        f"{len(sem)} validation instances, (a) and (b) over {results['rows']['expert']['steps']} windows, by\n"
        f"`{results['provenance']['command']}`:\n",
        markdown_table(("gate", "wanted", "mean", "by instance"), gate_rows),
        f"Standard error of (c) within an instance: {ends(sem, 4)}; the model expects {ends(expected, 4)}.\n",
        f"Share of the expert's rewards in [0.5, 1): {ends(in_half_to_one, 2)} by instance.\n",
        markdown_table(("policy", "mean reward"), rows),
        *(
            f"Best constant split of instance {i}: {entry['chosen']:.3f} with the model's choice, {entry['best']:.3f} "
            f"with the best per BS of it and six splits {CHECKED_RBS} RBs away, "
            f"{results['rows'][HINDSIGHT]['instance_rewards'][int(i)]:.3f} with the better of it and the fitted split, "
            "which is what (b) uses.\n"
            for i, entry in results["hindsight"].items()
        ),
    ))  # fmt: skip


def with_tables(page: str, new: str) -> str:
    """The page with `new` between its two marks. Raises ValueError when it lacks them."""
    return replace_blocks(page, {"gates": new}, str(PAGE))


def publish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """results/ns_gates.json and the tables of docs/environments_ns.md out of the stored results."""
    del config
    results = json.loads((Path(workdir) / "ns_gates.json").read_text())
    results["provenance"] = runtime.provenance()
    page = with_tables(PAGE.read_text(), tables(results))
    write_atomically(Path("results/ns_gates.json"), json.dumps(results, indent=1).encode())
    write_atomically(PAGE, page.encode())


if __name__ == "__main__":
    runtime.main(run, publish)
