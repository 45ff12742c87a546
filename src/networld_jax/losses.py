"""Return labels and the joint loss of denoiser, classifier, inverse dynamics and value heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from networld_jax.diffusion import q_sample
from networld_jax.mean_field import mean_field
from networld_jax.schedules import NoiseSchedule
from networld_jax.transforms import two_hot_cross_entropy
from networld_jax.types import LossConfig, Params, Segments, TaskStats

Stats = Mapping[str, TaskStats]

# ---------------------------------------------------------------------------------------------------- labels


def own_return(segments: Segments, discount: float) -> jax.Array:
    """R_i = sum_{h<H} gamma^h r_i(t+h), [B, N]."""
    horizon = segments.reward.shape[-1]
    return segments.reward @ (discount ** jnp.arange(horizon, dtype=segments.reward.dtype))


def neighbourhood_return(segments: Segments, discount: float) -> jax.Array:
    """R_i = sum over the closed 1-hop neighbourhood of own_return_j / (1 + degree_j), [B, N].

    Every agent spreads its return evenly over its closed neighbourhood, so the labels of all agents sum to the team's
    return: an agent that gains at its neighbours' cost sees the cost.
    """
    own = own_return(segments, discount)
    spread = own / (1.0 + segments.adjacency.sum(-1))
    return spread + jnp.einsum("bij,bj->bi", segments.adjacency, spread)


LABELS: dict[str, Callable[[Segments, float], jax.Array]] = {"own": own_return, "neighbourhood": neighbourhood_return}


def standardised_label(segments: Segments, stats: TaskStats, config: LossConfig) -> jax.Array:
    """The configured label with the task's data mean 0 and std 1, [B, N]."""
    label = LABELS[config.label](segments, config.discount)
    return (label - stats.return_mean[config.label]) / stats.return_std[config.label]


# ---------------------------------------------------------------------------------------------------- joint loss


class EncodedTask(NamedTuple):
    """One task's share of a batch in latent space; sequences S = B * N are agents folded into the batch."""

    x0: jax.Array  # [S, H, 2D] own latent ++ mean field
    channel_mask: jax.Array  # [2D] 1 = channel in use by this task's encoder
    weight: jax.Array  # [S] sums to 1 over the task
    label: jax.Array  # [S] standardised return


def encode_segments(world_model, params: Params, stats: TaskStats, task: str, segments: Segments):
    """Latents z [B, N, H+1, D] and mean fields m [B, N, H+1, D] of windows.

    The mean field averages the neighbours' latents of the observations their messages describe (delayed if the task's are).
    """
    z = world_model.encode(params, stats, task, segments.obs)
    heard = world_model.encode(params, stats, task, segments.message_obs)
    m = mean_field(jnp.swapaxes(heard, 1, 2), segments.adjacency[:, None])  # over N, per step
    return z, jnp.swapaxes(m, 1, 2)


def masked_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """sum(values * weight) / sum(weight), 0 when all weights are 0."""
    weight = jnp.broadcast_to(weight, values.shape)
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1e-8)


def row_weights(horizon: int, first_row_weight: float) -> jax.Array:
    """[H] loss weights over plan rows: 0 for the clamped row 0, `first_row_weight` for row 1, 1 for the rest, mean 1."""
    weights = jnp.ones(horizon).at[0].set(0.0).at[min(1, horizon - 1)].set(first_row_weight)
    return weights / weights.mean()


def inverse_dynamics_loss(world_model, params, stats, task, z, m, segments, key, noise_std) -> dict[str, jax.Array]:
    """Two-hot cross-entropy of the executed action given (z_t, m_t, z_{t+1} + s eps), mean over components and pairs.

    The noise makes the model fall back to the conditional mean given (z_t, m_t) as far as a sampled z_{t+1} is imprecise.
    """
    noisy_next = z[:, :, 1:] + noise_std * jax.random.normal(key, z[:, :, 1:].shape)
    logits = world_model.action_logits(params, stats, task, z[:, :, :-1], m[:, :, :-1], noisy_next)  # [B, N, H, A, M]
    per_component = jax.vmap(two_hot_cross_entropy, in_axes=(-2, -1, 0), out_axes=-1)
    losses = per_component(logits, segments.action, stats.action_bins).mean(-1)
    weight = segments.agent_mask[:, :, None] * segments.is_demonstration[:, None, :]
    return masked_mean(losses, weight)


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
    """Collapse alarms over present agents: mean per-dimension std and effective rank exp(entropy of the eigen-spectrum),
    computed without an eigen-decomposition as (tr C)^2 / tr C^2 (the participation ratio)."""
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


def noised(x0: jax.Array, k: jax.Array, noise: jax.Array, schedule: NoiseSchedule, channel_mask: jax.Array) -> jax.Array:
    """x_k ~ q(. | x0) with row 0 clamped to the clean latent and unused channels at zero."""
    x_k = q_sample(x0, k, noise, schedule) * channel_mask[:, None, :]  # [S, H, 2D]
    return x_k.at[:, 0].set(x0[:, 0])


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

        L = L_denoise(sg x0) + lambda_c L_return(sg x_k) + lambda_i L_inverse + lambda_v (L_V + L_Q) + lambda_r L_reconstruct

    All tasks' sequences pass the shared denoiser and classifier in one call. With `encoder_diffusion_grad` = g the diffusion
    target is sg(x0) + g (x0 - sg(x0)): the encoder receives g times the diffusion gradient (0: none; 1: the paper's wording,
    which collapses the latents).

    Returns (loss [], metrics {name: []}).
    """
    total, metrics, encoded = 0.0, {}, []
    dropout_key, noise_key, level_key, *idm_keys = jax.random.split(key, 3 + len(batch))
    for index, (task, segments) in enumerate(batch.items()):
        z, m = encode_segments(world_model, params, stats[task], task, segments)
        if config.message_dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(dropout_key, index), 1 - config.message_dropout, m.shape[:2])
            m = m * keep[:, :, None, None]
        label = standardised_label(segments, stats[task], config)
        idm = inverse_dynamics_loss(
            world_model, params, stats[task], task, z, m, segments, idm_keys[index], config.inverse_dynamics_noise
        )
        value, action_value = value_losses(world_model, params, stats[task], task, z, m, segments, label)
        total += (config.inverse_dynamics_weight * idm + config.value_weight * (value + action_value)) / len(batch)
        if config.reconstruction_weight:
            target = world_model.squash(stats[task], segments.obs)
            error = jnp.mean((world_model.reconstruct(params, task, z) - target) ** 2, -1)
            total += config.reconstruction_weight * masked_mean(error, segments.agent_mask[:, :, None]) / len(batch)
        if config.centred:
            baseline = world_model.value(params, task, z[:, :, 0], m[:, :, 0])
            label = label - jax.lax.stop_gradient(baseline)
        x0 = jnp.concatenate([z, m], -1)[:, :, : world_model.config.horizon]
        g = config.encoder_diffusion_grad
        x0 = jax.lax.stop_gradient(x0) + g * (x0 - jax.lax.stop_gradient(x0)) if g else jax.lax.stop_gradient(x0)
        weight = segments.agent_mask.reshape(-1)
        encoded.append(
            EncodedTask(
                x0.reshape((-1,) + x0.shape[2:]),
                world_model.channel_mask(task),
                weight / jnp.maximum(weight.sum(), 1.0) / len(batch),
                label.reshape(-1),
            )
        )
        health = latent_health(z, segments.agent_mask)
        metrics |= {f"{task}/{k}": v for k, v in health.items()}
        metrics |= {f"{task}/inverse_dynamics": idm, f"{task}/value": value, f"{task}/action_value": action_value}

    sizes = [e.x0.shape[0] for e in encoded]
    x0 = jnp.concatenate([e.x0 for e in encoded])
    weight = jnp.concatenate([e.weight for e in encoded])
    label = jnp.concatenate([e.label for e in encoded])
    mask = jnp.concatenate([jnp.broadcast_to(e.channel_mask, (n, x0.shape[-1])) for e, n in zip(encoded, sizes)])
    indices = [jnp.full(n, world_model.task_index(task)) for task, n in zip(batch, sizes)]
    task_index = jnp.concatenate(indices).astype(jnp.int32)

    k = jax.random.randint(level_key, (x0.shape[0],), 0, schedule.num_steps)
    noise = jax.random.normal(noise_key, x0.shape)
    x_k = noised(x0, k, noise, schedule, mask)
    target = x0 if world_model.config.prediction == "x0" else noise * mask[:, None, :]
    prediction = world_model.predict(params, task_index, x_k, k) * mask[:, None, :]
    rows = row_weights(x0.shape[1], config.first_row_weight)
    per_channel = (prediction - target) ** 2 * rows[None, :, None]
    per_sequence = per_channel.sum((1, 2)) / (x0.shape[1] * mask.sum(-1))
    denoise = jnp.sum(per_sequence * weight)
    returns = classifier_loss(world_model, params, task_index, jax.lax.stop_gradient(x_k), k, label, weight)

    total += denoise + config.classifier_weight * returns
    for task, first, size in zip(batch, [sum(sizes[:i]) for i in range(len(sizes))], sizes):
        share = slice(first, first + size)
        metrics[f"{task}/denoise"] = jnp.sum(per_sequence[share] * weight[share]) * len(batch)
    return total, metrics | {"loss": total, "denoise": denoise, "return": returns}
