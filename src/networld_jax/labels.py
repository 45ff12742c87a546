"""Return labels: what the classifier learns and guidance raises. Pure functions Segments -> returns [B, N]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from networld_jax.types import Segments


def own_return(segments: Segments, discount: float) -> jax.Array:
    """R_i = sum_{h<H} gamma^h r_i(t+h), [B, N]."""
    horizon = segments.reward.shape[-1]
    return segments.reward @ (discount ** jnp.arange(horizon, dtype=segments.reward.dtype))


def neighbourhood_return(segments: Segments, discount: float) -> jax.Array:
    """R_i = sum over the closed 1-hop neighbourhood of own_return_j / (1 + degree_j), [B, N].

    Every agent spreads its return evenly over its closed neighbourhood, so the labels of all agents sum to the team's
    return: an agent that gains at its neighbours' cost sees the cost.
    """
    return spread_over_neighbourhood(own_return(segments, discount), segments.adjacency)


def spread_over_neighbourhood(values: jax.Array, adjacency: jax.Array) -> jax.Array:
    """[..., N] -> [..., N]: every agent's value split evenly over its closed 1-hop neighbourhood; the sum is kept."""
    share = values / (1.0 + adjacency.sum(-1))
    return share + jnp.matmul(adjacency, share[..., None])[..., 0]


LABELS: dict[str, Callable[[Segments, float], jax.Array]] = {"own": own_return, "neighbourhood": neighbourhood_return}
