"""The joint loss of denoiser, classifier, inverse dynamics and value heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from networld_jax import action_heads
from networld_jax.diffusion import denoising_loss, loss_weights, q_sample
from networld_jax.labels import LABELS
from networld_jax.mean_field import mean_field, quantise
from networld_jax.noise_levels import disturb
from networld_jax.schedules import NoiseSchedule
from networld_jax.transforms import straight_through, two_hot_cross_entropy
from networld_jax.types import LossConfig, Params, Segments, TaskStats

Stats = Mapping[str, TaskStats]


def standardised_label(segments: Segments, stats: TaskStats, config: LossConfig) -> jax.Array:
    """The configured label with the task's data mean 0 and std 1, [B, N]."""
    if config.label_horizon:
        segments = segments.replace(reward=segments.reward[..., : config.label_horizon])
    label = LABELS[config.label](segments, config.discount)
    return (label - stats.return_mean[config.label]) / stats.return_std[config.label]


# ---------------------------------------------------------------------------------------------------- joint loss


class Sequences(NamedTuple):
    """One task's share of a batch in latent space; sequences S = B * N are agents folded into the batch."""

    x0: jax.Array  # [S, H, 2D] own latent ++ mean field
    task_index: jax.Array  # [S] int32
    channel_mask: jax.Array  # [2D] 1 = channel in use by this task's encoder
    weight: jax.Array  # [S] sums to 1 over the task
    label: jax.Array  # [S] standardised return


def encode_segments(
    world_model, params: Params, stats: TaskStats, task: str, segments: Segments, config: LossConfig
) -> tuple[jax.Array, jax.Array]:
    """Latents z [B, N, H+1, D] and mean fields m [B, N, H+1, D] of windows.

    The mean field averages the neighbours' latents of the observations their messages describe (delayed if the task's
    are), quantised with `message_bits`; gradients pass as if they were not.
    """
    z = world_model.encode(params, stats, task, segments.obs)
    heard = world_model.encode(params, stats, task, segments.message_obs)
    if config.message_bits:
        heard = straight_through(quantise(heard, config.message_bits, config.message_range), heard)
    m = mean_field(jnp.swapaxes(heard, 1, 2), segments.adjacency[:, None])  # over N, per step
    return z, jnp.swapaxes(m, 1, 2)


def masked_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """sum(values * weight) / sum(weight), 0 when all weights are 0."""
    weight = jnp.broadcast_to(weight, values.shape)
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1e-8)


def noise_unit(stats: TaskStats, unit: str) -> jax.Array:
    """[D] what noise on z_{t+1} is measured in: "surprise" or "latent" standard deviations."""
    return stats.surprise if unit == "surprise" else jnp.ones_like(stats.surprise)


def inverse_dynamics_loss(
    world_model, params, stats, task, z, m, segments, key, config: LossConfig, action_weight
) -> jax.Array:
    """Two-hot cross-entropy of the executed action given (z_t, m_t, z_{t+1} + s u eps), mean over components and pairs.

    The noise, s times the unit u [D] of its channel, makes the model fall back to the conditional mean given (z_t, m_t)
    as far as a sampled z_{t+1} is imprecise. A noise-aware model learns for all s and is told s (`noise_levels`); its
    unit is the surprise. `action_weight` [B, N, H] says how much each action is worth imitating.
    """
    is_aware = world_model.config.noise_aware_inverse_dynamics
    unit = noise_unit(stats, "surprise" if is_aware else config.noise_unit)
    noisy_next, noise = disturb(key, z[:, :, 1:], unit, None if is_aware else config.inverse_dynamics_noise)
    logits = world_model.action_logits(params, stats, task, z[:, :, :-1], m[:, :, :-1], noisy_next, noise)
    losses = action_heads.losses(logits, segments.action, stats)
    weight = segments.agent_mask[:, :, None] * segments.is_demonstration[:, None, :] * action_weight
    return masked_mean(losses, weight)


def advantage_weight(advantage: jax.Array, mask: jax.Array, beta: float, horizon: int) -> jax.Array:
    """[B, N, H]: exp(beta A / std A) on the window's first action, at most e^3, and 0 on the others, whose own returns
    the window does not hold; all ones with beta = 0."""
    if not beta:
        return jnp.ones((*advantage.shape, horizon))
    mean = masked_mean(advantage, mask)
    std = jnp.sqrt(masked_mean((advantage - mean) ** 2, mask))
    first = jnp.exp(jnp.minimum(beta * (advantage - mean) / jnp.maximum(std, 1e-6), 3.0))
    return jax.lax.stop_gradient(first)[..., None] * jax.nn.one_hot(0, horizon)[None, None, :]


def value_losses(world_model, params, stats, task, z, m, segments, label) -> tuple[jax.Array, jax.Array]:
    """Squared errors of V(z_0, m_0) and Q(z_0, m_0, a_0) against the standardised label (latents held fixed)."""
    z0, m0 = jax.lax.stop_gradient((z[:, :, 0], m[:, :, 0]))
    value = world_model.value(params, task, z0, m0)
    action_value = world_model.action_value(params, stats, task, z0, m0, segments.action[:, :, 0])
    return (
        masked_mean((value - label) ** 2, segments.agent_mask),
        masked_mean((action_value - label) ** 2, segments.agent_mask),
    )


def latent_health(z: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Collapse alarms over present agents: mean per-dimension std and effective rank exp(entropy of the
    eigen-spectrum), computed without an eigen-decomposition as (tr C)^2 / tr C^2 (the participation ratio)."""
    flat = z[:, :, 0].reshape(-1, z.shape[-1])
    weight = mask.reshape(-1, 1) / jnp.maximum(mask.sum(), 1.0)
    centred = flat - jnp.sum(flat * weight, axis=0, keepdims=True)
    covariance = (centred * weight).T @ centred
    variance = jnp.diagonal(covariance)
    used = variance > 0
    mean_std = jnp.sum(jnp.sqrt(jnp.where(used, variance, 1.0)) * used) / jnp.maximum(used.sum(), 1)
    rank = jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-12)
    return {"latent_std": mean_std, "effective_rank": rank}


def classifier_loss(world_model, params, task_index, x_k, k, label, weight) -> jax.Array:
    """Squared error of the scalar head, or two-hot cross-entropy of the binned head, on noised sequences."""
    output = world_model.return_outputs(params, task_index, x_k, k)
    if world_model.return_bins is None:
        return jnp.sum((output[..., 0] - label) ** 2 * weight)
    return jnp.sum(two_hot_cross_entropy(output, label, world_model.return_bins) * weight)


def noised(x0: jax.Array, k: jax.Array, noise: jax.Array, schedule: NoiseSchedule) -> jax.Array:
    """x_k ~ q(. | x0) with row 0 clamped to the clean latent, as in sampling."""
    return q_sample(x0, k, noise, schedule).at[:, 0].set(x0[:, 0])


def task_loss(
    world_model, params: Params, stats: TaskStats, task: str, segments: Segments, key: jax.Array, config: LossConfig
) -> tuple[jax.Array, Sequences, dict[str, jax.Array]]:
    """One task's own losses (inverse dynamics, value heads, reconstruction), its sequences for the shared nets,
    metrics."""
    idm_key, dropout_key = jax.random.split(key)
    z, m = encode_segments(world_model, params, stats, task, segments, config)
    if config.message_dropout:
        keep = jax.random.bernoulli(dropout_key, 1.0 - config.message_dropout, m.shape[:2])
        m = m * keep[:, :, None, None]
    label = standardised_label(segments, stats, config)
    advantage = label - jax.lax.stop_gradient(world_model.value(params, task, z[:, :, 0], m[:, :, 0]))
    horizon = segments.reward.shape[-1]
    weight = advantage_weight(advantage, segments.agent_mask, config.advantage_weighting, horizon)
    idm = inverse_dynamics_loss(world_model, params, stats, task, z, m, segments, idm_key, config, weight)
    value, action_value = value_losses(world_model, params, stats, task, z, m, segments, label)
    loss = config.inverse_dynamics_weight * idm + config.value_weight * (value + action_value)
    if config.reconstruction_weight:
        error = (world_model.reconstruct(params, task, z) - world_model.squash(stats, segments.obs)) ** 2
        loss += config.reconstruction_weight * masked_mean(error.mean(-1), segments.agent_mask[:, :, None])
    if config.centred:
        label = advantage
    metrics = {"inverse_dynamics": idm, "value": value, "action_value": action_value}
    metrics |= latent_health(z, segments.agent_mask)
    x0 = scale_gradient(jnp.concatenate([z, m], -1)[:, :, : world_model.config.horizon], config.encoder_diffusion_grad)
    weight = segments.agent_mask.reshape(-1)
    sequences = Sequences(
        x0=x0.reshape((-1, *x0.shape[2:])),
        task_index=jnp.full(weight.shape, world_model.task_index(task), jnp.int32),
        channel_mask=world_model.channel_mask(task),
        weight=weight / jnp.maximum(weight.sum(), 1.0),
        label=label.reshape(-1),
    )
    return loss, sequences, metrics


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """x forwards, `scale` times the gradient backwards."""
    held = jax.lax.stop_gradient(x)
    return held + scale * (x - held) if scale else held


def shared_losses(
    world_model, params: Params, schedule: NoiseSchedule, parts: Sequence[Sequences], key: jax.Array, config: LossConfig
) -> tuple[list[jax.Array], jax.Array]:
    """(denoising loss per task, return loss) of the shared nets; all tasks' sequences pass in one call."""
    level_key, noise_key = jax.random.split(key)
    x0, task_index, label = (jnp.concatenate([getattr(p, f) for p in parts]) for f in ("x0", "task_index", "label"))
    weight = jnp.concatenate([p.weight for p in parts]) / len(parts)
    mask = jnp.concatenate([jnp.broadcast_to(p.channel_mask, (len(p.x0), x0.shape[-1])) for p in parts])
    k = jax.random.randint(level_key, (x0.shape[0],), 0, schedule.num_steps)
    noise = jax.random.normal(noise_key, x0.shape) * mask[:, None, :]
    x_k = noised(x0, k, noise, schedule)
    prediction = world_model.predict(params, task_index, x_k, k)
    target = x0 if world_model.config.prediction == "x0" else noise
    denoise, first = [], 0
    for part in parts:
        share = slice(first, first := first + len(part.x0))
        rows = loss_weights(*x0.shape[1:], next_row_weight=config.next_row_weight, channel_mask=part.channel_mask)
        denoise.append(jnp.sum(denoising_loss(prediction[share], target[share], rows) * part.weight))
    returns = classifier_loss(world_model, params, task_index, jax.lax.stop_gradient(x_k), k, label, weight)
    return denoise, returns


def joint_loss(
    world_model,
    params: Params,
    stats: Stats,
    schedule: NoiseSchedule,
    batch: Mapping[str, Segments],
    key: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The multi-task loss; tasks weigh equally however many agents they have.

        L = L_denoise(sg x0) + lambda_c L_return(sg x_k) + lambda_i L_inverse + lambda_v (L_V + L_Q) + lambda_r L_rec

    `encoder_diffusion_grad` = g lets g times the diffusion gradient into the encoder (0: none; 1: the paper's wording,
    which collapses the latents).

    Returns (loss [], metrics {name: []}).
    """
    shared_key, *task_keys = jax.random.split(key, 1 + len(batch))
    metrics: dict[str, jax.Array] = {}
    own, parts = 0.0, []
    for (task, segments), task_key in zip(batch.items(), task_keys, strict=True):
        loss, sequences, numbers = task_loss(world_model, params, stats[task], task, segments, task_key, config)
        own += loss / len(batch)
        parts.append(sequences)
        metrics |= {f"{task}/{name}": value for name, value in numbers.items()}
    denoise, returns = shared_losses(world_model, params, schedule, parts, shared_key, config)
    metrics |= {f"{task}/denoise": value for task, value in zip(batch, denoise, strict=True)}
    mean_denoise = sum(denoise) / len(batch)
    total = own + mean_denoise + config.classifier_weight * returns
    return total, metrics | {"loss": total, "denoise": mean_denoise, "return": returns}
