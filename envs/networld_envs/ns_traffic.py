"""Packets of the three services: laws of gaps and sizes, and the arrivals of a window.

| slice | gap between packets (s) | packet size (bit) |
|---|---|---|
| VoLTE | U(0, 0.160) | 320 |
| video | min(0.006 X, 0.0125), X Lomax of shape 1.2 | min(800 Y, 2000), Y Lomax of shape 1.2 |
| URLLC | exponential, mean 0.180 | one of {6.4, 12.8, ..., 32} x 8e3 ("small"), {0.3, ..., 0.7} x 8e6 ("large") |

A gap of g seconds is a whole number of slots, max(1, ceil(g / 0.5 ms)): the mean rates are 12.5, 160.4 and 5.55 packets
per user and second.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

VOLTE, VIDEO, URLLC = 0, 1, 2
SLICES = ("volte", "video", "urllc")
SLOTS_PER_S = 2000.0
VOLTE_BITS = 320.0
URLLC_BITS = {
    "small": tuple(8e3 * x for x in (6.4, 12.8, 19.2, 25.6, 32.0)),
    "large": tuple(8e6 * x for x in (0.3, 0.4, 0.5, 0.6, 0.7)),
}
RATE_PACKETS_PER_S = (2000.0 / 160.5, 160.4, 5.55)
_LOMAX_SHAPE = 1.2


def _lomax(uniform: jax.Array) -> jax.Array:
    """Lomax of shape 1.2 and scale 1 by inversion, uniform in [0, 1): (1 - u)^(-1/1.2) - 1."""
    return jnp.expm1(jnp.log1p(-uniform) * (-1 / _LOMAX_SHAPE))


def gap_slots(slice_index: jax.Array, uniform: jax.Array, traffic_load: tuple[float, ...] = (1, 1, 1)) -> jax.Array:
    """Slots (int32, at least 1) until a user's next packet; slice_index and uniform in [0, 1) of one shape.

    `traffic_load` divides the gaps of each slice.

    Computed in slots, not seconds, so that the cap of 12.5 ms is 25 slots in any precision.
    """
    chex.assert_equal_shape((slice_index, uniform))
    volte = uniform * (0.160 * SLOTS_PER_S)
    video = jnp.minimum(0.006 * SLOTS_PER_S * _lomax(uniform), 0.0125 * SLOTS_PER_S)
    urllc = -0.180 * SLOTS_PER_S * jnp.log1p(-uniform)
    volte, video, urllc = (gap / load for gap, load in zip((volte, video, urllc), traffic_load, strict=True))
    gap = jnp.where(slice_index == VOLTE, volte, jnp.where(slice_index == VIDEO, video, urllc))
    return jnp.maximum(jnp.ceil(gap), 1).astype(jnp.int32)


def packet_bits(slice_index: jax.Array, uniform: jax.Array, urllc_size: str) -> jax.Array:
    """Packet sizes in bit; slice_index and uniform in [0, 1) of one shape."""
    chex.assert_equal_shape((slice_index, uniform))
    video = jnp.minimum(800 * _lomax(uniform), 2000)
    sizes = URLLC_BITS[urllc_size]
    choice = jnp.floor(uniform * len(sizes))
    urllc = sizes[0] + choice * ((sizes[-1] - sizes[0]) / (len(sizes) - 1))  # the five sizes are equally spaced
    return jnp.where(slice_index == VOLTE, VOLTE_BITS, jnp.where(slice_index == VIDEO, video, urllc))


def packet_uniforms(words: jax.Array, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Uniforms in (0, 1), (i + 1/2) / 2^16, out of the halves of random uint32 words: for the gap, for the size."""
    halves = (words & 0xFFFF, words >> 16)
    gap_uniform, size_uniform = ((half.astype(dtype) + 0.5) / 65536 for half in halves)
    return gap_uniform, size_uniform


def packet_tables(traffic_load: tuple[float, ...], urllc_size: str, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    """(gap in slots, size in bit) [3 * 65536] by slice_index * 65536 + half word: every packet there can be.

    Arguments are static, so this is evaluated once, when a program is traced, and stands in it as two constants.
    """
    with jax.ensure_compile_time_eval():
        every = jnp.tile(jnp.arange(1 << 16, dtype=jnp.uint32), 3)
        slice_index = jnp.repeat(jnp.arange(3), 1 << 16)
        uniform, _ = packet_uniforms(every, dtype)
        return gap_slots(slice_index, uniform, traffic_load), packet_bits(slice_index, uniform, urllc_size)
