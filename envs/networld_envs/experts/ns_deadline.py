"""How many packets with a deadline of a few slots a slice serves in time, by simulation of a generic cell.

Packets arrive as a Poisson process of rate a per slot, at users drawn at random; the packets present share k RBs
equally, whole RBs, and leave when they are finished or at their deadline. All cases (a, k, load) see the same users,
sizes and shadowing: differences along k, which decide a split, are far more precise than the values.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from networld_envs import ns_slots as slots

PLACES = 24  # packets present at most; a deadline of a few slots keeps them fewer unless nearly all fail
RATES = (0.1, 0.4, 0.9, 1.6, 2.6, 4.0, 6.0, 9.0)  # a, packets per slot
NUM_SLOTS = 1000


class Cell(NamedTuple):
    """Samples of the users of a cell and of the packets they send."""

    snr_rb: np.ndarray  # [users] linear, on one RB
    inr: np.ndarray  # [users] interference-to-noise ratio with everybody around at full load
    size_bits: tuple[float, ...]  # equally likely
    limit_slots: int
    rate_threshold_bps: float
    mimo_factor: float
    shadow_std_db: float


class _Present(NamedTuple):
    """Packets present, arrays [loads, rates, splits, PLACES]; age 0 = free place."""

    left_bits: jax.Array
    size_bits: jax.Array
    snr: jax.Array
    inr: jax.Array
    age: jax.Array  # int32, latency in slots if it finishes now


class _Events(NamedTuple):
    """Randomness, leading axis slots."""

    num_new: jax.Array  # [S, rates] int32
    size_bits: jax.Array  # [S, PLACES]
    snr: jax.Array  # [S, PLACES]
    inr: jax.Array  # [S, PLACES]
    fading: jax.Array  # [S, PLACES]
    turn: jax.Array  # [S] int32 who is first in the round robin


def _events(cell: Cell, num_slots: int) -> _Events:
    rng = np.random.default_rng(0)
    who = rng.integers(len(cell.snr_rb), size=(num_slots, PLACES))
    decades = -cell.shadow_std_db / 10 * rng.standard_normal(who.shape)
    arrays = (
        rng.poisson(np.asarray(RATES), (num_slots, len(RATES))).astype(np.int32),
        rng.choice(cell.size_bits, who.shape).astype(np.float32),
        cell.snr_rb[who].astype(np.float32),
        cell.inr[who].astype(np.float32),
        (10**decades).astype(np.float32),
        rng.integers(1 << 10, size=num_slots).astype(np.int32),
    )
    return _Events(*(jnp.asarray(x) for x in arrays))


def _admit(present: _Present, events: _Events) -> _Present:
    is_free = present.age == 0
    comes = is_free & (jnp.cumsum(is_free, axis=-1) <= events.num_new[None, :, None, None])
    fill = lambda new, old: jnp.where(comes, new[None, None, None, :], old)  # noqa: E731
    return _Present(
        fill(events.size_bits, present.left_bits),
        fill(events.size_bits, present.size_bits),
        fill(events.snr, present.snr),
        fill(events.inr, present.inr),
        jnp.where(comes, 1, present.age),
    )


def _share(num_rbs: jax.Array, is_active: jax.Array, turn: jax.Array) -> jax.Array:
    """RBs of each packet: floor(k / n), and one more for k mod n of them."""
    n = jnp.maximum(is_active.sum(axis=-1, keepdims=True), 1)
    order = (jnp.cumsum(is_active, axis=-1) - 1 + turn) % n
    return jnp.where(is_active, num_rbs // n + (order < num_rbs % n), 0).astype(jnp.float32)


def success_table(cell: Cell, num_rbs: np.ndarray, loads: np.ndarray, num_slots: int = NUM_SLOTS) -> np.ndarray:
    """[loads, RATES, splits] share of packets that meet deadline and rate on `num_rbs` [splits] RBs (int) when all
    other cells use the share `loads` of their RBs."""
    shape = (len(loads), len(RATES), len(num_rbs), PLACES)
    rbs = jnp.asarray(num_rbs, jnp.int32)[None, None, :, None]
    around = jnp.asarray(loads, jnp.float32)[:, None, None, None]

    def slot(carry, events):
        present, ok, judged = carry
        present = _admit(present, events)
        active, age = present.age > 0, present.age
        width = _share(rbs, active, events.turn)
        sinr = present.snr * events.fading[None, None, None, :] / (1 + around * present.inr)
        rate = slots.RB_HZ * cell.mimo_factor * width * jnp.log10(1 + sinr / jnp.maximum(width, 1.0))
        left = present.left_bits - rate * slots.SLOT_S
        finished = active & (left <= 0)
        needed_bits = cell.rate_threshold_bps * slots.SLOT_S * age
        is_ok = finished & jnp.where(age == 1, rate >= cell.rate_threshold_bps, present.size_bits >= needed_bits)
        leaves = finished | (active & (age >= cell.limit_slots))
        present = present._replace(left_bits=left, age=jnp.where(leaves | ~active, 0, age + 1))
        return (present, ok + is_ok.sum(axis=-1), judged + leaves.sum(axis=-1)), None

    zeros = jnp.zeros(shape, jnp.float32)
    present = _Present(zeros, zeros, zeros, zeros, jnp.zeros(shape, jnp.int32))
    counts = jnp.zeros(shape[:-1], jnp.int32)
    run = jax.jit(lambda carry, events: lax.scan(slot, carry, events)[0])
    _, ok, judged = run((present, counts, counts), _events(cell, num_slots))
    return np.asarray(ok) / np.maximum(np.asarray(judged), 1)
