"""1-hop mean field: the one message per agent and step that NetWorld exchanges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

DENSE_MAX_AGENTS = 128
"""Graphs of more agents are kept as neighbour lists (`make_graph`): their N x N matrix costs more time and memory."""


@struct.dataclass
class Neighbours:
    """A graph as lists, N x K numbers instead of N x N. K is the largest degree; shorter lists are padded."""

    index: jax.Array  # [..., N, K] int32 neighbours of each agent; any valid index where the weight is 0
    weight: jax.Array  # [..., N, K] float32 in [0, 1], 0 = padding or a lost message


Graph = jax.Array | Neighbours
"""Who hears whom: a matrix [..., N, N] with zero diagonal, or lists."""


def mean_field(z: jax.Array, adjacency: Graph) -> jax.Array:
    """Average of the neighbours' latents, m_i = sum_j A_ij z_j / max(1, sum_j A_ij).

    Args:
      z: [..., N, D] latents; rows of absent agents are ignored because their adjacency is zero.
      adjacency: [..., N, N], zero diagonal; weights in [0, 1] are allowed (lost messages). Or `Neighbours`.

    Returns [..., N, D]; zeros for an agent without neighbours. Source: NetWorld, section III; Yang et al. 2018.
    """
    if isinstance(adjacency, Neighbours):
        return mean_field_from_neighbours(z, adjacency.index, adjacency.weight)
    if adjacency.shape[-2:] != (z.shape[-2], z.shape[-2]):
        raise ValueError(f"adjacency must end in [N, N] = {(z.shape[-2],) * 2}, got {adjacency.shape[-2:]}")
    degree = jnp.sum(adjacency, axis=-1, keepdims=True)
    return jnp.matmul(adjacency, z) / jnp.maximum(degree, 1.0).astype(z.dtype)


def mean_field_from_neighbours(z: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """`mean_field` with neighbour lists, equal to the dense form up to the order of the sum; linear in N.

    Args:
      z: [..., N, D].
      index, weight: [N, K], one graph for all leading axes of z, or [..., N, K] with the leading axes of z.

    Raises ValueError when the shapes disagree.
    """
    if index.shape != weight.shape or index.shape[-2] != z.shape[-2] or index.shape[:-2] not in ((), z.shape[:-2]):
        raise ValueError(
            f"index and weight must be [N, K] or [..., N, K] for z {z.shape}, got {index.shape} and {weight.shape}"
        )
    per_graph = _mean_of_lists
    if index.ndim == 2:
        for _ in z.shape[:-2]:
            per_graph = jax.vmap(per_graph, in_axes=(0, None, None))
    else:
        for _ in z.shape[:-2]:
            per_graph = jax.vmap(per_graph)
    return per_graph(z, index, weight)


def _mean_of_lists(z: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
    """[N, D] from z [N, D], index and weight [N, K]."""
    total = jnp.sum(z[index] * weight[:, :, None].astype(z.dtype), axis=1)
    return total / jnp.maximum(jnp.sum(weight, axis=-1, keepdims=True), 1.0).astype(z.dtype)


def quantise(z: jax.Array, num_bits: int, limit: float) -> jax.Array:
    """Uniform mid-tread quantiser of [-limit, limit] with 2**num_bits - 1 levels; 0 bits = off."""
    if not num_bits:
        return z
    half = 2 ** (num_bits - 1) - 1
    return jnp.round(jnp.clip(z / limit, -1.0, 1.0) * half) * (limit / half)


# ---------------------------------------------------------------------------------------------------- graphs


def neighbour_lists(adjacency: np.ndarray, max_degree: int | None = None) -> Neighbours:
    """Lists of a [N, N] graph on the host. K is `max_degree`, by default the largest degree (at least 1).

    Raises ValueError when an agent has more neighbours than `max_degree`.
    """
    adjacency = np.asarray(adjacency)
    edges = np.argwhere(adjacency > 0)
    return neighbours_from_edges(edges, len(adjacency), max_degree, adjacency[tuple(edges.T)])


def neighbours_from_edges(
    edges: np.ndarray, num_agents: int, max_degree: int | None = None, weight: np.ndarray | None = None
) -> Neighbours:
    """Lists of directed edges [E, 2] = (hearer, heard) on the host, without ever forming N x N numbers.

    Args:
      max_degree: K (default: the largest degree, at least 1). A fixed K keeps one compiled program for many graphs.
      weight: [E] (default: ones).

    Raises ValueError for an agent outside 0..N-1, an agent that hears itself, a repeated edge, or a degree above K.
    """
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    if edges.size and (edges.min() < 0 or edges.max() >= num_agents):
        raise ValueError(f"edges must name agents 0..{num_agents - 1}, got {edges.min()}..{edges.max()}")
    if np.any(edges[:, 0] == edges[:, 1]):
        raise ValueError(f"agent {edges[edges[:, 0] == edges[:, 1]][0, 0]} is its own neighbour; remove that edge")
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    hearer, heard = edges[order].T
    if np.any((np.diff(hearer) == 0) & (np.diff(heard) == 0)):
        raise ValueError("edges must be given once each, got a repeated one")
    degree = np.bincount(hearer, minlength=num_agents)
    largest = max(int(degree.max(initial=0)), 1)
    size = largest if max_degree is None else max_degree
    if largest > size:
        raise ValueError(f"agent {degree.argmax()} has {largest} neighbours, max_degree is {size}; raise max_degree")
    place = np.arange(len(hearer)) - np.repeat(np.cumsum(degree) - degree, degree)
    index, values = np.zeros((num_agents, size), np.int32), np.zeros((num_agents, size), np.float32)
    index[hearer, place] = heard
    values[hearer, place] = 1.0 if weight is None else np.asarray(weight)[order]
    return Neighbours(index, values)


def make_graph(
    edges: np.ndarray, num_agents: int, max_degree: int | None = None, dense_max_agents: int = DENSE_MAX_AGENTS
) -> np.ndarray | Neighbours:
    """The cheaper form of a graph: a matrix up to `dense_max_agents` agents, lists beyond. See
    `neighbours_from_edges`."""
    lists = neighbours_from_edges(edges, num_agents, max_degree)
    if num_agents > dense_max_agents:
        return lists
    dense = np.zeros((num_agents, num_agents), np.float32)
    hearer, place = np.nonzero(lists.weight)
    dense[hearer, lists.index[hearer, place]] = lists.weight[hearer, place]
    return dense
