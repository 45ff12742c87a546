"""Decibels live in params and reports only; everything else is linear SI, converted once at entry."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def db_to_linear(value_db: jax.Array | float) -> jax.Array | float:
    """10^(x/10), a power ratio."""
    return 10.0 ** (value_db / 10.0)


def linear_to_db(ratio: jax.Array | float) -> jax.Array:
    """10 log10(x) of a power ratio."""
    return 10.0 * jnp.log10(ratio)


def dbm_to_mw(power_dbm: jax.Array | float) -> jax.Array | float:
    """Milliwatts from dBm."""
    return db_to_linear(power_dbm)
