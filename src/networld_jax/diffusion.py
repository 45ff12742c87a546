"""Diffusion maths on arrays: noising, the posterior, the loss. No networks and no randomness (noise is an argument).

x [..., H, C] is a trajectory of H steps and C channels, k [...] its int32 diffusion step (same leading axes, or fewer:
k [B] also goes with x [B, N, H, C]).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from networld_jax.schedules import NoiseSchedule


def q_sample(x0: jax.Array, k: jax.Array, noise: jax.Array, schedule: NoiseSchedule) -> jax.Array:
    """A draw of q(x_k | x0) from standard normal `noise`: signal_k x0 + sigma_k noise."""
    chex.assert_equal_shape([x0, noise])
    return _at(schedule.signal, k, x0) * x0 + _at(schedule.sigma, k, x0) * noise


def predict_x0(x: jax.Array, k: jax.Array, noise: jax.Array, schedule: NoiseSchedule) -> jax.Array:
    """x0 implied by x = x_k and a noise prediction: (x - sigma_k noise) / signal_k."""
    chex.assert_equal_shape([x, noise])
    return (x - _at(schedule.sigma, k, x) * noise) / _at(schedule.signal, k, x)


def predict_noise(x: jax.Array, k: jax.Array, x0: jax.Array, schedule: NoiseSchedule) -> jax.Array:
    """Noise implied by x = x_k and an x0 prediction: (x - signal_k x0) / sigma_k."""
    chex.assert_equal_shape([x, x0])
    return (x - _at(schedule.signal, k, x) * x0) / _at(schedule.sigma, k, x)


def posterior(x0: jax.Array, x: jax.Array, k: jax.Array, schedule: NoiseSchedule) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance of q(x_{k-1} | x_k = x, x0) (Ho et al. 2020, eqs. 6 and 7).

    Returns:
      mean like x, and log variance with size-1 axes in place of H and C (log 1e-20 at k = 0, where the variance is 0).
    """
    chex.assert_equal_shape([x0, x])
    mean = _at(schedule.posterior_mean_coef1, k, x) * x0 + _at(schedule.posterior_mean_coef2, k, x) * x
    return mean, _at(schedule.posterior_log_variance_clipped, k, x)


def loss_weights(
    horizon: int,
    num_channels: int,
    *,
    discount: float = 1.0,
    first_row_weight: float = 0.0,
    next_row_weight: float = 1.0,
    channel_mask: jax.Array | None = None,
) -> jax.Array:
    """Weights [H, C] of the denoising loss.

    Row h has discount^h, normalised to mean 1 over the horizon. Row 0 is given to the sampler and never predicted:
    weight 0 by default. Row 1, the one the inverse dynamics reads, is multiplied by `next_row_weight`.

    Args:
      horizon, num_channels: H, C.
      discount: in (0, 1].
      first_row_weight: replaces the weight of row 0.
      next_row_weight: multiplies the weight of row 1.
      channel_mask: [C] 1 = live, 0 = padding; live channels are scaled up so that the loss stays a mean over them.
    """
    rows = jnp.power(jnp.float32(discount), jnp.arange(horizon, dtype=jnp.float32))
    rows = (rows / rows.mean()).at[0].set(first_row_weight)
    if horizon > 1:
        rows = rows.at[1].multiply(next_row_weight)
    if channel_mask is None:
        return jnp.broadcast_to(rows[:, None], (horizon, num_channels))
    chex.assert_shape(channel_mask, (num_channels,))
    return rows[:, None] * (channel_mask * num_channels / channel_mask.sum())[None, :]


def denoising_loss(prediction: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted squared error of each trajectory: mean over H and C of weights (prediction - target)^2.

    Args:
      prediction, target: [..., H, C].
      weights: [H, C], see `loss_weights`. Entries with weight 0 (the clamped first row, padded channels) receive no
        gradient.

    Returns:
      loss [...], one per trajectory, so that absent agents can be masked by the caller.
    """
    chex.assert_equal_shape([prediction, target])
    chex.assert_shape(weights, prediction.shape[-2:])
    weights = jnp.expand_dims(weights, range(prediction.ndim - 2))
    return (weights * jnp.square(prediction - target)).mean((-2, -1))


def _at(coefficients: jax.Array, k: jax.Array, x: jax.Array) -> jax.Array:
    """coefficients [K] at k [...], with trailing size-1 axes up to the rank of x [..., H, C]."""
    chex.assert_equal_shape_prefix([k, x], k.ndim)
    return jnp.expand_dims(coefficients[k], range(k.ndim, x.ndim))
