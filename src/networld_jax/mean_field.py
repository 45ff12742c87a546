"""1-hop mean field: the one message per agent and step that NetWorld exchanges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def mean_field(z: jax.Array, adjacency: jax.Array) -> jax.Array:
    """Average of the neighbours' latents, m_i = sum_j A_ij z_j / max(1, sum_j A_ij).

    Args:
      z: [..., N, D] latents; rows of absent agents are ignored because their adjacency is zero.
      adjacency: [..., N, N], zero diagonal; weights in [0, 1] are allowed (lost messages).

    Returns [..., N, D]; zeros for an agent without neighbours. Source: NetWorld, section III; Yang et al. 2018.
    """
    if adjacency.shape[-2:] != (z.shape[-2], z.shape[-2]):
        raise ValueError(f"adjacency must end in [N, N] = {(z.shape[-2],) * 2}, got {adjacency.shape[-2:]}")
    degree = jnp.sum(adjacency, axis=-1, keepdims=True)
    return jnp.matmul(adjacency, z) / jnp.maximum(degree, 1.0).astype(z.dtype)


def neighbour_lists(adjacency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index form of a [N, N] graph: (index [N, max_degree] int32, weight [N, max_degree] float32, 0 = padding)."""
    degree = int(max(1, (adjacency > 0).sum(-1).max()))
    index = np.argsort(-adjacency, axis=-1, kind="stable")[:, :degree].astype(np.int32)
    return index, np.take_along_axis(adjacency, index, axis=-1).astype(np.float32)


def mean_field_from_lists(z: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """`mean_field` with neighbour lists: memory N x max_degree instead of N x N, for large N.

    Args: z [..., N, D]; index, weight [N, max_degree] from `neighbour_lists`.
    """
    gathered = jnp.take(z, index, axis=-2)  # [..., N, max_degree, D]
    total = jnp.sum(gathered * jnp.expand_dims(weight, tuple(range(z.ndim - 2)) + (-1,)), axis=-2)
    return total / jnp.maximum(weight.sum(-1), 1.0)[(None,) * (z.ndim - 2) + (slice(None), None)].astype(z.dtype)
