"""Pre-trains the world model on the source tasks (all but the held-out one).

    python -m experiments.pretrain --config=experiments/configs/small.py --workdir=runs/small

Reads <workdir>/data/<task>/<tier>/, writes <workdir>/pretrain_without_<held_out>/ (metrics.jsonl, checkpoints/,
model/).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from experiments import runtime, settings, train_loop
from experiments.collect import dataset_dir
from networld_envs.types import TaskSpec
from networld_jax import checkpoints, datasets, training
from networld_jax.schedules import cosine_schedule

SECTIONS = ("seed", "tasks", "held_out", "environment", "collect", "model", "loss")
"""What a trained model depends on beside its own stage's settings."""


def pretrain_dir(workdir: Path, held_out: str) -> Path:
    """Where the pre-trained model of a held-out task lives."""
    return Path(workdir) / f"pretrain_without_{held_out}"


def segments_per_update(specs: Mapping[str, TaskSpec], num_sequences: int) -> dict[str, int]:
    """Joint windows per task so that every task contributes about `num_sequences` agent sequences."""
    return {task: max(1, round(num_sequences / spec.max_agents)) for task, spec in specs.items()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """Trains and returns the folder of the finished model."""
    c = config.pretrain
    train_loop.check_updates(c, "pretrain")
    envs = settings.environments(config)
    world_model, loss = settings.world_model(config, envs), settings.loss_config(config)
    sources = [task for task in envs if task != config.held_out]
    directory = pretrain_dir(workdir, config.held_out)
    runtime.save_config(config, directory, "pretrain", (*SECTIONS, "pretrain"))

    data = {task: datasets.load(dataset_dir(workdir, task, config.collect.tier))[0] for task in sources}
    stats = {
        task: datasets.task_stats(data[task], world_model.specs[task], world_model.config, loss.discount)
        for task in sources
    }
    schedule = cosine_schedule(world_model.config.diffusion_steps)
    optimiser = training.make_optimiser(
        training.learning_rate_schedule(c.learning_rate, c.num_updates, c.warmup_updates)
    )
    update = training.make_update(training.world_model_loss(world_model, schedule, loss), optimiser, c.ema_decay)
    counts = segments_per_update({task: world_model.specs[task] for task in sources}, c.sequences_per_task)
    delays = {task: world_model.specs[task].message_delay_steps for task in sources}
    sample = training.multi_task_sampler(counts, world_model.config.horizon, delays)
    epoch = jax.jit(training.make_epoch(update, sample, c.updates_per_dispatch), donate_argnums=0)

    state = training.init_train_state(train_loop.initial_params(world_model, jax.random.key(config.seed)), optimiser)
    on_device = jax.tree.map(jnp.asarray, data)
    shown = {"denoise": "denoise", "return": "return"} | {f"idm {t}": f"{t}/inverse_dynamics" for t in sources}
    title = f"pre-train on {' + '.join(sources)}"
    state = train_loop.train(title, directory, state, epoch, (on_device, stats), c, config.seed, shown)
    checkpoints.save_model(
        directory / "model", world_model, state.ema_params, stats, stage="pretrain", sources=sources, seed=config.seed
    )
    return directory / "model"


if __name__ == "__main__":
    runtime.main(run)
