"""The outer loop of every training run: dispatch, log, checkpoint, resume exactly, stop on nonsense."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import runtime, trackers
from networld_jax.checkpoints import Checkpoints, steps
from networld_jax.files import read_signed, write_signed
from networld_jax.types import Params, TrainState
from networld_jax.world_model import WorldModel

MIN_LATENT_STD = 0.3  # below this a latent space is collapsing (measured: useless plans below 0.06)


class TrainingError(ValueError):
    """Training that cannot go on: a value that is not finite."""


def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled without optimisation: for what runs once, where optimising takes longer."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def make_init(world_model: WorldModel) -> Callable[[jax.Array], Params]:
    """`world_model.init`: optimising it takes 20 s instead of 3."""
    return compile_once(world_model.init)


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
) -> TrainState:
    """Runs `config.num_updates` updates, `updates_per_dispatch` per dispatch.

    Resumes from the newest intact checkpoint in `directory`; because update s draws from fold_in(key(seed), s), the
    result has the same bits as an uninterrupted run's. Metrics go to `directory/metrics.jsonl`. At SIGTERM it stops
    after the running dispatch, with a checkpoint. A value that is not finite stops it with a TrainingError and a dump
    in `directory/failure/` (`load_failure`), from which the same command reproduces it.

    Args:
      epoch: jitted `training.make_epoch` with updates_per_dispatch updates.
      shown: what the progress bar calls a metric -> the metric's name.
      tracker: where metrics go too, a name in `trackers.TRACKERS`.
    """
    directory, size = Path(directory), config.updates_per_dispatch
    with (
        runtime.owned(directory),
        runtime.delayed_termination() as is_requested,
        contextlib.closing(Checkpoints(directory / "checkpoints", report_fn=runtime.warn)) as checkpoints,
        runtime.progress(title, config.num_updates) as advance,
        contextlib.ExitStack() as stack,
    ):
        first, state = checkpoints.restore_latest(state) or (0, state)
        log = runtime.MetricsLog(directory / "metrics.jsonl", first_step=first + 1)
        track = stack.enter_context(trackers.tracker(tracker, directory, first + 1))
        key = jax.random.key(seed)
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
            for warning in warnings:
                runtime.warn(warning)
            log.write(done, numbers)
            track(done, numbers)
            advance(size, **{label: numbers[name] for label, name in shown.items()})
            is_last, stops = done == config.num_updates, is_requested()
            if is_last or stops or (dispatch + 1) % config.dispatches_per_checkpoint == 0:
                checkpoints.save(done, state)
            if stops and not is_last:
                raise runtime.Terminated(f", {title} is kept at update {done}")
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
