"""Packets of the three services: laws of gaps and sizes, and the arrivals of a window.

| slice | gap between packets (s) | packet size (bit) |
|---|---|---|
| VoLTE | U(0, 0.160) | 320 |
| video | min(0.006 X, 0.0125), X Lomax of shape 1.2 | min(800 Y, 2000), Y Lomax of shape 1.2 |
| URLLC | exponential, mean 0.180 | uniform over {6.4, 12.8, 19.2, 25.6, 32} x 8e3 ("small") or {0.3, ..., 0.7} x 8e6 ("large") |

A gap of g seconds is a whole number of slots, max(1, ceil(g / 0.5 ms)): the mean rates are 12.5, 160.4 and 5.55 packets
per user and second.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

VOLTE, VIDEO, URLLC = 0, 1, 2
SLICES = ("volte", "video", "urllc")
SLOTS_PER_S = 2000.0
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
    return jnp.where(slice_index == VOLTE, 320.0, jnp.where(slice_index == VIDEO, video, urllc))


def max_packets_per_window(num_slots: int, traffic_load: tuple[float, ...] = (1, 1, 1)) -> int:
    """Packets to draw per user and window: the mean of the busiest service plus 7 standard deviations (sd^2 < mean / 2).

    A user who would need more sends the next one at the start of the following window.
    """
    busiest = max(load * rate for load, rate in zip(traffic_load, RATE_PACKETS_PER_S, strict=True))
    mean = num_slots * busiest / SLOTS_PER_S
    return min(math.ceil(mean + 7 * math.sqrt(mean / 2)) + 2, num_slots)


def window_arrivals(
    timer_slots: jax.Array, period_slots: jax.Array, size_bits: jax.Array, num_slots: int
) -> tuple[jax.Array, jax.Array]:
    """Arrivals of one window: (sizes [S + 1, U] in bit, -1 where nothing arrives; timers [U] for the next window).

    timer_slots [U] counts the slots until a user's next packet (0: before the first slot); packet k has size_bits[k] and is
    followed by the next one after period_slots[k] ([K, U] both). Row s holds the packets that arrive before slot s; row S
    is empty. Arrivals do not depend on service, so they are known before the slot loop.
    """
    chex.assert_rank((timer_slots, period_slots, size_bits), (1, 2, 2))
    num_users = timer_slots.shape[0]
    ends = timer_slots[None, :] + _cumulative(period_slots)
    call = jnp.concatenate([timer_slots[None, :], ends[:-1]])
    rows = jnp.full((num_slots + 1, num_users), -1, size_bits.dtype)
    user = jnp.broadcast_to(jnp.arange(num_users)[None, :], call.shape)
    row = jnp.where(call < num_slots, call, num_slots + 1)  # out of bounds: dropped
    arrivals = rows.at[row, user].set(size_bits, mode="drop", unique_indices=False)
    upcoming = jnp.concatenate([call, ends[-1:]])
    num_arrived = (call < num_slots).sum(axis=0)
    following = jnp.take_along_axis(upcoming, num_arrived[None, :], axis=0)[0]
    return arrivals, jnp.maximum(following - num_slots, 0)


def _cumulative(x: jax.Array) -> jax.Array:
    """Running sum along axis 0 by doubling: log2(K) passes, many times faster than XLA's cumsum on CPU."""
    step = 1
    while step < x.shape[0]:
        x = x + jnp.concatenate([jnp.zeros_like(x[:step]), x[:-step]])
        step *= 2
    return x
