"""Rolls out data-collecting policies into sharded datasets.

    python -m experiments.collect --config=experiments/configs/small.py --workdir=runs/small

Writes <workdir>/data/<task>/<tier>/. Killed at any moment and started again it finishes the same bytes: whole shards
are kept (their checksums stand in `shards.jsonl`), the manifest comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from experiments import distributed, runtime, settings
from networld_envs.instances import instance_keys
from networld_envs.types import Environment, Policy
from networld_jax import datasets, sharding
from networld_jax.evaluation import Protocol, evaluate
from networld_jax.files import DamagedFileError, SealedLog, read_sealed, read_signed, sha256, write_signed
from networld_jax.rollout import advance, start
from networld_jax.types import Trajectories


def dataset_dir(workdir: Path, task: str, tier: str) -> Path:
    """Where a dataset lives."""
    return Path(workdir) / "data" / task / tier


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Collects every configured task."""
    envs = {task: settings.environment(config, task) for task in config.collect.tasks or config.tasks}
    policies = {task: settings.tier_policy(task, env, config.collect.tier) for task, env in envs.items()}
    for task, env in envs.items():
        collect_task(config, workdir, task, env, policies[task])


def collect_task(
    config: ml_collections.ConfigDict, workdir: Path, task: str, env: Environment, policy: Policy
) -> dict[str, Any]:
    """One dataset; returns its manifest. Finished datasets are checked against the request and left alone."""
    c = config.collect
    directory = dataset_dir(workdir, task, c.tier)
    request = {
        "task": task,
        "tier": c.tier,
        "num_trajectories": c.num_trajectories[task],
        "num_steps": c.num_steps[task],
        "num_parallel": c.num_parallel,
        "environment": describe(env.default_params),
    }
    manifest_path = directory / datasets.MANIFEST
    if manifest_path.exists():
        manifest = datasets.read_manifest(directory)
        check_request(manifest["request"], request, directory)
        return manifest
    with runtime.owned(directory):
        write_shards(config, task, env, policy, directory, request)
        return datasets.read_manifest(directory)



def write_shards(
    config: ml_collections.ConfigDict,
    task: str,
    env: Environment,
    policy: Policy,
    directory: Path,
    request: dict[str, Any],
) -> None:
    """Simulates the shards that are missing, then the manifest."""
    c, total = config.collect, request["num_trajectories"]
    _check_partial(directory, request)
    if distributed.is_writer():
        write_signed(directory / "request.json", _plain(request))
    use_float64 = jax.enable_x64(True) if task in c.float64 else contextlib.nullcontext()
    mesh = settings.mesh(config)
    group_size = c.num_parallel * sharding.num_devices(mesh)
    mine = sharding.local_rows(mesh, group_size)
    log = open_shard_log(directory)
    done = finished_shards(directory)
    distributed.barrier(f"finished shards of {task} read")  # so that all processes skip the same groups
    with runtime.progress(f"collect {task}/{c.tier}", total * request["num_steps"]) as advance_bar, use_float64:
        simulate = make_simulator(env, policy, min(c.steps_per_dispatch, request["num_steps"]), mesh)
        for first in range(0, total, group_size):
            group = range(first, min(first + group_size, total))
            if all(i in done for i in group):
                advance_bar(len(group) * request["num_steps"])
                continue
            keys = instance_keys(task, "data", group_size, first)
            batch = simulate(keys, request["num_steps"], lambda n, r: advance_bar(n * len(group), reward=r))  # noqa: B023
            for row, i in enumerate(range(first + mine.start, min(first + mine.stop, total))):
                digest = datasets.write_shard(directory, i, jax.tree.map(lambda x: x[row], batch))  # noqa: B023
                done[i] = digest
                log.append({"index": i, "sha256": digest})
    distributed.barrier(f"shards of {task} written")
    if distributed.is_writer():
        if jax.process_count() > 1:
            done = finished_shards(directory)
        write_manifest(config, directory, env, request, done)
    distributed.barrier(f"manifest of {task} written")


def write_manifest(
    config: ml_collections.ConfigDict,
    directory: Path,
    env: Environment,
    request: dict[str, Any],
    done: dict[int, str],
) -> None:
    """Statistics, reference scores and checksums of a dataset whose shards are all there."""
    total = request["num_trajectories"]
    manifest = {
        "request": request,
        "action_kind": env.spec.action_kind,
        "action_low": list(env.spec.action_low),
        "action_high": list(env.spec.action_high),
        "obs_names": list(env.spec.obs_names),
        "shards": [{"file": datasets.shard_path(directory, i).name, "sha256": done[i]} for i in range(total)],
        "statistics": statistics(directory, total),
        "reference_scores": reference_scores(config, request["task"], env),
        "key_range": "data",
        "versions": runtime.versions(),
    }
    datasets.write_manifest(directory, manifest)


def describe(params: Any) -> dict[str, Any]:
    """Environment parameters as JSON; long or complex arrays by shape and checksum."""

    def plain(value: Any) -> Any:
        if not hasattr(value, "shape"):
            return _plain(value)
        array = np.asarray(value)
        if array.size <= 64 and not np.iscomplexobj(array):
            return array.tolist()
        return {"shape": list(array.shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}

    return {f.name: plain(getattr(params, f.name)) for f in dataclasses.fields(params)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def check_request(stored: dict[str, Any], wanted: dict[str, Any], directory: Path) -> None:
    """Raises UserError naming the first field in which a stored dataset differs from what is asked for."""
    for field, value in wanted.items():
        if stored.get(field) != _plain(value):
            if field == "environment":
                field = next(k for k in value if stored["environment"].get(k) != _plain(value[k]))
                stored, value = stored["environment"], value[field]
            raise runtime.UserError(
                f"{directory} was collected with {field}={stored.get(field)}, got {value}; "
                "use another workdir or delete it"
            )


def _check_partial(directory: Path, request: dict[str, Any]) -> None:
    """Raises UserError when an interrupted collection asked for something else, or when that cannot be read."""
    path = directory / "request.json"
    if not path.exists():
        return
    try:
        stored = read_signed(path)
    except DamagedFileError as error:
        raise runtime.UserError(f"{error}; delete it if the shards there are of the same request") from error
    check_request(stored, request, directory)


def open_shard_log(directory: Path) -> SealedLog:
    """`shards.jsonl`, a row {"index", "sha256"} per finished shard; of several processes each keeps its own. Rows after
    a damaged one are collected again."""
    path = directory / ("shards.jsonl" if distributed.is_writer() else f"shards_{jax.process_index()}.jsonl")
    rows, problem = read_sealed(path)
    if problem:
        runtime.warn(f"{problem}; shards after the first {len(rows)} are collected again")
    return SealedLog(path)


def finished_shards(directory: Path) -> dict[int, str]:
    """Index -> sha256 of shards that are whole and unaltered, whichever process wrote them; the others are named and
    collected again."""
    done = {}
    rows = [row for log in sorted(directory.glob("shards*.jsonl")) for row in read_sealed(log)[0]]
    warn = runtime.warn if distributed.is_writer() else lambda message: None
    for row in rows:
        path = datasets.shard_path(directory, row["index"])
        if path.exists() and sha256(path) == row["sha256"]:
            done[row["index"]] = row["sha256"]
        else:
            warn(f"{path} is {'altered' if path.exists() else 'missing'}; it is collected again")
    listed = {datasets.shard_path(directory, row["index"]).name for row in rows}
    for path in sorted(directory.glob("shard_*.npz")):
        if path.name not in listed:
            warn(f"{path} is not in shards.jsonl; it is collected again")
    return done


def make_simulator(env: Environment, policy: Policy, steps_per_dispatch: int, mesh: Mesh | None = None):
    """simulate(keys [E], num_steps, report) -> Trajectories with leading E, in compiled chunks, gathered on the host.

    The devices of a mesh share the E trajectories; a process returns its own (`sharding.local_rows`)."""
    params = env.default_params

    def begin(keys):
        loop = jax.vmap(lambda key: start(key, env, params, policy))(keys)
        return loop, jax.vmap(lambda s: (env.adjacency(s, params), env.agent_mask(s, params)))(loop[0])

    def chunk(keys, loop, first):
        def one(key, loop):
            body = lambda loop, t: advance(key, t, loop, env, params, policy, {})  # noqa: E731
            return jax.lax.scan(body, loop, first + jnp.arange(steps_per_dispatch))

        return jax.vmap(one)(keys, loop)

    begin = jax.jit(sharding.over_rows(begin, mesh, (True,)))
    chunk = jax.jit(sharding.over_rows(chunk, mesh, (True, True, False)))

    def simulate(keys, num_steps, report):
        keys = sharding.split_rows(mesh, keys)
        loop, (adjacency, mask) = begin(keys)
        first_obs, adjacency, mask = sharding.local_to_host((loop[1], adjacency, mask))
        obs, rows = [np.asarray(first_obs, np.float32)[:, None]], []
        for first in range(0, num_steps, steps_per_dispatch):
            loop, (steps, shown) = chunk(keys, loop, first)
            size = min(steps_per_dispatch, num_steps - first)
            rows.append(jax.tree.map(lambda x: x[:, :size], sharding.local_to_host((steps, shown))))  # noqa: B023
            obs.append(np.asarray(rows[-1][0].obs, np.float32))
            report(size, float(np.mean(rows[-1][0].reward)))
        steps, shown = jax.tree.map(lambda *x: np.concatenate(x, 1), *rows)
        as_float = lambda x: np.asarray(x, np.float32)  # noqa: E731
        return Trajectories(
            obs=np.concatenate(obs, 1),
            action=as_float(steps.action),
            reward=as_float(steps.reward),
            terminated=steps.terminated,
            truncated=steps.truncated,
            adjacency=as_float(adjacency),
            agent_mask=as_float(mask),
            is_demonstration=shown,
        )

    return simulate


def statistics(directory: Path, num_shards: int) -> dict[str, Any]:
    """Per-dimension minimum, maximum, mean and std of observations, actions and rewards over present agents, shard by
    shard."""
    sums: dict[str, list[Any]] = {}
    for i in range(num_shards):
        trajectory = datasets.read_shard(directory, i)
        present = trajectory.agent_mask > 0
        for name in ("obs", "action", "reward"):
            rows = getattr(trajectory, name)[:, present].astype(np.float64)
            rows = rows.reshape(-1, rows.shape[-1]) if name != "reward" else rows.reshape(-1, 1)
            part = [len(rows), rows.sum(0), (rows**2).sum(0), rows.min(0), rows.max(0)]
            old = sums.get(name)
            sums[name] = part if old is None else [
                old[0] + part[0], old[1] + part[1], old[2] + part[2],
                np.minimum(old[3], part[3]), np.maximum(old[4], part[4]),
            ]  # fmt: skip
    result = {}
    for name, (count, total, squares, low, high) in sums.items():
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        result[name] = {
            "count": count, "mean": mean.tolist(), "std": std.tolist(), "min": low.tolist(), "max": high.tolist()
        }  # fmt: skip
    return result


def reference_scores(config: ml_collections.ConfigDict, task: str, env: Environment) -> dict[str, Any]:
    """Mean reward of the random policy and of the expert on `train_eval` instances: the anchors of quick scores."""
    c = config.collect
    scores: dict[str, Any] = {"split": "train_eval", "instances": c.reference_instances, "steps": c.reference_steps}
    protocol = Protocol(c.reference_instances, c.reference_steps)
    for name in ("random", "expert"):
        policy = (
            settings.tier_policy(task, env, "expert") if name == "expert" else settings.rule_policy(task, env, name)
        )
        result = evaluate(env, policy, {}, protocol, split="train_eval")
        scores[name] = {"mean": result.mean, "sem": result.sem}
    return scores


if __name__ == "__main__":
    runtime.main(run, several_processes=True)
