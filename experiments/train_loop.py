"""The outer loop of every training run: dispatch, log, checkpoint, resume exactly, stop on nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from experiments import runtime
from networld_jax.checkpoints import Checkpoints
from networld_jax.types import Params, TrainState
from networld_jax.world_model import WorldModel

MIN_LATENT_STD = 0.3  # below this a latent space is collapsing (measured: useless plans below 0.06)


class TrainingError(ValueError):
    """Training that cannot go on: a value that is not finite."""


def initial_params(world_model: WorldModel, key: jax.Array) -> Params:
    """`world_model.init`, compiled without optimisation: it runs once, and optimising it takes 20 s instead of 3."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(world_model.init, compiler_options=options)(key)


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
) -> TrainState:
    """Runs `config.num_updates` updates, `updates_per_dispatch` per dispatch.

    Resumes from the newest checkpoint in `directory`; because update s draws from fold_in(key(seed), s), the result has
    the same bits as an uninterrupted run's. Metrics go to `directory/metrics.jsonl`.

    Args:
      epoch: jitted `training.make_epoch` with updates_per_dispatch updates.
      shown: what the progress bar calls a metric -> the metric's name.
    """
    checkpoints = Checkpoints(Path(directory) / "checkpoints")
    try:
        restored = checkpoints.restore_latest(state)
        first = 0
        if restored is not None:
            first, state = restored
        log = runtime.MetricsLog(Path(directory) / "metrics.jsonl", first_step=first + 1)
        key = jax.random.key(seed)
        with runtime.progress(title, config.num_updates) as advance:
            advance(first)
            for dispatch in range(
                first // config.updates_per_dispatch, config.num_updates // config.updates_per_dispatch
            ):
                state, metrics = epoch(state, data, key)
                done = (dispatch + 1) * config.updates_per_dispatch
                numbers = {name: float(value) for name, value in metrics.items()}
                for warning in check_metrics(done, seed, numbers):
                    runtime.console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
                log.write(done, numbers)
                advance(config.updates_per_dispatch, **{label: numbers[name] for label, name in shown.items()})
                last = done == config.num_updates
                if last or (dispatch + 1) % config.dispatches_per_checkpoint == 0:
                    checkpoints.save(done, state)
    finally:
        checkpoints.close()
    return state
