"""Geometry that the environments share: hexagonal cells and hop graphs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def hex_cells(num_cells: int, inter_site_m: float) -> np.ndarray:
    """Centres of a hexagonal layout with full rings around the origin, [num_cells, 2] in m.

    Order: the centre, then ring 1 at angles -30, 30, ..., 270 degrees, then the six corners of ring 2 (same angles,
    twice the distance), then the six edge middles of ring 2 (angles 0, 60, ..., 300 degrees, sqrt(3) times the
    distance).

    Raises ValueError for a number of cells other than 1, 7 or 19.
    """
    if num_cells not in (1, 7, 19):
        raise ValueError(f"num_cells must be 1, 7 or 19 (full hexagonal rings), got {num_cells}")
    odd = np.deg2rad(np.arange(6) * 60.0 - 30.0)
    even = np.deg2rad(np.arange(6) * 60.0)
    rings = [(1.0, odd), (2.0, odd), (np.sqrt(3.0), even)]
    points = [np.zeros((1, 2))] + [r * inter_site_m * np.stack([np.cos(a), np.sin(a)], -1) for r, a in rings]
    return np.concatenate(points)[:num_cells]


def hex_adjacency(centres_m: np.ndarray, inter_site_m: float) -> np.ndarray:
    """[N, N] float32: 1 where two different centres are one inter-site distance apart (1 % tolerance)."""
    distance_m = np.linalg.norm(centres_m[:, None] - centres_m[None, :], axis=-1)
    return (np.abs(distance_m - inter_site_m) < 0.01 * inter_site_m).astype(np.float32)


def within_two_hops(adjacency: jax.Array) -> jax.Array:
    """[..., N, N] float32 with zero diagonal: 1 where i != j are adjacent or share a neighbour."""
    reach = adjacency + jnp.matmul(adjacency, adjacency)
    off_diagonal = 1.0 - jnp.eye(adjacency.shape[-1], dtype=adjacency.dtype)
    return (reach > 0).astype(adjacency.dtype) * off_diagonal
