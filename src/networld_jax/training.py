"""Optimisation: many updates per dispatch with the dataset on the device and the sampler inside the scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from networld_jax.losses import Stats, joint_loss
from networld_jax.schedules import NoiseSchedule
from networld_jax.types import LossConfig, Params, Segments, TrainState, Trajectories
from networld_jax.windows import num_starts, sample_places, sample_segments, windows

PER_TASK = ("encoder", "decoder", "inverse_dynamics", "value", "action_value")
SHARED = ("denoiser", "classifier")
READOUTS = ("final_conv", "head", "fc1")
"""Last layers of the shared nets. They start at zero, so a frozen random net needs them trained to say anything."""


def learning_rate_schedule(peak: float, num_updates: int, warmup_updates: int = 0) -> optax.Schedule:
    """Linear warm-up, then cosine decay to zero at `num_updates`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_updates else peak,
        peak_value=peak,
        warmup_steps=warmup_updates,
        decay_steps=max(num_updates, warmup_updates + 1),
    )


def adam(learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Adam; kernels (leaves of two or more axes) shrink by learning_rate * weight_decay per update (decoupled;
    Loshchilov & Hutter 2019)."""

    def kernels(tree):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

    if not weight_decay:
        return optax.adam(learning_rate)
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=kernels)


def make_optimiser(
    learning_rate: optax.ScalarOrSchedule, clip_norm: float = 1.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`adam` behind a global-norm clip."""
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam(learning_rate, weight_decay))


def adaptation_labels(params: Params, task: str, fresh: Sequence[str] = ()) -> Params:
    """One label per leaf for few-shot adaptation to `task`: "train" (its encoder, decoder, inverse dynamics, value
    heads, and the nets of SHARED in `fresh`), "finetune" (the other shared nets; lightly), "readout" (their last
    layers), "finetune_fast" (their task embedding), "freeze" (other tasks)."""

    def label(path, _):
        names = [entry.key for entry in path]
        if names[0] in PER_TASK:
            return "train" if names[1] == task else "freeze"
        if names[0] in fresh:
            return "train"
        if any("task" in name for name in names[1:]):
            return "finetune_fast"
        return "readout" if names[1] in READOUTS else "finetune"

    return jax.tree_util.tree_map_with_path(label, params)


def make_adaptation_optimiser(
    params: Params,
    task: str,
    learning_rate: optax.Schedule,
    finetune_scale: float,
    clip_norm: float = 1.0,
    readout_scale: float | None = None,
    fresh: Sequence[str] = (),
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with per-label rates: new task and `fresh` nets at full rate, the other shared nets at `finetune_scale`
    times it (0 = frozen), their last layers at `readout_scale` times it (None = like the rest of the net)."""

    def scaled(scale):
        if not scale:
            return optax.set_to_zero()
        return adam(lambda count: scale * learning_rate(count), weight_decay)

    transforms = {
        "train": scaled(1.0),
        "finetune": scaled(finetune_scale),
        "readout": scaled(finetune_scale if readout_scale is None else readout_scale),
        "finetune_fast": scaled(1.0),
        "freeze": optax.set_to_zero(),
    }
    return optax.chain(
        optax.clip_by_global_norm(clip_norm), optax.multi_transform(transforms, adaptation_labels(params, task, fresh))
    )


def init_train_state(params: Params, optimiser: optax.GradientTransformation) -> TrainState:
    """A state at update 0; the EMA starts as a copy."""
    return TrainState(
        step=jnp.int32(0), params=params, ema_params=jax.tree.map(jnp.array, params), opt_state=optimiser.init(params)
    )


def ema_update(ema: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)): short memory at the start."""
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + (1.0 - rate) * (p - e), ema, params)  # keeps every bit where e = p


def descend(
    loss_fn: Callable[[Params], tuple[jax.Array, dict[str, jax.Array]]],
    params: Params,
    optimiser: optax.GradientTransformation,
    opt_state: Any,
) -> tuple[Params, Any, dict[str, jax.Array]]:
    """(params, opt_state, metrics) after one step down loss_fn(params) -> (loss, metrics), for methods whose nets have
    losses of their own."""
    gradients, metrics = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimiser.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics


def make_update(
    loss_fn: Callable[[Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """One gradient step out of loss_fn(params, batch, key) -> (loss, metrics); shared by the world model and the
    baselines."""

    def update(state: TrainState, batch: Any, key: jax.Array):
        (_, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema_update(state.ema_params, params, state.step, ema_decay)
        metrics = metrics | {"grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, ema_params, opt_state), metrics

    return update


def unless_finite(before: Any, after: Any, metrics: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
    """(`after`, or `before` when a metric is not finite; metrics): training stands still at the update that failed, so
    that its step, its keys and the state that reproduces it are still there when the dispatch ends."""
    is_finite = jnp.stack([jnp.isfinite(value).all() for value in metrics.values()]).all()
    return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, before), metrics


def make_epoch(
    update: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
    sample_fn: Callable[[jax.Array, Any], Any],
    num_updates: int,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """`num_updates` updates in one dispatch: (state, data, key) -> (state, metrics averaged over the updates).

    Update s uses fold_in(key, s), so a resumed run repeats an uninterrupted one bit for bit. `sample_fn(key, data)`
    draws a batch on the device. An update with a metric that is not finite is not applied (`unless_finite`). Jit it
    with donate_argnums=0.
    """

    def epoch(state: TrainState, data: Any, key: jax.Array):
        def body(state, _):
            sample_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
            return unless_finite(state, *update(state, sample_fn(sample_key, data), loss_key))

        state, metrics = jax.lax.scan(body, state, None, length=num_updates)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return epoch


def world_model_loss(world_model, schedule: NoiseSchedule, config: LossConfig) -> Callable:
    """loss_fn(params, (segments, stats), key) for `make_update`: see `losses.joint_loss`."""

    def loss_fn(params, batch, key):
        segments, stats = batch
        return joint_loss(world_model, params, stats, schedule, segments, key, config)

    return loss_fn


def multi_task_sampler(
    segments_per_task: Mapping[str, int],
    horizon: int,
    message_delays: Mapping[str, int],
    *,
    num_trajectories: Mapping[str, int] | None = None,
    windows_fn: Callable[[Trajectories, jax.Array, int, int], Segments] = windows,
) -> Callable[[jax.Array, tuple[Mapping[str, Trajectories], Stats]], tuple[dict, Stats]]:
    """sample_fn(key, (data, stats)) -> ({task: Segments}, stats), `segments_per_task` windows of each task.

    The keyword arguments are those of `windows.sample_segments`, for datasets split over devices.
    """

    def sample(key, data_and_stats):
        data, stats = data_and_stats
        batch = {
            task: sample_segments(
                jax.random.fold_in(key, i),
                data[task],
                count,
                horizon,
                message_delays[task],
                num_trajectories=None if num_trajectories is None else num_trajectories[task],
                windows_fn=windows_fn,
            )
            for i, (task, count) in enumerate(segments_per_task.items())
        }
        return batch, stats

    return sample


# ------------------------------------------------------------------------------------- data larger than the device


def stream_windows(
    key: jax.Array,
    data: Mapping[str, Trajectories],
    segments_per_task: Mapping[str, int],
    horizon: int,
    message_delays: Mapping[str, int],
    num_updates: int,
    first_update: int = 0,
) -> Iterator[dict[str, Segments]]:
    """Batches for `make_streaming_epoch`, leaves [num_updates, B, ...], without end; the trajectories stay on the host.

    Places are drawn with the keys that `make_epoch` and `multi_task_sampler` use, so training sees the same batches as
    with data on the device. While the caller computes with one batch, a thread gathers the next and sends it to the
    device: two are alive at a time.

    Args:
      key: the one given to the epoch.
      data: {task: Trajectories} of NumPy arrays (memory-mapped ones too).
      first_update: update number of the first batch, for a resumed run.
    """
    shapes = {task: trajectories.reward.shape[:2] for task, trajectories in data.items()}
    choices = {task: (runs, num_starts(length, horizon)) for task, (runs, length) in shapes.items()}

    @jax.jit
    def places(first):
        def one(step):
            sample_key, _ = jax.random.split(jax.random.fold_in(key, step))
            return {
                task: sample_places(jax.random.fold_in(sample_key, i), *choices[task], count)
                for i, (task, count) in enumerate(segments_per_task.items())
            }

        return jax.vmap(one)(first + jnp.arange(num_updates))

    def batch(first):
        gathered = {}
        for task, where in jax.tree.map(np.asarray, places(jnp.int32(first))).items():
            flat = windows(data[task], where.reshape(-1, 2), horizon, message_delays[task])
            gathered[task] = jax.tree.map(lambda x: x.reshape(num_updates, -1, *x.shape[1:]), flat)
        return jax.device_put(gathered)

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(batch, first_update)
        while True:
            current, first_update = upcoming.result(), first_update + num_updates
            upcoming = thread.submit(batch, first_update)
            yield current


def make_streaming_epoch(
    update: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """`make_epoch` on batches of `stream_windows`: (state, (batches, stats), key) -> (state, mean metrics)."""

    def epoch(state: TrainState, batches_and_stats: Any, key: jax.Array):
        batches, stats = batches_and_stats

        def body(state, batch):
            _, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
            return unless_finite(state, *update(state, (batch, stats), loss_key))

        state, metrics = jax.lax.scan(body, state, batches)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return epoch
