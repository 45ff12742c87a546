"""Noise that an inverse model knows of: levels s drawn in training, one chosen when plans are decoded.

The next latent (or observation) is disturbed by s u eps, u [D] the unit of its channels. Told s, one model learns
p(action | present, next) for every precision of "next": at small s it reads the action off the plan, at large s it is a
clone of the behaviour.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

NOISE_LEVELS = (0.1, 10.0)  # smallest and largest s


def draw_levels(key: chex.PRNGKey, shape: tuple[int, ...]) -> jax.Array:
    """s, uniform in log s over `NOISE_LEVELS`."""
    low, high = np.log(NOISE_LEVELS)
    return jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))


def disturb(key: chex.PRNGKey, values: jax.Array, unit: jax.Array, noise: float | None) -> tuple[jax.Array, jax.Array]:
    """(values + s u eps, s): values [..., D], unit u [D], s [...] = `noise`, or drawn from all levels if it is None."""
    if noise is None:
        key, level_key = jax.random.split(key)
        level = draw_levels(level_key, values.shape[:-1])
    else:
        level = jnp.full(values.shape[:-1], noise)
    std = level[..., None] * jnp.expand_dims(unit, range(values.ndim - 1))
    return values + std * jax.random.normal(key, values.shape), level


def inputs_at_level(disturbed: jax.Array, level: jax.Array, unit: jax.Array) -> jax.Array:
    """[..., D + 1]: disturbed [..., D] / sqrt(1 + s^2 u^2), of unit variance whatever the noise, and log10 s.

    Args:
      disturbed: standardised values with noise of standard deviation s u.
      level: s, broadcast over the leading axes.
      unit: [D] u.
    """
    level = jnp.broadcast_to(level, disturbed.shape[:-1])[..., None]
    std = level * jnp.expand_dims(unit, range(disturbed.ndim - 1))
    return jnp.concatenate([disturbed * jax.lax.rsqrt(1 + std**2), jnp.log10(level)], axis=-1)
