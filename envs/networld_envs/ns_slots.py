"""The slot loop of network slicing: round-robin scheduling, service, judgement and arrivals, 0.5 ms at a time.

One loop serves the published single-cell simulators (to the integer) and the multi-cell default; `SlotRules` holds what
differs. Users come in *service order*: sorted by (cell, slice), by id within each of these G groups, padded to V words
of 32, so that "who is active" is a bit set and every rank is a population count; arrays over users are [V, 32] and a
"position" counts 0..U-1, U = 32 V. Axis letters here: G groups, S slots. Slices: 0 VoLTE, 1 video, 2 URLLC.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

QUEUE_DEPTH = 5  # packets a user can have waiting
SLOT_S = 0.5e-3
RB_HZ = 180e3
WORD = 32
_AGE_BITS = 6  # bits of one place in the packed ages; a set top bit stops the count, see `Queue`
_AGE_MASK = (1 << _AGE_BITS) - 1
_AGE_STOP = 1 << (_AGE_BITS - 1)
_EVERY_AGE = sum(1 << (_AGE_BITS * place) for place in range(QUEUE_DEPTH))


class SlotRules(NamedTuple):
    """What differs between the fidelity modes. Hashable: a static field of the environment's parameters."""

    latency_limit_slots: tuple[int, int, int] = (19, 19, 1)  # inclusive, per slice; at most 31
    rate_threshold_bps: tuple[float, float, float] = (51e3, 100e6, 10e6)  # SLA rate per slice
    discard_expired: bool = False  # a packet that missed its latency limit leaves the queue and counts as late
    remainder_by_id: bool = False  # spare RBs go to active ids in [p, p + r) (GAN-DDQN), else to the first r from p on
    leaking_budget: bool = False  # a finished packet costs bits of the *rate* (GAN-DDQN), else of the slot's budget
    rb_floor: bool = True  # whole RBs; False shares a slice's bandwidth evenly among its active users


@struct.dataclass
class Queue:
    """Waiting packets per user, oldest in place 0; only that one can be partly served.

    Ages are packed, 6 bits per place: 0 = empty, else the packet's latency in slots if it finishes now.
    Ages stop at 32: every limit is at most 31.
    """

    size_bits: tuple[jax.Array, ...]  # QUEUE_DEPTH x [V, 32], sizes as generated (stale where empty)
    left_bits: jax.Array  # [V, 32] unserved bits of the packet in place 0
    ages: jax.Array  # [V, 32] int32, packed


@struct.dataclass
class Cells:
    """A window's constant inputs in service order; the last group, G, is nobody's: unserved users and padding."""

    user_id: jax.Array  # [V, 32] int32, increasing within a group
    group: jax.Array  # [V, 32] int32 in 0..G
    group_start: jax.Array  # [G + 1] int32 position of each group's first user, then of the unserved
    num_rbs: jax.Array  # [G] int32 whole RBs of each group
    bandwidth_hz: jax.Array  # [G] what is shared when `rb_floor` is off
    latency_limit_slots: jax.Array  # [V, 32] int32
    rate_threshold_bps: jax.Array  # [V, 32]
    mimo_factor: jax.Array  # []


@struct.dataclass
class Pointers:
    """Round-robin pointers p as positions in service order; moves with every slot."""

    first: jax.Array  # [G] int32 position of the group's first user with id >= p
    beyond: jax.Array  # [G] int32 position of the group's first user with id > p
    user_id: jax.Array  # [G] int32, p itself


@struct.dataclass
class Tally:
    """Counters per user over a window."""

    ok: jax.Array  # [V, 32] int32 finished within the SLA
    missed: jax.Array  # [V, 32] int32 finished outside the SLA, or expired
    dropped: jax.Array  # [V, 32] int32 arrived at a full queue
    rate_bps_slots: jax.Array  # [V, 32] sum over slots of the scheduled rate


class SlotTrace(NamedTuple):
    """One slot as seen by a recorder."""

    num_rbs: jax.Array  # [V, 32] RBs given to the user (may be a fraction without rb_floor)
    rate_bps: jax.Array  # [V, 32]
    head_bits: jax.Array  # [V, 32] bits left of the packet in place 0 before service
    num_queued: jax.Array  # [V, 32] int32 packets waiting before service
    served_bits: jax.Array  # [V, 32] bits taken out of the queue by service


# An arrival call: (carry, slot, is_full [V, 32]) -> (size in bits [V, 32], negative = no packet; carry).
ArrivalFn = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def empty_queue(shape: tuple[int, ...], dtype=jnp.float32) -> Queue:
    """Nobody waits."""
    zeros = jnp.zeros(shape, dtype)
    return Queue((zeros,) * QUEUE_DEPTH, zeros, jnp.zeros(shape, jnp.int32))


def zero_tally(shape: tuple[int, ...], dtype=jnp.float32) -> Tally:
    """All counters at zero."""
    zeros = jnp.zeros(shape, jnp.int32)
    return Tally(zeros, zeros, zeros, jnp.zeros(shape, dtype))


def num_queued(queue: Queue) -> jax.Array:
    """[V, 32] int32 packets waiting."""
    return sum((queue.ages >= (1 << (_AGE_BITS * place))).astype(jnp.int32) for place in range(QUEUE_DEPTH))


def queued_bits(queue: Queue) -> jax.Array:
    """[V, 32] unserved bits of all waiting packets."""
    waiting = num_queued(queue)
    later = sum(jnp.where(waiting > place, queue.size_bits[place], 0) for place in range(1, QUEUE_DEPTH))
    return jnp.where(waiting > 0, queue.left_bits, 0) + later


# --- ranks by ballot ------------------------------------------------------------------------------------------------


class Ballot(NamedTuple):
    """Who is active, as a bit set."""

    words: jax.Array  # [V + 1] uint32, the last one empty
    before: jax.Array  # [V + 1] int32 number of active users before each word


def _ballot(active: jax.Array) -> Ballot:
    """The bit set of active [V, 32]."""
    lanes = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    words = jnp.where(active, lanes[None, :], jnp.uint32(0)).sum(axis=1, dtype=jnp.uint32)
    words = jnp.concatenate([words, jnp.zeros(1, jnp.uint32)])
    counts = lax.population_count(words).astype(jnp.int32)
    index = jnp.arange(words.shape[0])
    before = jnp.where(index[None, :] < index[:, None], counts[None, :], 0).sum(axis=1, dtype=jnp.int32)
    return Ballot(words, before)


def _count_before(ballot: Ballot, position: jax.Array) -> jax.Array:
    """Number of active users at positions < position (any shape, values 0..U)."""
    word, lane = position // WORD, (position % WORD).astype(jnp.uint32)
    below = ballot.words[word] & ((jnp.uint32(1) << lane) - jnp.uint32(1))
    return ballot.before[word] + lax.population_count(below).astype(jnp.int32)


def _is_active(ballot: Ballot) -> jax.Array:
    """[V, 32] bool, read back from the bit set."""
    return ((ballot.words[:-1, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, :]) & 1) > 0


def _rank(ballot: Ballot) -> jax.Array:
    """[V, 32] number of active users before each position."""
    below_lane = (jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)) - jnp.uint32(1)
    below = ballot.words[:-1, None] & below_lane[None, :]
    return ballot.before[:-1, None] + lax.population_count(below).astype(jnp.int32)


def _position_of(ballot: Ballot, rank: jax.Array) -> jax.Array:
    """Position of the active user with the given rank [G] (the inverse of `_rank`): find the word, then halve it."""
    word = (ballot.before[None, :] <= rank[:, None]).sum(axis=1, dtype=jnp.int32) - 1
    bits, rank = ballot.words[word], rank - ballot.before[word]
    position = word * WORD
    for half in (16, 8, 4, 2, 1):
        low = lax.population_count(bits & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        upper = rank >= low
        bits = jnp.where(upper, bits >> half, bits)
        rank = jnp.where(upper, rank - low, rank)
        position = position + jnp.where(upper, half, 0)
    return position


# --- scheduling -----------------------------------------------------------------------------------------------------


def place_pointers(cells: Cells, pointer_id: jax.Array) -> Pointers:
    """Pointers p [G], kept as user ids between windows, as positions in this window's service order."""
    num_groups = pointer_id.shape[0]
    group, user_id = cells.group.reshape(-1), cells.user_id.reshape(-1)
    own = jnp.concatenate([pointer_id, jnp.zeros(1, jnp.int32)])[group]

    def count(is_so):
        total = jax.ops.segment_sum(is_so.astype(jnp.int32), group, num_groups + 1, indices_are_sorted=True)
        return total[:num_groups]

    first = cells.group_start[:num_groups] + count(user_id < own)
    return Pointers(first, first + count(user_id == own), pointer_id)


def _share_rbs(rules: SlotRules, cells: Cells, pointers: Pointers, active: jax.Array):
    """Round robin: each group's n active users get floor(K / n) RBs and r = K - n floor(K / n) of them one more.

    With `left` active ids beyond the pointer p: if left >= r the spare RBs go to the active ids from p on, else to
    those beyond p and the first r - left of the group; both are r users in circular order. p moves behind the last of
    them. Returns (RBs per user [V, 32], pointers, used RBs per group [G]).
    """
    ballot = _ballot(active)
    counts = _count_before(ballot, cells.group_start)
    n = counts[1:] - counts[:-1]
    if not rules.rb_floor:
        share = jnp.append(cells.bandwidth_hz / jnp.maximum(n, 1), 0) / RB_HZ
        used = jnp.where(n > 0, cells.bandwidth_hz / RB_HZ, 0)
        return jnp.where(_is_active(ballot), share[cells.group], 0), pointers, used
    base = cells.num_rbs // jnp.maximum(n, 1)
    spare = cells.num_rbs - n * base
    from_first = _count_before(ballot, pointers.first) - counts[:-1]
    from_beyond = _count_before(ballot, pointers.beyond) - counts[:-1]
    wraps = n - from_beyond < spare
    start = counts[:-1] + jnp.where(wraps, from_beyond, from_first)
    # Two gathers of two half words each: a user needs its group's base, spare, start and n - spare.
    pad = lambda high, low: jnp.concatenate([(high << 16) | low, jnp.zeros(1, jnp.int32)])[cells.group]  # noqa: E731
    start_base, rest_spare = pad(start, base), pad(n - spare, spare)
    ahead = _rank(ballot) - (start_base >> 16)
    is_extra = ((ahead >= 0) & (ahead < (rest_spare & 0xFFFF))) | (ahead < -(rest_spare >> 16))
    used = jnp.where(n > 0, cells.num_rbs, 0)
    if rules.remainder_by_id:
        is_extra, pointers = _spare_by_id(cells, pointers, _is_active(ballot), is_extra, wraps, spare)
    else:
        last = start + spare - 1
        last = jnp.where(last >= counts[1:], last - n, last)
        pointers = _move_behind(cells, pointers, _position_of(ballot, last), (spare > 0) & (n > 0))
    rbs = jnp.where(_is_active(ballot), (start_base & 0xFFFF) + is_extra.astype(jnp.int32), 0)
    return rbs, pointers, used


def _move_behind(cells: Cells, pointers: Pointers, position: jax.Array, moves: jax.Array) -> Pointers:
    """p = id of the user at `position` [G], plus 1, where `moves`."""
    user_id = cells.user_id.reshape(-1)
    new_id = user_id[position] + 1
    following = jnp.minimum(position + 1, cells.group_start[1:] - 1)
    is_next = user_id[following] == new_id
    return Pointers(
        first=jnp.where(moves, position + 1, pointers.first),
        beyond=jnp.where(moves, position + 1 + is_next.astype(jnp.int32), pointers.beyond),
        user_id=jnp.where(moves, new_id, pointers.user_id),
    )


def _spare_by_id(cells, pointers, active, is_extra, wraps, spare):
    """GAN-DDQN's rule: unless the round wraps, spare RBs go to active ids in [p, p + r), so some may be wasted."""
    pad = lambda x: jnp.concatenate([x, jnp.zeros(1, x.dtype)])[cells.group]  # noqa: E731
    low = pad(pointers.user_id)
    wrapped = pad(wraps)
    in_window = (cells.user_id >= low) & (cells.user_id < low + pad(spare))
    # When the round wraps, the pointer moves behind the last of the first r - left ids of the group.
    lead = wrapped & is_extra & (cells.user_id <= low)
    is_extra = active & jnp.where(wrapped, is_extra, in_window)
    chosen = active & jnp.where(wrapped, lead, in_window)
    position = jnp.arange(cells.group.size, dtype=jnp.int32).reshape(cells.group.shape)
    last = jax.ops.segment_max(
        jnp.where(chosen, position, -1).reshape(-1),
        cells.group.reshape(-1),
        spare.shape[0] + 1,
        indices_are_sorted=True,
    )[:-1]
    return is_extra, _move_behind(cells, pointers, jnp.maximum(last, 0), last >= 0)


# --- service --------------------------------------------------------------------------------------------------------


def _num_finished(rules: SlotRules, queue: Queue, waiting: jax.Array, rate_bps: jax.Array):
    """(packets finished in this slot [V, 32], bits left of the first unfinished one [V, 32], stale if none)."""
    bits = (queue.left_bits, *queue.size_bits[1:])
    finished = jnp.zeros_like(waiting)
    if rules.leaking_budget:
        open_, rate_left, left = jnp.ones_like(waiting, bool), rate_bps, bits[0]
        for place in range(QUEUE_DEPTH):
            left = jnp.where(open_, bits[place] - rate_left * SLOT_S, left)
            done = open_ & (waiting > place) & (bits[place] <= rate_left * SLOT_S)
            rate_left = jnp.where(done, rate_left - bits[place], rate_left)
            finished += done.astype(jnp.int32)
            open_ = done
        return finished, left
    budget = rate_bps * SLOT_S
    total, left = bits[0], bits[0] - budget
    for place in range(QUEUE_DEPTH):
        done = (waiting > place) & (total <= budget)
        finished += done.astype(jnp.int32)
        if place + 1 < QUEUE_DEPTH:
            total = total + bits[place + 1]
            left = jnp.where(done, jnp.minimum(bits[place + 1], total - budget), left)
    return finished, left


def _judge(cells: Cells, queue: Queue, finished: jax.Array, rate_bps: jax.Array) -> jax.Array:
    """[V, 32] finished packets that met their SLA: latency L, and rate (L = 1) or size / (L dt) (L > 1)."""
    ok = jnp.zeros_like(finished)
    for place in range(QUEUE_DEPTH):
        age = (queue.ages >> (_AGE_BITS * place)) & _AGE_MASK
        needed_bits = cells.rate_threshold_bps * SLOT_S * age.astype(rate_bps.dtype)
        fast = jnp.where(age == 1, rate_bps >= cells.rate_threshold_bps, queue.size_bits[place] >= needed_bits)
        ok += ((finished > place) & (age <= cells.latency_limit_slots) & fast).astype(jnp.int32)
    return ok


def _num_expired(cells: Cells, queue: Queue, waiting: jax.Array, finished: jax.Array) -> jax.Array:
    """[V, 32] unfinished packets at the end of their latency limit; ages fall along the queue, so they come first."""
    expired = jnp.zeros_like(finished)
    for place in range(QUEUE_DEPTH):
        age = (queue.ages >> (_AGE_BITS * place)) & _AGE_MASK
        expired += ((place >= finished) & (waiting > place) & (age >= cells.latency_limit_slots)).astype(jnp.int32)
    return expired


def _remove(queue: Queue, num: jax.Array, left_bits: jax.Array) -> Queue:
    """The queue without its first `num` packets, a slot older; `left_bits` belongs to the new first one."""
    sizes = queue.size_bits
    for step in (1, 2, 4):  # a barrel shifter: at most 5 = 4 + 1 places
        shift = (num & step) > 0
        sizes = tuple(
            jnp.where(shift, sizes[place + step], sizes[place]) if place + step < QUEUE_DEPTH else sizes[place]
            for place in range(QUEUE_DEPTH)
        )
    ages = queue.ages >> (_AGE_BITS * num)
    running = ((ages | (ages >> 1) | (ages >> 2) | (ages >> 3) | (ages >> 4)) & _EVERY_AGE) & ~(ages >> (_AGE_BITS - 1))
    return Queue(sizes, left_bits, ages + running)


def _push(queue: Queue, waiting: jax.Array, size_bits: jax.Array) -> Queue:
    """The queue with a packet of `size_bits` [V, 32] at the end (negative: none), where there is a free place."""
    comes = (size_bits >= 0) & (waiting < QUEUE_DEPTH)
    sizes = tuple(
        jnp.where(comes & (waiting == place), size_bits, queue.size_bits[place]) for place in range(QUEUE_DEPTH)
    )
    left = jnp.where(comes & (waiting == 0), size_bits, queue.left_bits)
    ages = jnp.where(comes, queue.ages | (1 << (_AGE_BITS * waiting)), queue.ages)
    return Queue(sizes, left, ages)


def arrival_call(arrival_fn: ArrivalFn, traffic: Any, slot: jax.Array, queue: Queue, dropped: jax.Array):
    """One arrival call: new packets join, those that meet a full queue are dropped and counted."""
    waiting = num_queued(queue)
    size_bits, traffic = arrival_fn(traffic, slot, waiting >= QUEUE_DEPTH)
    dropped = dropped + ((size_bits >= 0) & (waiting >= QUEUE_DEPTH)).astype(jnp.int32)
    return _push(queue, waiting, size_bits), dropped, traffic


def _serve(rules: SlotRules, cells: Cells, queue: Queue, rate_bps: jax.Array):
    """Service, judgement and removal at the scheduled rates: (queue, ok [V, 32], missed [V, 32])."""

    def outcome(queue, rate_bps):
        waiting = num_queued(queue)
        finished, left = _num_finished(rules, queue, waiting, rate_bps)
        ok = _judge(cells, queue, finished, rate_bps)
        if not rules.discard_expired:
            return finished, ok, left
        expired = _num_expired(cells, queue, waiting, finished)
        removed = finished + expired
        restarted = sum(jnp.where(removed == place, queue.size_bits[place], 0) for place in range(1, QUEUE_DEPTH))
        return removed, ok, jnp.where(expired > 0, restarted, left)

    def idle(queue, rate_bps):
        zero = jnp.zeros_like(queue.ages)
        return zero, zero, queue.left_bits

    # A slot without traffic is rare. The branch is here because XLA on CPU would otherwise compute the outcome anew for
    # each of the ten arrays that depend on it (3x the time of a slot).
    removed, ok, left = lax.cond(jnp.any(queue.ages > 0), outcome, idle, queue, rate_bps)
    return _remove(queue, removed, left), ok, removed - ok


def _schedule(rules: SlotRules, cells: Cells, queue: Queue, pointers: Pointers, snr_rb, shadow_db):
    """(RBs [V, 32], rate in bit/s [V, 32], pointers, used RBs [G]) of a slot.

    rate = B log10(1 + P_rx / (N0 B)) M with B = RBs x 180 kHz: full power in the user's band, whatever its width.
    """
    rbs, pointers, used = _share_rbs(rules, cells, pointers, queue.ages > 0)
    width = rbs.astype(snr_rb.dtype)
    snr = snr_rb * jnp.exp(shadow_db * (-math.log(10) / 10))
    rate_bps = (RB_HZ * cells.mimo_factor) * width * jnp.log10(1 + snr / jnp.maximum(width, 1e-6))
    return width, rate_bps, pointers, used


@struct.dataclass
class _Loop:
    queue: Queue
    pointers: Pointers
    tally: Tally
    traffic: Any
    used_rbs: jax.Array  # [G]
    # Scheduled for the coming slot. Carried, so that XLA computes the rates once: they feed a dozen outputs.
    width: jax.Array  # [V, 32]
    rate_bps: jax.Array  # [V, 32]
    next_pointers: Pointers
    next_used_rbs: jax.Array


def run_slots(
    rules: SlotRules,
    cells: Cells,
    queue: Queue,
    pointers: Pointers,
    tally: Tally,
    traffic: Any,
    arrival_fn: ArrivalFn,
    snr_rb: jax.Array,
    shadow_db: jax.Array,
    first_slot: jax.Array | int,
    num_slots: int,
    is_traced: bool = False,
):
    """`num_slots` slots from slot `first_slot` of the window on: schedule, serve, judge, compact, arrival call.

    snr_rb [V, 32]: linear SNR on one RB at median shadowing; shadow_db [>= first_slot + num_slots, V, 32]: log-normal
    shadowing, one independent value per user and slot. The queue must hold the arrivals of the first slot
    (`arrival_call`). Returns (queue, pointers, tally, traffic, used RBs x slots per group [G]) and, if traced, a
    SlotTrace with a leading slot axis.
    """
    chex.assert_equal_shape((snr_rb, cells.group, cells.user_id, queue.ages))
    chex.assert_shape(shadow_db, (None, *snr_rb.shape))
    first_slot = jnp.asarray(first_slot, jnp.int32)
    row = lambda slot: lax.dynamic_index_in_dim(shadow_db, slot, keepdims=False)  # noqa: E731
    schedule = lambda queue, pointers, slot: _schedule(rules, cells, queue, pointers, snr_rb, row(slot))  # noqa: E731

    def body(loop: _Loop, slot):
        served, ok, missed = _serve(rules, cells, loop.queue, loop.rate_bps)
        trace = None
        if is_traced:
            waiting = num_queued(loop.queue)
            head = jnp.where(waiting > 0, loop.queue.left_bits, 0)
            bits = queued_bits(loop.queue) - queued_bits(served)
            trace = SlotTrace(loop.width, loop.rate_bps, head, waiting, bits)
        queue, dropped, traffic = arrival_call(arrival_fn, loop.traffic, slot, served, loop.tally.dropped)
        width, rate_bps, pointers, used = schedule(queue, loop.next_pointers, slot + 1)  # clamped after the last slot
        tally = Tally(
            loop.tally.ok + ok, loop.tally.missed + missed, dropped, loop.tally.rate_bps_slots + loop.rate_bps
        )
        used_rbs = loop.used_rbs + loop.next_used_rbs
        return _Loop(queue, loop.next_pointers, tally, traffic, used_rbs, width, rate_bps, pointers, used), trace

    width, rate_bps, next_pointers, used = schedule(queue, pointers, first_slot)
    start = _Loop(queue, pointers, tally, traffic, jnp.zeros_like(used), width, rate_bps, next_pointers, used)
    end, trace = lax.scan(body, start, first_slot + jnp.arange(num_slots, dtype=jnp.int32))
    return (end.queue, end.pointers, end.tally, end.traffic, end.used_rbs), trace
