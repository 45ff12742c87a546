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
    own = own_return(segments, discount)
    spread = own / (1.0 + segments.adjacency.sum(-1))
    return spread + jnp.einsum("bij,bj->bi", segments.adjacency, spread)


LABELS: dict[str, Callable[[Segments, float], jax.Array]] = {"own": own_return, "neighbourhood": neighbourhood_return}
