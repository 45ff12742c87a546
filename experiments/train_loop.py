"""The outer loop of every training run: dispatch, log, checkpoint, resume exactly, stop on nonsense."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from experiments import distributed, runtime, trackers
from networld_jax import checkpoints, datasets, sharding
from networld_jax.checkpoints import Checkpoints, steps
from networld_jax.files import read_signed, write_atomically, write_signed
from networld_jax.types import Params, TaskStats, TrainState, Trajectories
from networld_jax.world_model import WorldModel

MIN_LATENT_STD = 0.3  # below this a latent space is collapsing (measured: useless plans below 0.06)


class TrainingError(ValueError):
    """Training that cannot go on: a value that is not finite."""


def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled without optimisation: for what runs once, where optimising takes longer."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def write_seconds(directory: Path, seconds: float) -> None:
    """What the training took, beside the model and not in it: equal runs leave equal models."""
    if distributed.is_writer():
        write_atomically(directory / "seconds.json", json.dumps(round(seconds, 1)).encode())


def read_seconds(directory: Path) -> float:
    """What the training in a folder took when it was last started, s."""
    return json.loads((directory / "seconds.json").read_text())


def make_init(world_model: WorldModel) -> Callable[[jax.Array], Params]:
    """`world_model.init`: optimising it takes 20 s instead of 3."""
    return compile_once(world_model.init)


def compile_epoch(mesh: Mesh | None, epoch: Callable[..., Any], state: TrainState) -> Callable[..., Any]:
    """The jitted epoch for states shaped like `state`, which it keeps where `place_state` puts them."""
    if mesh is None:
        return jax.jit(epoch, donate_argnums=0)
    out = (sharding.split_channels(mesh, state), sharding.replicated(mesh))
    return jax.jit(epoch, donate_argnums=0, out_shardings=out)


def place_state(mesh: Mesh | None, state: TrainState) -> TrainState:
    """Process 0's state on the devices of the mesh."""
    if mesh is None:
        return state
    distributed.barrier("initial state")
    return sharding.place(sharding.same_everywhere(state), sharding.split_channels(mesh, state))


def load_share(
    mesh: Mesh, directory: Path, num_trajectories: int | None, stats_fn: Callable[[Trajectories], TaskStats]
) -> tuple[Trajectories, TaskStats, int]:
    """(a dataset on the devices, the constants of the whole dataset, its number of trajectories).

    Of several processes each keeps its own trajectories; process 0 reads all of them once, for the constants.
    """
    total = num_trajectories or len(datasets.read_manifest(directory)["shards"])
    rows = sharding.local_trajectories(mesh, total)
    writes = distributed.is_writer()
    data, _ = datasets.load(directory, total, None if writes else rows)
    stats = stats_fn(data)
    distributed.barrier(f"constants of {directory}")
    stats = sharding.same_everywhere(stats)
    local = jax.tree.map(lambda x: x[rows], data) if writes else data
    return sharding.place_trajectories(mesh, local), sharding.copy_to_all(mesh, stats), total


def share(mesh: Mesh | None, data: Trajectories) -> Trajectories:
    """A small dataset that every process has read, on the devices."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, data)
    rows = sharding.local_trajectories(mesh, data.reward.shape[0])
    return sharding.place_trajectories(mesh, jax.tree.map(lambda x: x[rows], data))


def save_model(directory: Path, world_model: WorldModel, params: Params, stats: Any, **facts: Any) -> None:
    """`checkpoints.save_model` by the writing process, with the weights of all devices; returns when it is there."""
    distributed.barrier(f"training for {directory}")
    params, stats = sharding.to_host((params, stats))
    if distributed.is_writer():
        checkpoints.save_model(directory, world_model, params, stats, **facts)
    distributed.barrier(f"model in {directory}")


def check_updates(config: ml_collections.ConfigDict, name: str) -> None:
    """Raises ValueError unless num_updates is a positive multiple of updates_per_dispatch."""
    if config.num_updates < 1 or config.num_updates % config.updates_per_dispatch:
        raise ValueError(
            f"{name}.num_updates must be a positive multiple of {name}.updates_per_dispatch="
            f"{config.updates_per_dispatch}, got {config.num_updates}"
        )


def check_metrics(step: int, seed: int, metrics: Mapping[str, float]) -> list[str]:
    """Warnings about collapsing latents. Raises TrainingError, naming metric, update and seed, for a value that is not
    finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} before update {step} (seed {seed}); lower the learning rate or inspect the data; "
                "the last checkpoint is kept"
            )
    return [
        f"{name} = {value:.3f} at update {step}: the latent space is collapsing (healthy: above {MIN_LATENT_STD})"
        for name, value in metrics.items()
        if name.endswith("latent_std") and value < MIN_LATENT_STD
    ]


def train(
    title: str,
    directory: Path,
    state: TrainState,
    epoch: Callable[[TrainState, Any, jax.Array], tuple[TrainState, Mapping[str, jax.Array]]],
    data: Any,
    config: ml_collections.ConfigDict,
    seed: int,
    shown: Mapping[str, str],
    tracker: str = "none",
    mesh: Mesh | None = None,
) -> TrainState:
    """Runs `config.num_updates` updates, `updates_per_dispatch` per dispatch.

    Resumes from the newest intact checkpoint in `directory`; because update s draws from fold_in(key(seed), s), the
    result has the same bits as an uninterrupted run's. Metrics go to `directory/metrics.jsonl`. At SIGTERM it stops
    after the running dispatch, with a checkpoint. A value that is not finite stops it with a TrainingError and a dump
    in `directory/failure/` (`load_failure`), from which the same command reproduces it.

    Args:
      epoch: jitted `training.make_epoch` with updates_per_dispatch updates, see `compile_epoch`.
      shown: what the progress bar calls a metric -> the metric's name.
      tracker: where metrics go too, a name in `trackers.TRACKERS`.
      mesh: where `state` and `data` lie.
    """
    directory, size = Path(directory), config.updates_per_dispatch
    with (
        runtime.owned(directory),
        runtime.delayed_termination() as is_requested,
        contextlib.closing(Checkpoints(directory / "checkpoints", report_fn=runtime.warn)) as store,
        runtime.progress(title, config.num_updates) as advance,
        contextlib.ExitStack() as stack,
    ):
        first, state = store.restore_latest(state) or (0, state)
        log = runtime.MetricsLog(directory / "metrics.jsonl", first_step=first + 1)
        track = stack.enter_context(
            trackers.tracker(tracker if distributed.is_writer() else "none", directory, first + 1)
        )
        key = sharding.copy_to_all(mesh, jax.random.key(seed))
        if jax.process_count() > 1:  # compilation takes its time on every host; then all start together
            epoch = epoch.lower(state, data, key).compile()
            distributed.barrier(f"{title} compiled")
        _replay_failure(directory, state, epoch, data, key, seed)
        advance(first)
        for dispatch in range(first // size, config.num_updates // size):
            state, metrics = epoch(state, data, key)
            done = (dispatch + 1) * size
            numbers = {name: float(value) for name, value in metrics.items()}
            try:
                warnings = check_metrics(done, seed, numbers)
            except TrainingError as error:
                raise TrainingError(f"{error}; {dump_failure(directory, state, key, numbers)}") from error
            for warning in warnings if distributed.is_writer() else ():
                runtime.warn(warning)
            log.write(done, numbers)
            track(done, numbers)
            advance(size, **{label: numbers[name] for label, name in shown.items()})
            is_last, stops = done == config.num_updates, distributed.agreed(is_requested())
            if is_last or stops or (dispatch + 1) % config.dispatches_per_checkpoint == 0:
                store.save(done, state)
            if stops and not is_last:
                raise runtime.Terminated(f", {title} is kept at update {done}")
    return state
    return state


def steps_done(directory: Path) -> int:
    """Updates that the newest checkpoint of a run has seen; its metrics reach at least that far."""
    return max(steps(Path(directory) / "checkpoints"), default=0)


# ---------------------------------------------------------------------------------------------------- failures

FAILURE = "failure"


def dump_failure(directory: Path, state: TrainState, key: jax.Array, metrics: Mapping[str, float]) -> str:
    """Stores the state before the update that failed, its step and its batch key; returns a line that says where.

    `state` has stood still since then, see `training.unless_finite`.
    """
    step = int(state.step)
    with contextlib.closing(Checkpoints(directory / FAILURE, max_to_keep=1, report_fn=runtime.warn)) as dump:
        dump.save(step, state)
    batch_key = jax.random.key_data(jax.random.fold_in(key, step)).tolist()
    shown = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
    if distributed.is_writer():
        write_signed(directory / f"{FAILURE}.json", {"update": step, "batch_key": batch_key, "metrics": shown})
    return (
        f"update {step} with batch key {batch_key} is kept in {directory / FAILURE}, the same command repeats it first"
    )


def load_failure(directory: Path, like: TrainState) -> tuple[TrainState, jax.Array] | None:
    """(state before the failed update, its batch key) that a stopped run left in `directory`; None when there is none.

    The update is sample_key, loss_key = split(batch_key), a batch of sample_key, then the loss with loss_key.
    """
    path = Path(directory) / f"{FAILURE}.json"
    if not path.exists():
        return None
    facts = read_signed(path)
    with contextlib.closing(Checkpoints(Path(directory) / FAILURE, report_fn=runtime.warn)) as dump:
        found = dump.restore_latest(like)
    key = jax.random.wrap_key_data(jnp.asarray(facts["batch_key"], jnp.uint32))
    return None if found is None else (found[1], key)


def _replay_failure(directory: Path, like: TrainState, epoch: Callable, data: Any, key: jax.Array, seed: int) -> None:
    """Repeats the update at which an earlier start of this run stopped. Raises TrainingError when it fails again; else
    says that it did not, sets the dump aside and lets the run go on."""
    found = load_failure(directory, like)
    if found is None:
        return
    step = int(found[0].step)
    _, metrics = epoch(found[0], data, key)
    try:
        check_metrics(step, seed, {name: float(value) for name, value in metrics.items()})
    except TrainingError as error:
        raise TrainingError(f"reproduced from {directory / FAILURE}: update {step} fails again: {error}") from error
    runtime.warn(f"update {step} failed before and does not now; the dump is kept in {FAILURE}_not_reproduced")
    (directory / f"{FAILURE}.json").rename(directory / f"{FAILURE}_not_reproduced.json")
