"""Scores adapted models, rules and experts on the same fixed instances.

    python -m experiments.evaluate --config=experiments/configs/small.py --workdir=runs/small

Writes <workdir>/evaluation_<task>.json: {policy: {"reward", "sem", "score", "instances", "steps", "instance_rewards",
"metrics"}}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from experiments import baselines, distributed, runtime, settings
from experiments.adapt import adapt_dir
from networld_envs.types import Environment, Policy
from networld_jax import checkpoints, planning, sharding
from networld_jax.evaluation import (
    Protocol,
    Scores,
    anchored,
    charge_messages,
    first_instances,
    make_evaluator,
    score_instances,
    standard_error,
)

ANCHORS = {"cbf": ("random", "local_fp"), "rb": ("random", "mf_rule"), "ns": ("random", "expert")}
"""Per task the policies at score 0 and 1: random, and the best rule whose information an agent can have."""


class Evaluator:
    """Evaluates policies on one list of instances; compiled programs are kept, so new weights cost no compilation.

    The devices of a mesh take `num_parallel` instances each, and surplus ones where the instances do not fill the last
    group; the batch per device, and so every score, is that of one device.
    """

    def __init__(
        self, env: Environment, protocol: Protocol, split: str, num_parallel: int, mesh: Mesh | None = None
    ):
        self.env, self.protocol, self.split, self.mesh = env, protocol, split, mesh
        self.num_parallel = min(num_parallel, protocol.num_instances)
        self._compiled: dict[int, tuple[Policy, Callable]] = {}

    def __call__(self, policy: Policy, policy_params: Any = None, advance: Callable[..., None] | None = None) -> Scores:
        """Scores of a policy. Messages are charged where the environment has a price for them."""
        if id(policy) not in self._compiled:
            self._compiled[id(policy)] = (policy, make_evaluator(self.env, policy, self.protocol, self.mesh))
        run = self._compiled[id(policy)][1]
        params = charge_messages(self.env.default_params, policy)
        count, group = self.protocol.num_instances, self.num_parallel * sharding.num_devices(self.mesh)

        def report(part: Scores) -> None:
            if advance:
                advance(len(part.reward), reward=part.mean)

        def score(keys: jax.Array) -> Scores:
            wanted = len(keys)
            if self.mesh is not None and wanted < group:  # surplus copies of the last instance, scores thrown away
                keys = keys[np.minimum(np.arange(group), wanted - 1)]
            return first_instances(run(keys, policy_params, params), wanted)

        return score_instances(score, self.env.spec.name, self.split, count, group, report)


def summary(scores: Mapping[str, Scores], task: str, protocol: Protocol) -> dict[str, Any]:
    """One JSON row per policy, with the anchored score where both anchors were run."""
    low, high = (scores[name].mean if name in scores else None for name in ANCHORS.get(task, (None, None)))
    rows = {}
    for name, s in scores.items():
        rows[name] = {
            "reward": s.mean,
            "sem": s.sem,
            "instances": len(s.reward),
            "steps": protocol.num_steps,
            "burn_in_steps": protocol.burn_in_steps,
            "instance_rewards": s.reward.tolist(),
            "metrics": {k: float(v.mean()) for k, v in s.metrics.items()},
        }
        if low is not None and high is not None:
            normalised = anchored(s.reward, low, high)
            rows[name] |= {"score": float(np.mean(normalised)), "score_sem": standard_error(normalised)}
    return rows


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Evaluates `config.evaluate.policies` on the held-out task: "networld", "networld_scratch", a
    baseline's name or a rule's."""
    task = config.held_out
    env = settings.environment(config, task)
    names = dict.fromkeys((*config.evaluate.policies, *ANCHORS.get(task, ())))
    policies = {name: load_policy(config, workdir, task, env, name) for name in names}
    return score_all(config, workdir, env, policies)


def score_all(
    config: ml_collections.ConfigDict, workdir: Path, env: Environment, policies: Mapping[str, tuple[Policy, Any]]
) -> dict[str, Any]:
    """Rows of {name: (policy, its parameters)} on the same instances; also written to evaluation_<task>.json."""
    task = env.spec.name
    protocol = settings.protocol(config, task)
    evaluator = Evaluator(env, protocol, config.evaluate.split, config.evaluate.num_parallel, settings.mesh(config))
    scores = {}
    with runtime.progress(f"evaluate on {task}", len(policies) * protocol.num_instances) as advance:
        for name, (policy, policy_params) in policies.items():
            scores[name] = evaluator(policy, policy_params, advance)
    rows = summary(scores, task, protocol)
    distributed.write(Path(workdir) / f"evaluation_{task}.json", json.dumps(rows, indent=1).encode())
    return rows


def load_policy(
    config: ml_collections.ConfigDict, workdir: Path, task: str, env: Environment, name: str
) -> tuple[Policy, Any]:
    """(policy, its parameters) by name: an adapted model or a baseline of the workdir, or a rule of the task."""
    if baselines.is_baseline(name):
        return baselines.trained(config, workdir, name)
    if name not in ("networld", "networld_scratch"):
        return settings.rule_policy(task, env, name), {}
    directory = adapt_dir(workdir, task, from_scratch=name == "networld_scratch") / "model"
    world_model, params, stats, _ = checkpoints.load_model(directory)
    policy = settings.make_planner(config, world_model, task)
    return policy, planning.PolicyParams(params, stats[task])


if __name__ == "__main__":
    runtime.main(run, several_processes=True)
