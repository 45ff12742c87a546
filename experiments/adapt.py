"""Adapts a pre-trained world model to the held-out task from a few trajectories.

    python -m experiments.adapt --config=experiments/configs/small.py --workdir=runs/small
    python -m experiments.adapt ... --config.adapt.from_scratch=True      (the control: no pre-training)

Encoder, inverse dynamics and value heads of the new task are trained, the shared nets in `adapt.transfer` lightly
fine-tuned, those that are not start afresh. Reads <workdir>/pretrain_without_<held_out>/model and the few-shot data,
writes <workdir>/adapt_<held_out>/.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from experiments import imagined, runtime, settings, trackers, train_loop
from experiments.memo import Memo
from experiments.pretrain import SECTIONS, few_shot_data, pretrain_dir, segments_per_update
from networld_jax import checkpoints, sharding, training
from networld_jax.schedules import cosine_schedule
from networld_jax.types import Params
from networld_jax.world_model import WorldModel

__all__ = ["adapt_dir", "few_shot_data", "initial_params", "run", "train_model"]


def adapt_dir(workdir: Path, held_out: str, from_scratch: bool) -> Path:
    """Where the adapted model of a task lives."""
    return Path(workdir) / f"{'scratch' if from_scratch else 'adapt'}_{held_out}"


def initial_params(
    config: ml_collections.ConfigDict, world_model: WorldModel, init: Callable[[jax.Array], Params], pretrained: Path
) -> tuple[Params, tuple[str, ...]]:
    """(weights to start from, which of the shared nets start afresh): pre-trained weights with a fresh set for the new
    task and for the nets not in `adapt.transfer`, or fresh weights throughout. A model whose pre-training included the
    task is kept whole.

    Raises ValueError when the pre-trained model has another configuration.
    """
    fresh = init(jax.random.fold_in(jax.random.key(config.seed), 1))
    if config.adapt.from_scratch:
        return fresh, training.SHARED if config.adapt.finetune_scale else ()  # scale 0: random nets, frozen
    trained_model, params, _, facts = checkpoints.load_model(pretrained)
    if trained_model.config != world_model.config:
        raise ValueError(
            f"{pretrained} was trained with {trained_model.config}, got {world_model.config}; pre-train again"
        )
    task = config.held_out
    if task in facts["sources"]:
        return params, ()
    new = {group: params[group] | {task: fresh[group][task]} for group in training.PER_TASK}
    sources = [world_model.task_index(name) for name in facts["sources"]]
    kept = {net: start_embedding(params[net], world_model.task_index(task), sources) for net in config.adapt.transfer}
    anew = tuple(net for net in training.SHARED if net not in kept)
    return params | new | kept | {net: fresh[net] for net in anew}, anew


def start_embedding(net: Params, index: int, sources: list[int]) -> Params:
    """The shared net with the new task's embedding at the mean of the trained ones; a mere head has none."""
    if "task_embedding" not in net:
        return net
    table = net["task_embedding"]["embedding"]
    table = table.at[index].set(table[jnp.asarray(sources)].mean(0))
    return net | {"task_embedding": {"embedding": table}}


def run(config: ml_collections.ConfigDict, workdir: Path) -> Path:
    """Adapts and returns the folder of the finished model."""
    c = config.adapt
    train_loop.check_updates(c, "adapt")
    trackers.check(config.tracker)
    envs = settings.environments(config)
    settings.world_model(config, envs)  # a bad size shows before any work
    directory = adapt_dir(workdir, config.held_out, c.from_scratch)
    runtime.save_config(config, directory, "adapt", (*SECTIONS, "pretrain", "adapt", *imagined.depends_on(config)))
    return train_model(config, workdir, directory, pretrain_dir(workdir, config.held_out) / "model", Memo())


def train_model(
    config: ml_collections.ConfigDict,
    workdir: Path,
    directory: Path,
    pretrained: Path,
    memo: Memo,
    num_updates: int | None = None,
) -> Path:
    """Adapts the model in `pretrained` (or none) with the data of `workdir` into `directory`; returns the folder of the
    finished model. `num_updates` stops earlier on the same schedule: a point of the learning curve."""
    c, task, started = config.adapt, config.held_out, time.monotonic()
    world_model, init = settings.shared_world_model(config, memo)
    spec = world_model.specs[task]
    logged = few_shot_data(config, workdir)
    data = imagined.with_imagined(config, directory, logged, spec, memo)
    stats = {task: settings.task_stats(config, data, spec)}
    params, fresh = initial_params(config, world_model, init, pretrained)
    rate = training.learning_rate_schedule(c.learning_rate, c.num_updates, c.warmup_updates)
    optimiser = training.make_adaptation_optimiser(
        params,
        task,
        rate,
        c.finetune_scale,
        readout_scale=None if c.readout_scale < 0 else c.readout_scale,
        fresh=fresh,
        weight_decay=c.weight_decay,
    )

    mesh = settings.mesh(config)
    num_trajectories = None if mesh is None else {task: data.reward.shape[0]}
    state = training.init_train_state(params, optimiser)

    def make_epoch():
        schedule = cosine_schedule(world_model.config.diffusion_steps)
        loss_fn = training.world_model_loss(world_model, schedule, settings.loss_config(config))
        update = training.make_update(loss_fn, optimiser, c.ema_decay)
        counts = segments_per_update({task: spec}, c.sequences)
        delay = settings.message_delay(config, spec)
        sample = training.multi_task_sampler(
            counts,
            settings.window_steps(config),
            {task: delay},
            num_trajectories=num_trajectories,
            windows_fn=sharding.make_windows(mesh),
        )
        return train_loop.compile_epoch(mesh, training.make_epoch(update, sample, c.updates_per_dispatch), state)

    parts = ("tasks", "held_out", "environment", "model", "loss", "adapt")
    delay = config.planner.message_delay_steps
    places = () if mesh is None else (mesh, *num_trajectories.items())
    epoch = memo(("adapt", delay, fresh, settings.fingerprint(config, *parts), *places), make_epoch)
    state = train_loop.place_state(mesh, state)
    title = f"{'from scratch on' if c.from_scratch else 'adapt to'} {task}"
    shown = {"denoise": "denoise", "return": "return", "idm": f"{task}/inverse_dynamics"}
    data_and_stats = ({task: train_loop.share(mesh, data)}, sharding.copy_to_all(mesh, stats))
    length = ml_collections.ConfigDict(c)
    length.num_updates = num_updates or c.num_updates
    state = train_loop.train(
        title, directory, state, epoch, data_and_stats, length, config.seed, shown, config.tracker, mesh
    )
    model = directory / ("model" if num_updates in (None, c.num_updates) else f"model_{num_updates}")
    train_loop.save_model(
        model,
        world_model,
        state.ema_params,
        stats,
        stage="scratch" if c.from_scratch else "adapt",
        task=task,
        few_shot_steps=int(logged.reward.shape[0] * logged.reward.shape[1]),
        few_shot_topologies=int(logged.reward.shape[0]),
        seed=config.seed,
    )
    train_loop.write_seconds(directory, time.monotonic() - started)
    return model


if __name__ == "__main__":
    runtime.main(run, several_processes=True)
