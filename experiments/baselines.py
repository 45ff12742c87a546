"""Trains model-free baselines on the held-out task's few-shot data: the same data that adaptation sees.

    python -m experiments.baselines --config=experiments/configs/small.py --workdir=runs/small

Writes <workdir>/<method>_<task>/ (metrics.jsonl, checkpoints/, final/). Methods: ma_bc (own observation) and ma_bc_mf
(own and mean field).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import runtime, settings, train_loop
from experiments.adapt import few_shot_data
from experiments.pretrain import SECTIONS
from networld_envs.types import Policy, TaskSpec
from networld_jax import datasets, planning
from networld_jax.baselines import Baseline, BCConfig, make_bc
from networld_jax.types import TaskStats, Trajectories, WorldModelConfig

METHODS = ("ma_bc", "ma_bc_mf")


def make_baseline(config: ml_collections.ConfigDict, method: str, spec: TaskSpec) -> Baseline:
    """A baseline by name. Raises ValueError for an unknown one."""
    if method not in METHODS:
        raise ValueError(f"baseline must be one of {METHODS}, got {method!r}")
    return make_bc(spec, settings.from_config(BCConfig, config.bc, use_mean_field=method.endswith("_mf")))


def make_epoch(baseline: Baseline, spec: TaskSpec, batch_size: int, num_updates: int) -> Callable[..., Any]:
    """(state, (data, stats), key) -> (state, mean metrics): `num_updates` updates in one dispatch."""

    def epoch(state, data_and_stats, key):
        data, stats = data_and_stats

        def body(state, _):
            sample_key, update_key = jax.random.split(jax.random.fold_in(key, state.step))
            batch = datasets.sample_transitions(sample_key, data, stats, batch_size, spec.message_delay_steps)
            return baseline.update(update_key, state, batch, stats)

        state, metrics = jax.lax.scan(body, state, None, length=num_updates)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return jax.jit(epoch, donate_argnums=0)


def train_baseline(
    config: ml_collections.ConfigDict, workdir: Path, method: str, spec: TaskSpec, data: Trajectories, stats: TaskStats
) -> tuple[Policy, planning.PolicyParams]:
    """Trains (or resumes) one baseline; returns its policy and parameters."""
    c = config.bc
    baseline = make_baseline(config, method, spec)
    directory = Path(workdir) / f"{method}_{config.held_out}"
    runtime.save_config(config, directory, method, (*SECTIONS, "adapt", "bc"))
    state = baseline.init(jax.random.key(config.seed), stats)
    epoch = make_epoch(baseline, spec, c.batch_size, c.updates_per_dispatch)
    on_device = (jax.tree.map(jnp.asarray, data), stats)
    state = train_loop.train(method, directory, state, epoch, on_device, c, config.seed, {"loss": "loss"})
    return baseline.policy, planning.PolicyParams(state.ema_params, stats)


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, tuple[Policy, planning.PolicyParams]]:
    """Trains every method of METHODS."""
    train_loop.check_updates(config.bc, "bc")
    spec = settings.environment(config, config.held_out).spec
    data = few_shot_data(config, workdir)
    stats = datasets.task_stats(data, spec, settings.from_config(WorldModelConfig, config.model), config.loss.discount)
    return {method: train_baseline(config, workdir, method, spec, data, stats) for method in METHODS}


if __name__ == "__main__":
    runtime.main(run)
