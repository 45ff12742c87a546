"""Pre-trains the world model on the source tasks (all but the held-out one).

    python -m experiments.pretrain --config=experiments/configs/small.py --workdir=runs/small

Reads <workdir>/data/<task>/<tier>/, writes <workdir>/pretrain_without_<held_out>/ (metrics.jsonl, checkpoints/,
model/).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh

from experiments import runtime, settings, trackers, train_loop
from experiments.collect import dataset_dir
from experiments.memo import Memo
from networld_envs.types import TaskSpec
from networld_jax import datasets, negative_controls, sharding, training
from networld_jax.schedules import cosine_schedule
from networld_jax.types import TaskStats, Trajectories
from networld_jax.world_model import WorldModel

SECTIONS = ("seed", "tasks", "held_out", "environment", "collect", "model", "loss")
"""What a trained model depends on beside its own stage's settings."""


def pretrain_dir(workdir: Path, held_out: str) -> Path:
    """Where the pre-trained model of a held-out task lives."""
    return Path(workdir) / f"pretrain_without_{held_out}"


def segments_per_update(specs: Mapping[str, TaskSpec], num_sequences: int) -> dict[str, int]:
    """Joint windows per task so that every task contributes about `num_sequences` agent sequences."""
    return {task: max(1, round(num_sequences / spec.max_agents)) for task, spec in specs.items()}


def source_tasks(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The tasks that pre-training sees, in the order of the task embedding. Raises ValueError for an unknown one."""
    wanted = tuple(config.pretrain.sources) or tuple(task for task in config.tasks if task != config.held_out)
    if unknown := sorted(set(wanted) - set(config.tasks)):
        raise ValueError(f"pretrain.sources must be among tasks {tuple(config.tasks)}, got {unknown}")
    return tuple(task for task in config.tasks if task in wanted)


CORRUPTIONS = {
    "real": lambda key, trajectories: trajectories,
    "shuffled": negative_controls.shuffle_time,
    "autoregressive": negative_controls.autoregressive,
}
"""What pre-training data may go through: controls that leave marginals, or smoothness, and nothing else."""


def source_data(config: ml_collections.ConfigDict, workdir: Path, task: str) -> Trajectories:
    """What pre-training sees of one task."""
    c = config.pretrain
    if c.data not in CORRUPTIONS:
        raise ValueError(f"pretrain.data must be one of {sorted(CORRUPTIONS)}, got {c.data!r}")
    if task == config.held_out and c.few_shot_target:
        data = few_shot_data(config, workdir)
    else:
        wanted = c.num_trajectories.get(task, 0) or None
        data, _ = datasets.load(dataset_dir(workdir, task, config.collect.tier), wanted)
    key = jax.random.fold_in(jax.random.key(config.seed), list(config.tasks).index(task))
    return CORRUPTIONS[c.data](key, data)


def few_shot_data(config: ml_collections.ConfigDict, workdir: Path) -> Trajectories:
    """The few trajectories (or steps) of the held-out task that adaptation may see."""
    c, directory = config.adapt, dataset_dir(workdir, config.held_out, config.collect.tier)
    data, _ = datasets.load(directory, c.num_trajectories or None)
    if c.num_topologies:
        return datasets.take_topologies(data, c.num_topologies, c.num_steps)
    return datasets.take_steps(data, c.num_steps) if c.num_steps else data


def place_sources(
    config: ml_collections.ConfigDict, workdir: Path, world_model: WorldModel, mesh: Mesh | None
) -> tuple[dict[str, Trajectories], dict[str, TaskStats], dict[str, int] | None]:
    """({task: data on the devices}, {task: constants}, {task: trajectories} with a mesh).

    Of several processes each reads its own trajectories, unless the data is small or passes through a corruption.
    """
    c, data, stats, total = config.pretrain, {}, {}, {}
    for task in source_tasks(config):
        stats_fn = partial(settings.task_stats, config, spec=world_model.specs[task])
        if jax.process_count() > 1 and c.data == "real" and not (task == config.held_out and c.few_shot_target):
            folder = dataset_dir(workdir, task, config.collect.tier)
            wanted = c.num_trajectories.get(task, 0) or None
            data[task], stats[task], total[task] = train_loop.load_share(mesh, folder, wanted, stats_fn)
            continue
        whole = source_data(config, workdir, task)
        total[task] = whole.reward.shape[0]
        data[task], stats[task] = train_loop.share(mesh, whole), sharding.copy_to_all(mesh, stats_fn(whole))
    return data, stats, None if mesh is None else total


def run(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """Trains and returns the folder of the finished model."""
    train_loop.check_updates(config.pretrain, "pretrain")
    trackers.check(config.tracker)
    envs = settings.environments(config)
    settings.world_model(config, envs)  # a bad size shows before any work
    directory = pretrain_dir(workdir, config.held_out)
    runtime.save_config(config, directory, "pretrain", (*SECTIONS, "pretrain"))
    return train_model(config, workdir, directory, Memo())


def train_model(config: ml_collections.ConfigDict, workdir: Path, directory: Path, memo: Memo) -> Path:
    """Pre-trains with the data of `workdir` into `directory`; returns the folder of the finished model."""
    c, started = config.pretrain, time.monotonic()
    sources = source_tasks(config)
    world_model, init = settings.shared_world_model(config, memo)
    mesh = settings.mesh(config)
    data, stats, num_trajectories = place_sources(config, workdir, world_model, mesh)
    optimiser = training.make_optimiser(
        training.learning_rate_schedule(c.learning_rate, c.num_updates, c.warmup_updates)
    )

    state = training.init_train_state(init(jax.random.key(config.seed)), optimiser)

    def make_epoch():
        schedule = cosine_schedule(world_model.config.diffusion_steps)
        loss_fn = training.world_model_loss(world_model, schedule, settings.loss_config(config))
        update = training.make_update(loss_fn, optimiser, c.ema_decay)
        counts = segments_per_update({task: world_model.specs[task] for task in sources}, c.sequences_per_task)
        delays = {task: settings.message_delay(config, world_model.specs[task]) for task in sources}
        sample = training.multi_task_sampler(
            counts,
            settings.window_steps(config),
            delays,
            num_trajectories=num_trajectories,
            windows_fn=sharding.make_windows(mesh),
        )
        return train_loop.compile_epoch(mesh, training.make_epoch(update, sample, c.updates_per_dispatch), state)

    parts = ("tasks", "environment", "model", "loss", "pretrain")
    delay = config.planner.message_delay_steps
    places = () if mesh is None else (mesh, *num_trajectories.items())
    epoch = memo(("pretrain", sources, delay, settings.fingerprint(config, *parts), *places), make_epoch)
    state = train_loop.place_state(mesh, state)
    shown = {"denoise": "denoise", "return": "return"} | {f"idm {t}": f"{t}/inverse_dynamics" for t in sources}
    title = f"pre-train on {' + '.join(sources)}"
    state = train_loop.train(title, directory, state, epoch, (data, stats), c, config.seed, shown, config.tracker, mesh)
    train_loop.save_model(
        directory / "model", world_model, state.ema_params, stats, stage="pretrain", sources=sources, seed=config.seed,
    )  # fmt: skip
    train_loop.write_seconds(directory, time.monotonic() - started)
    return directory / "model"


if __name__ == "__main__":
    runtime.main(run, several_processes=True)
