"""What beams do to each other in one slot: received powers, rates, the local reward, prices and leakage.

Normalised units throughout: channels are H sqrt(P_max / noise), beams have |w| <= 1, the noise power is 1. Index order
is [base station i, user j]; the received amplitude is the plain product h_ij^T w_i (no conjugate).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs.channel import squared_magnitude


@struct.dataclass
class Links:
    """Link quantities of one slot on (H, w)."""

    gain: jax.Array  # [N, N] |h_ij^T direction_i|^2, times the maximum SNR
    received: jax.Array  # [N, N] r_ij = power_i gain_ij, in units of the noise power
    wanted: jax.Array  # [N] d_n = r_nn
    interference: jax.Array  # [N] IN_n = 1 + sum_{i != n} r_in, noise included
    rate: jax.Array  # [N] C_n = log2(1 + d_n / IN_n), bit/s/Hz


def off_diagonal(matrix: jax.Array) -> jax.Array:
    """[N, N] with zeros on the diagonal."""
    return jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), 0.0, matrix)


def own(matrix: jax.Array) -> jax.Array:
    """Entries [n, n, ...] of [N, N, ...] as [N, ...]: each agent's own link."""
    index = jnp.arange(matrix.shape[0])
    return matrix[index, index]


def received_amplitude(channel: jax.Array, beam: jax.Array) -> jax.Array:
    """h_ij^T w_i: [N, N, K] and [N, K] to [N, N]. Multiply-and-sum keeps full precision on every backend."""
    return sum(channel[..., k] * beam[:, None, k] for k in range(beam.shape[-1]))


def link_quantities(channel: jax.Array, direction: jax.Array, power: jax.Array) -> Links:
    """Powers and rates under beams sqrt(power_i) direction_i.

    Args: channel [N, N, K] complex, direction [N, K] complex unit beams (or zero), power [N] as a fraction of P_max.
    """
    chex.assert_rank([channel, direction, power], [3, 2, 1])
    gain = squared_magnitude(received_amplitude(channel, direction))
    received = power[:, None] * gain
    wanted = own(received)
    interference = 1.0 + jnp.sum(off_diagonal(received), axis=0)
    return Links(gain, received, wanted, interference, jnp.log2(1.0 + wanted / interference))


def strongest(received: jax.Array, num: int) -> jax.Array:
    """Indices [N, num] of the largest off-diagonal entries of each row, falling; ties go to the lower index."""
    eye = jnp.eye(received.shape[-1], dtype=bool)
    return jax.lax.top_k(jnp.where(eye, -1.0, received), num)[1]


def ranks(received: jax.Array) -> jax.Array:
    """[N, N] int32: place of every entry in its row's falling order, ties to the lower index, the diagonal last.

    By comparing all pairs: for rows of this length several times faster than a sort, and it stays on vector units.
    """
    num = received.shape[-1]
    values = jnp.where(jnp.eye(num, dtype=bool), -1.0, received)
    mine, other = values[:, :, None], values[:, None, :]
    earlier = jnp.asarray(np.tri(num, num, -1, dtype=bool))[None]  # [k, j]: j < k
    return jnp.sum(((other > mine) | ((other == mine) & earlier)).astype(jnp.int32), axis=-1)


def interference_without(received: jax.Array) -> jax.Array:
    """[n, k]: noise + interference at user k if base station n were silent, 1 + sum_{i != n, k} r_ik.

    Summed without n rather than subtracted from the total, which would cancel in float32.
    """
    others = 1.0 - jnp.eye(received.shape[-1], dtype=received.dtype)
    return 1.0 + jnp.matmul(others, off_diagonal(received), precision=jax.lax.Precision.HIGHEST)


def local_reward(links: Links, num_neighbours: int) -> jax.Array:
    """r_n = C_n - sum_{k in O_n} [log2(1 + d_k / (IN_k - r_nk)) - C_k], [N] bit/s/Hz.

    O_n are the `num_neighbours` other users that receive most power from base station n. The bracket is what user k
    would gain if n were silent: >= 0, and exactly 0 for a silent base station.
    """
    without = interference_without(links.received)
    loss = jnp.log2(1.0 + links.wanted[None, :] / without) - links.rate[None, :]
    counted = (ranks(links.received) < num_neighbours) & (links.received > 0)
    return links.rate - jnp.sum(jnp.where(counted, loss, 0.0), axis=1)


def interference_price(wanted: jax.Array, interference: jax.Array) -> jax.Array:
    """a_k = d_k / (IN_k (IN_k + d_k)) = -dC_k/dIN_k ln 2: what a unit of interference costs user k. The one scalar per
    cell that goes over the backhaul."""
    return wanted / (interference * (interference + wanted))


def leakage_matrices(channel: jax.Array, price: jax.Array, victims: jax.Array) -> jax.Array:
    """A_n = sum_k victims_nk a_k h_nk^* h_nk^T, [N, K, K] Hermitian: w^H A_n w is the priced leakage of beam w of n.

    Args: channel [N, N, K], price [N], victims [N, N] weights (1 = counted).
    """
    weighted = channel * jnp.sqrt(victims * price[None, :])[..., None]
    num_antennas = channel.shape[-1]

    def entry(p: int, q: int) -> jax.Array:
        return jnp.sum(weighted[..., p].conj() * weighted[..., q], axis=1)

    upper = {(p, q): entry(p, q) for p in range(num_antennas) for q in range(p, num_antennas)}
    rows = [
        jnp.stack([upper[p, q] if p <= q else upper[q, p].conj() for q in range(num_antennas)], axis=-1)
        for p in range(num_antennas)
    ]
    return jnp.stack(rows, axis=-2)


def unit(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(direction, squared norm) of [..., K]: direction is zero where the vector is; finite gradients at 0.

    Scaled by the largest component first: a nearly silent beam keeps its direction after its power has underflowed.
    """
    largest = jnp.max(jnp.maximum(jnp.abs(vector.real), jnp.abs(vector.imag)), axis=-1)
    scale = jnp.where(largest > 0, largest, 1.0)
    # Part by part: complex division squares its denominator, which underflows as well.
    scaled = jax.lax.complex(vector.real / scale[..., None], vector.imag / scale[..., None])
    squared = jnp.sum(squared_magnitude(scaled), axis=-1)
    safe = jnp.where(squared > 0, squared, 1.0)
    return scaled * jax.lax.rsqrt(safe)[..., None], squared * scale**2


def canonical_phase(vector: jax.Array) -> jax.Array:
    """[..., K] rotated by a common phase so that antenna 0 is real and >= 0. No rate, reward or observation depends on
    that phase, so no model could infer it. Left alone where antenna 0 is silent."""
    power = squared_magnitude(vector[..., 0])
    rotation = vector[..., 0].conj() * jax.lax.rsqrt(jnp.where(power > 0, power, 1.0))
    rotated = vector * jnp.where(power > 0, rotation, 1.0)[..., None]
    first = jax.lax.complex(rotated[..., :1].real, jnp.zeros_like(rotated[..., :1].real))
    first = jnp.where((power > 0)[..., None], first, rotated[..., :1])
    return jnp.concatenate([first, rotated[..., 1:]], axis=-1)
