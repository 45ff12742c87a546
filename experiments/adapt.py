"""Adapts a pre-trained world model to the held-out task from a few trajectories.

    python -m experiments.adapt --config=experiments/configs/small.py --workdir=runs/small
    python -m experiments.adapt ... --config.adapt.from_scratch=True      (the control: no pre-training)

Encoder, inverse dynamics and value heads of the new task are trained, the shared denoiser and classifier lightly
fine-tuned. Reads <workdir>/pretrain_without_<held_out>/model and the few-shot data, writes <workdir>/adapt_<held_out>/.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from experiments import runtime, settings, train_loop
from experiments.collect import dataset_dir
from experiments.pretrain import SECTIONS, pretrain_dir, segments_per_update
from networld_jax import checkpoints, datasets, training
from networld_jax.schedules import cosine_schedule
from networld_jax.types import Params, Trajectories
from networld_jax.world_model import WorldModel


def adapt_dir(workdir: Path, held_out: str, from_scratch: bool) -> Path:
    """Where the adapted model of a task lives."""
    return Path(workdir) / f"{'scratch' if from_scratch else 'adapt'}_{held_out}"


def few_shot_data(config: ml_collections.ConfigDict, workdir: Path) -> Trajectories:
    """The few trajectories (or steps) of the held-out task that adaptation may see."""
    directory = dataset_dir(workdir, config.held_out, config.collect.tier)
    data, _ = datasets.load(directory, config.adapt.num_trajectories)
    return datasets.take_steps(data, config.adapt.num_steps) if config.adapt.num_steps else data


def initial_params(config: ml_collections.ConfigDict, workdir: Path, world_model: WorldModel) -> Params:
    """Pre-trained weights with a fresh set for the new task, or fresh weights throughout.

    Raises ValueError when the pre-trained model has another configuration.
    """
    fresh = train_loop.initial_params(world_model, jax.random.fold_in(jax.random.key(config.seed), 1))
    if config.adapt.from_scratch:
        return fresh
    directory = pretrain_dir(workdir, config.held_out) / "model"
    trained_model, params, _, facts = checkpoints.load_model(directory)
    if trained_model.config != world_model.config:
        raise ValueError(
            f"{directory} was trained with {trained_model.config}, got {world_model.config}; pre-train again"
        )
    task = config.held_out
    new = {group: params[group] | {task: fresh[group][task]} for group in training.PER_TASK}
    sources = [world_model.task_index(name) for name in facts["sources"]]
    shared = {net: start_embedding(params[net], world_model.task_index(task), sources) for net in training.SHARED}
    return params | new | shared


def start_embedding(net: Params, index: int, sources: list[int]) -> Params:
    """The shared net with the new task's embedding at the mean of the trained ones."""
    table = net["task_embedding"]["embedding"]
    table = table.at[index].set(table[jnp.asarray(sources)].mean(0))
    return net | {"task_embedding": {"embedding": table}}


def run(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """Adapts and returns the folder of the finished model."""
    c, task = config.adapt, config.held_out
    train_loop.check_updates(c, "adapt")
    envs = settings.environments(config)
    world_model, loss = settings.world_model(config, envs), settings.loss_config(config)
    directory = adapt_dir(workdir, task, c.from_scratch)
    runtime.save_config(config, directory, "adapt", (*SECTIONS, "pretrain", "adapt"))

    data = few_shot_data(config, workdir)
    spec = world_model.specs[task]
    stats = {task: datasets.task_stats(data, spec, world_model.config, loss.discount)}
    params = initial_params(config, workdir, world_model)
    schedule = cosine_schedule(world_model.config.diffusion_steps)
    rate = training.learning_rate_schedule(c.learning_rate, c.num_updates, c.warmup_updates)
    optimiser = training.make_adaptation_optimiser(params, task, rate, 1.0 if c.from_scratch else c.finetune_scale)
    update = training.make_update(training.world_model_loss(world_model, schedule, loss), optimiser, c.ema_decay)
    counts = segments_per_update({task: spec}, c.sequences)
    sample = training.multi_task_sampler(counts, world_model.config.horizon, {task: spec.message_delay_steps})
    epoch = jax.jit(training.make_epoch(update, sample, c.updates_per_dispatch), donate_argnums=0)

    state = training.init_train_state(params, optimiser)
    title = f"{'from scratch on' if c.from_scratch else 'adapt to'} {task}"
    shown = {"denoise": "denoise", "return": "return", "idm": f"{task}/inverse_dynamics"}
    data_and_stats = ({task: jax.tree.map(jnp.asarray, data)}, stats)
    state = train_loop.train(title, directory, state, epoch, data_and_stats, c, config.seed, shown)
    checkpoints.save_model(
        directory / "model",
        world_model,
        state.ema_params,
        stats,
        stage="scratch" if c.from_scratch else "adapt",
        task=task,
        few_shot_steps=int(data.reward.shape[0] * data.reward.shape[1]),
        seed=config.seed,
    )
    return directory / "model"


if __name__ == "__main__":
    runtime.main(run)
