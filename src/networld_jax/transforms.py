"""Symlog, symexp and two-hot distributions over bins (Hafner et al. 2023, "Mastering diverse domains through world
models").

A scalar y becomes weights on the two bins around it, linear in raw space, and is read back as the raw-space mean, so
the round trip is exact inside the bins. Weights in symlog space with a raw-space mean would be biased upwards
(Jensen).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def symlog(x: jax.Array) -> jax.Array:
    """sign(x) log(1 + |x|), elementwise: compresses large magnitudes, identity to first order near 0."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """sign(x) (exp|x| - 1), elementwise: the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def host_symlog(x: np.ndarray) -> np.ndarray:
    """`symlog` in NumPy and in the precision of x: constants are measured on the host in float64."""
    return np.sign(x) * np.log1p(np.abs(x))


def host_symexp(x: np.ndarray) -> np.ndarray:
    """`symexp` in NumPy and in the precision of x."""
    return np.sign(x) * np.expm1(np.abs(x))


def symexp_bins(low: ArrayLike, high: ArrayLike, num_bins: int) -> jax.Array:
    """Bins from `low` to `high`, evenly spaced in symlog space.

    Args:
      low, high: range in raw units, scalars or arrays [...] of one range per quantity.
      num_bins: M >= 2.

    Returns:
      bins [..., M], ascending, in raw units. Where low = -high they mirror exactly, so that uniform logits decode to 0.

    Raises:
      ValueError: fewer than two bins, or low >= high anywhere.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if num_bins < 2:
        raise ValueError(f"num_bins must be at least 2, got {num_bins}")
    if not np.all(low < high):
        raise ValueError(f"low must be below high everywhere, got low={low}, high={high}; widen constant ranges first")
    grid = np.linspace(host_symlog(low), host_symlog(high), num_bins, axis=-1)
    mirrored = (grid - grid[..., ::-1]) / 2
    grid = np.where((low == -high)[..., None], mirrored, grid)
    return jnp.asarray(host_symexp(grid), jnp.float32)


def data_bins(low: ArrayLike, high: ArrayLike, num_bins: int) -> jax.Array:
    """Bins for data known to lie in [low, high]: `symexp_bins` with one spare bin beyond each end.

    The spare bins let a network place its mean on the very ends of the range; bins much wider than the data would leak
    probability to huge values. A constant quantity (low = high) gets a range of +-1/2 in symlog space.

    Args:
      low, high: smallest and largest value in the data, scalars or arrays [...].
      num_bins: M >= 4.

    Returns:
      bins [..., M], float32.
    """
    if num_bins < 4:
        raise ValueError(f"num_bins must be at least 4 (two of them are spare), got {num_bins}")
    low, high = (host_symlog(np.asarray(end, np.float64)) for end in (low, high))
    margin = np.where(low == high, 0.5, (high - low) / (num_bins - 3))
    return symexp_bins(host_symexp(low - margin), host_symexp(high + margin), num_bins)


def two_hot(y: jax.Array, bins: jax.Array) -> jax.Array:
    """Weights on the two bins around each value.

    With b_i <= y < b_{i+1}: w_i = (b_{i+1} - y) / (b_{i+1} - b_i), w_{i+1} = 1 - w_i. A value outside the bins puts
    all its weight on the nearest end; NaN stays NaN.

    Args:
      y: values [...], raw units.
      bins: ascending [M]; `jax.vmap` over both for bins per dimension.

    Returns:
      weights [..., M], nonnegative, each row sums to 1 with at most two adjacent nonzeros.
    """
    chex.assert_rank(bins, 1)
    num_bins = bins.shape[0]
    num_at_or_below = jnp.searchsorted(bins, y, side="right", method="compare_all")
    below = jnp.clip(num_at_or_below - 1, 0, num_bins - 1)
    above = jnp.clip(num_at_or_below, 0, num_bins - 1)
    is_saturated = below == above
    width = jnp.where(is_saturated, 1.0, bins[above] - bins[below])
    weight_below = jnp.where(is_saturated, 1.0, (bins[above] - y) / width)
    weight_below = jnp.where(jnp.isnan(y), y, weight_below)[..., None]
    one_hot_below, one_hot_above = (jax.nn.one_hot(i, num_bins, dtype=bins.dtype) for i in (below, above))
    return weight_below * one_hot_below + (1.0 - weight_below) * one_hot_above


def from_two_hot(logits: jax.Array, bins: jax.Array) -> jax.Array:
    """Mean of the bins under softmax(logits), in raw units: sum_m p_m b_m.

    Mirror pairs are added first, so that over symmetric bins uniform logits give exactly 0 however large the bins are.

    Args:
      logits: [..., M]; computed in at least float32.
      bins: [M].

    Returns:
      values [...].
    """
    chex.assert_rank(bins, 1)
    chex.assert_axis_dimension(logits, -1, bins.shape[0])
    half, is_odd = divmod(bins.shape[0], 2)
    bins = jnp.expand_dims(bins, range(logits.ndim - 1))
    terms = jax.nn.softmax(_at_least_float32(logits), axis=-1) * bins
    pairs = terms[..., :half] + terms[..., ::-1][..., :half]
    middle = terms[..., half] if is_odd else 0.0
    return pairs.sum(-1) + middle


def two_hot_cross_entropy(logits: jax.Array, y: jax.Array, bins: jax.Array) -> jax.Array:
    """-sum_m two_hot(y)_m log softmax(logits)_m, with no gradient to `y`.

    Args:
      logits: [..., M]; computed in at least float32.
      y: values [...], raw units.
      bins: [M].

    Returns:
      nats [...].
    """
    chex.assert_equal_shape_prefix([logits, y], y.ndim)
    target = jax.lax.stop_gradient(two_hot(y, bins))
    return -(target * jax.nn.log_softmax(_at_least_float32(logits), axis=-1)).sum(-1)


def component_cross_entropy(logits: jax.Array, y: jax.Array, bins: jax.Array) -> jax.Array:
    """`two_hot_cross_entropy` of every component over bins of its own: logits [..., C, M], y [..., C], bins [C, M] ->
    nats [..., C]."""
    return jax.vmap(two_hot_cross_entropy, in_axes=(-2, -1, 0), out_axes=-1)(logits, y, bins)


def component_means(logits: jax.Array, bins: jax.Array) -> jax.Array:
    """`from_two_hot` of every component over bins of its own: logits [..., C, M], bins [C, M] -> [..., C]."""
    return jax.vmap(from_two_hot, in_axes=(-2, 0), out_axes=-1)(logits, bins)


def component_draws(key: jax.Array, logits: jax.Array, bins: jax.Array) -> jax.Array:
    """One bin of every component, drawn with probability softmax(logits): logits [..., C, M], bins [C, M] -> [..., C].

    The bin in which a uniform number falls on the cumulative distribution: one random number per component, where
    `jax.random.categorical` takes M and their logarithms (12 times as long on a CPU at M = 26).
    """
    num_components, num_bins = bins.shape
    probability = jax.nn.softmax(_at_least_float32(logits), axis=-1)
    up_to = jnp.matmul(probability, jnp.triu(jnp.ones((num_bins, num_bins))), precision="highest")
    uniform = jax.random.uniform(key, logits.shape[:-1]) * up_to[..., -1]
    index = (up_to[..., :-1] <= uniform[..., None]).sum(-1)
    return bins[jnp.arange(num_components), index]


def straight_through(exact: jax.Array, smooth: jax.Array) -> jax.Array:
    """The value of `exact` with the gradient of `smooth` (rounding, quantising, drawing)."""
    return smooth + jax.lax.stop_gradient(exact - smooth)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
