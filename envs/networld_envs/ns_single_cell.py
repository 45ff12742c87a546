"""The published single-cell simulators of network slicing, window by window, to the integer.

`gan`: GAN-DDQN (Hua et al., IEEE JSAC 38(2), 2020; users stand still). `mobile`: the LSTM-A2C lineage (Li et al., IEEE
Comm. Lett. 24(9), 2020; users move and are served inside one cell). Both wipe queues at window starts and generate
packets from per-user timers inside the slot loop; they differ in

| | gan | mobile |
|---|---|---|
| spare RBs | active ids in the window [p, p + r) | the first r active ids from p on |
| service | a finished packet costs bits of the rate | of the slot's bit budget |
| full queue | the arrival waits and is retried | the packet is dropped and counted |
| period of a gap of m slots | m + 1 | m |
| arrival calls per window of S slots | S | S + 1 |
| latency limits (slots) | 19, 19, 5 | 19, 19, 1 |
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from networld_envs import ns_slots as slots
from networld_envs.ns_slots import WORD, SlotRules, SlotTrace


class Fidelity(NamedTuple):
    """One published simulator. Hashable."""

    rules: SlotRules
    blocks_when_full: bool  # an arrival at a full queue is retried in the next call, else dropped
    counts_down_always: bool  # a timer runs also in the call that re-arms it
    has_last_call: bool  # arrivals after a window's last slot


FIDELITY = {
    "gan": Fidelity(SlotRules((19, 19, 5), remainder_by_id=True, leaking_budget=True), True, False, False),
    "mobile": Fidelity(SlotRules((19, 19, 1)), False, True, True),
}


@struct.dataclass
class PacketStream:
    """Packets in the order in which a user generates them."""

    size_bits: jax.Array  # [K, U]
    period_slots: jax.Array  # [K, U] int32 re-arms the timer when packet k joins the queue
    period_if_dropped_slots: jax.Array  # [K, U] int32 re-arms it when packet k is dropped


@struct.dataclass
class Timers:
    """Where each user is in its stream."""

    slots_left: jax.Array  # [U] int32 a packet is due when <= 0
    packet_index: jax.Array  # [U] int32


@struct.dataclass
class SingleCellWindow:
    """Results of a window, users in order of id."""

    admitted: jax.Array  # [3] int32 packets that joined a queue
    dropped: jax.Array  # [3] int32
    succeeded: jax.Array  # [3] int32 finished within the SLA
    timers: Timers
    pointer_id: jax.Array  # [3] int32
    queued: jax.Array  # [3] int32 packets left in the queues
    queued_bits: jax.Array  # [3]
    trace: SlotTrace  # [S, U]


def _arrivals(fidelity: Fidelity, stream: PacketStream, is_served: jax.Array, last_slot: int) -> slots.ArrivalFn:
    """Timers that run down inside the slot loop; arrays in service order [.., V, 32]."""

    def take(table, index):
        return jnp.take_along_axis(table, index[None, ...], axis=0, mode="clip")[0]

    def arrival_fn(timers: Timers, slot, is_full):
        called = is_served & ((slot != last_slot) | fidelity.has_last_call)
        due = called & (timers.slots_left <= 0)
        comes = due & ~is_full if fidelity.blocks_when_full else due
        period = take(stream.period_slots, timers.packet_index)
        if not fidelity.blocks_when_full:
            period = jnp.where(is_full, take(stream.period_if_dropped_slots, timers.packet_index), period)
        runs = called if fidelity.counts_down_always else called & ~due
        left = jnp.where(comes, period, timers.slots_left) - runs.astype(jnp.int32)
        size_bits = jnp.where(comes, take(stream.size_bits, timers.packet_index), -1)
        return size_bits, Timers(left, timers.packet_index + comes.astype(jnp.int32))

    return arrival_fn


@functools.partial(jax.jit, static_argnames=("mode",))
def single_cell_window(
    mode: str,
    slice_index: jax.Array,
    is_served: jax.Array,
    snr_rb: jax.Array,
    shadow_db: jax.Array,
    num_rbs: jax.Array,
    mimo_factor: jax.Array,
    stream: PacketStream,
    timers: Timers,
    pointer_id: jax.Array,
) -> SingleCellWindow:
    """One window of S slots of `mode` ("gan" or "mobile"); arrays over users [U] are in order of id.

    slice_index [U] int32; is_served [U] bool: inside the cell; snr_rb [U] linear SNR on one RB at median shadowing;
    shadow_db [S, U]; num_rbs [3] int32 RBs of each slice; pointer_id [3] int32 round-robin pointers (user ids).
    """
    fidelity = FIDELITY[mode]
    num_slots, num_users = shadow_db.shape
    chex.assert_shape((slice_index, is_served, snr_rb, timers.slots_left), (num_users,))
    padding = -num_users % WORD
    group = jnp.pad(jnp.where(is_served, slice_index, 3), (0, padding), constant_values=3)
    user_id = jnp.argsort(group, stable=True).astype(jnp.int32)
    group = group[user_id]
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])  # noqa: E731
    order = lambda x: pad(x)[..., user_id].reshape(*x.shape[:-1], -1, WORD)  # noqa: E731

    def by_id(x):
        flat = x.reshape(*x.shape[:-2], -1)
        return jnp.zeros_like(flat).at[..., user_id].set(flat, unique_indices=True)[..., :num_users]

    words = lambda x: x.reshape(-1, WORD)  # noqa: E731
    cells = slots.Cells(
        user_id=words(user_id),
        group=words(group),
        group_start=jnp.searchsorted(group, jnp.arange(4)).astype(jnp.int32),
        num_rbs=num_rbs,
        bandwidth_hz=num_rbs * slots.RB_HZ,
        latency_limit_slots=words(jnp.asarray((*fidelity.rules.latency_limit_slots, 1), jnp.int32)[group]),
        rate_threshold_bps=words(jnp.asarray((*fidelity.rules.rate_threshold_bps, 0.0), snr_rb.dtype)[group]),
        mimo_factor=mimo_factor,
    )
    arrival_fn = _arrivals(fidelity, jax.tree.map(order, stream), words(group < 3), num_slots - 1)
    carry = jax.tree.map(order, timers)
    queue = slots.empty_queue(cells.group.shape, snr_rb.dtype)
    tally = slots.zero_tally(cells.group.shape, snr_rb.dtype)
    queue, dropped, carry = slots.arrival_call(arrival_fn, carry, jnp.int32(-1), queue, tally.dropped)
    pointers = slots.place_pointers(cells, pointer_id)
    (queue, pointers, tally, carry, _), trace = slots.run_slots(
        fidelity.rules, cells, queue, pointers, tally.replace(dropped=dropped), carry, arrival_fn,
        order(snr_rb), order(shadow_db), 0, num_slots, is_traced=True,
    )  # fmt: skip
    per_slice = lambda x: jax.ops.segment_sum(x.reshape(-1), group, 4)[:3]  # noqa: E731
    generated = per_slice(carry.packet_index - order(timers.packet_index))
    dropped = per_slice(tally.dropped)
    return SingleCellWindow(
        admitted=generated - dropped,
        dropped=dropped,
        succeeded=per_slice(tally.ok),
        timers=jax.tree.map(by_id, carry),
        pointer_id=pointers.user_id,
        queued=per_slice(slots.num_queued(queue)),
        queued_bits=per_slice(slots.queued_bits(queue)),
        trace=jax.tree.map(by_id, trace),
    )
