"""Trains baselines on the held-out task's few-shot data: the same data that adaptation sees.

    python -m experiments.baselines --config=experiments/configs/small.py --workdir=runs/small
    python -m experiments.baselines ... --config.baselines.methods="('ma_iql','ma_iql_mf')"

Methods: the names of networld_jax.baselines.BASELINES, each with its section config.baselines.<name>; a trailing "_mf"
turns the mean-field input on. Writes <workdir>/<method>_<task>/ (metrics.jsonl, checkpoints/); run again, it resumes,
or returns the finished policy. multi_task_bc first pre-trains its trunk on the source tasks' data, for as long as
config.pretrain says, in pretrain/ below its folder; adapt.from_scratch leaves that out. `python -m
experiments.evaluate` knows the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import runtime, settings, trackers, train_loop
from experiments.memo import Memo
from experiments.pretrain import SECTIONS, few_shot_data, source_data, source_tasks
from networld_envs.types import Policy, TaskSpec
from networld_jax import planning, training
from networld_jax.baselines import (
    BASELINES,
    DEFAULTS,
    Baseline,
    BaselineConfig,
    Pretraining,
    make_pretraining,
)
from networld_jax.types import Params, TaskStats, Trajectories

MEAN_FIELD = "_mf"


def base_name(method: str) -> str:
    """The entry of BASELINES behind a method's name. Raises ValueError naming the choices."""
    name = method.removesuffix(MEAN_FIELD)
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {sorted(BASELINES)}, optionally with {MEAN_FIELD!r}, got {method!r}")
    return name


def is_baseline(method: str) -> bool:
    """Whether a name in a table means a baseline."""
    return method.removesuffix(MEAN_FIELD) in BASELINES


def baseline_config(config: ml_collections.ConfigDict, method: str, **changes: Any) -> BaselineConfig:
    """The method's dataclass out of its section; `changes` override it."""
    name = base_name(method)
    if method.endswith(MEAN_FIELD):
        changes = {"use_mean_field": True} | changes
    changes = {"num_updates": config.baselines.num_updates} | changes
    return settings.from_config(type(DEFAULTS[name]), config.baselines[name], **changes)


def make_baseline(
    config: ml_collections.ConfigDict, method: str, spec: TaskSpec, trunk: Params | None = None, **changes: Any
) -> Baseline:
    """A baseline by name; multi_task_bc starts from `trunk`, or from a fresh one."""
    pretrained = {} if trunk is None else {"trunk": trunk}
    return BASELINES[base_name(method)](spec, baseline_config(config, method, **changes), **pretrained)


def make_epoch(baseline: Baseline | Pretraining, num_updates: int) -> Callable[..., Any]:
    """(state, (data, stats), key) -> (state, mean metrics): `num_updates` updates in one dispatch."""

    def epoch(state, data_and_stats, key):
        data, stats = data_and_stats

        def body(state, _):
            sample_key, update_key = jax.random.split(jax.random.fold_in(key, state.step))
            batch = baseline.sample(sample_key, data, stats)
            return training.unless_finite(state, *baseline.update(update_key, state, batch, stats))

        state, metrics = jax.lax.scan(body, state, None, length=num_updates)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return jax.jit(epoch, donate_argnums=0)


def train_baseline(
    config: ml_collections.ConfigDict,
    directory: Path,
    method: str,
    spec: TaskSpec,
    data: Trajectories,
    stats: TaskStats,
    trunk: Params | None = None,
    memo: Memo | None = None,
    **changes: Any,
) -> tuple[Policy, planning.PolicyParams]:
    """Trains (or resumes) one baseline in its own directory; returns its policy and parameters.

    `changes` override fields of the method's configuration (label, use_mean_field, ...). Runs that share a `memo` share
    compiled updates; a baseline with a trunk of its own does not take part. Raises ValueError for an unknown method or
    a bad field.
    """
    c = config.baselines

    def make():
        baseline = make_baseline(config, method, spec, trunk, **changes)
        return baseline, make_epoch(baseline, c.updates_per_dispatch)

    if memo is None or trunk is not None:
        baseline, epoch = make()
    else:
        settings_of = baseline_config(config, method, **changes)
        baseline, epoch = memo(("trained baseline", base_name(method), spec, settings_of, c.updates_per_dispatch), make)
    data, stats = baseline.prepare(data, stats)
    state = train_loop.compile_once(baseline.init)(jax.random.key(config.seed), stats)
    on_device = (jax.tree.map(jnp.asarray, data), stats)
    shown = {"loss": "loss"}
    state = train_loop.train(method, directory, state, epoch, on_device, c, config.seed, shown, config.tracker)
    return baseline.policy, planning.PolicyParams(state.ema_params, stats)


def train_trunk(config: ml_collections.ConfigDict, workdir: Path, directory: Path, method: str) -> Params:
    """Trains (or resumes) the trunk of multi_task_bc in its own directory, by cloning what pre-training sees."""
    c = config.pretrain
    train_loop.check_updates(c, "pretrain")
    envs = settings.environments(config)
    specs = {task: envs[task].spec for task in source_tasks(config)}
    data = {task: source_data(config, workdir, task) for task in specs}
    stats = {task: settings.task_stats(config, data[task], spec) for task, spec in specs.items()}
    pretraining = make_pretraining(list(specs.values()), baseline_config(config, method, num_updates=c.num_updates))
    state = train_loop.compile_once(pretraining.init)(jax.random.key(config.seed), stats)
    epoch = make_epoch(pretraining, c.updates_per_dispatch)
    on_device = (jax.tree.map(jnp.asarray, data), stats)
    title = f"{method} on {' + '.join(specs)}"
    shown = {"loss": "loss"}
    state = train_loop.train(title, directory, state, epoch, on_device, c, config.seed, shown, config.tracker)
    return state.ema_params["trunk"]


def trained(config: ml_collections.ConfigDict, workdir: Path, method: str) -> tuple[Policy, planning.PolicyParams]:
    """One method on the held-out task's few-shot data, in <workdir>/<method>_<task>/."""
    name, task = base_name(method), config.held_out
    train_loop.check_updates(config.baselines, "baselines")
    trackers.check(config.tracker)
    spec = settings.environment(config, task).spec
    data = few_shot_data(config, workdir)
    directory = Path(workdir) / f"{method}_{task}"
    budget = ("baselines.num_updates", "baselines.updates_per_dispatch")
    is_pretrained = name == "multi_task_bc" and not config.adapt.from_scratch
    depends = (*SECTIONS, "adapt", *budget, f"baselines.{name}", *(["pretrain"] if is_pretrained else []))
    runtime.save_config(config, directory, method, depends)
    trunk = train_trunk(config, workdir, directory / "pretrain", method) if is_pretrained else None
    return train_baseline(config, directory, method, spec, data, settings.task_stats(config, data, spec), trunk)


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, tuple[Policy, planning.PolicyParams]]:
    """Trains every method of config.baselines.methods."""
    for method in config.baselines.methods:
        baseline_config(config, method)  # a mistake in the last section shows before the first method trains
    return {method: trained(config, workdir, method) for method in config.baselines.methods}


if __name__ == "__main__":
    runtime.main(run)
