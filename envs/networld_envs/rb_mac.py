"""The reservation: who gets which resource blocks, without two nodes within two hops sharing one.

A set of RBs is a bit mask in `num_words` 32-bit words (RB b = bit b % 32 of word b // 32). A frame of 40 RBs is two
words, so that one turn of the reservation is a handful of integer operations: planners run it hundreds of times per
decision.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.rb_params import RBParams

_WORD_BITS = 32
_ALL_BITS = np.uint32(0xFFFFFFFF)


def num_words(num_rbs: int) -> int:
    return -(-num_rbs // _WORD_BITS)


def bits_from(position: jax.Array, words: int) -> jax.Array:
    """[...] int32 -> [..., words] uint32: the RBs b >= position."""
    shift = position[..., None] - _WORD_BITS * jnp.arange(words).reshape((1,) * position.ndim + (words,))
    shifted = jnp.left_shift(jnp.asarray(_ALL_BITS), jnp.clip(shift, 0, _WORD_BITS - 1).astype(jnp.uint32))
    return jnp.where(shift >= _WORD_BITS, jnp.uint32(0), shifted)


def count_bits(bits: jax.Array) -> jax.Array:
    """[..., words] uint32 -> [...] int32: size of the set."""
    return jnp.sum(jax.lax.population_count(bits).astype(jnp.int32), axis=-1)


def first_bits(bits: jax.Array, count: jax.Array) -> jax.Array:
    """The first `count` [...] RBs of each set [..., words]; the whole set where it is smaller.

    Bisection for the largest position with at most `count` members before it.
    """
    words = bits.shape[-1]
    position = jnp.zeros_like(count)
    step = 1 << ((words * _WORD_BITS).bit_length() - 1)  # a power of two: the steps below it reach every position
    while step >= 1:
        trial = position + step
        before = count_bits(bits & ~bits_from(trial, words))
        position = jnp.where(before <= count, trial, position)
        step //= 2
    return bits & ~bits_from(position, words)


def unpack(bits: jax.Array, num_rbs: int) -> jax.Array:
    """[..., words] uint32 -> [..., R] bool."""
    rb = np.arange(num_rbs)
    shift = jnp.asarray(rb % _WORD_BITS, jnp.uint32).reshape((1,) * (bits.ndim - 1) + (num_rbs,))
    return jnp.right_shift(bits[..., rb // _WORD_BITS], shift) & jnp.uint32(1) > 0


def _slot_masks(params: RBParams) -> np.ndarray:
    """[T, words] uint32: the RBs of each slot."""
    masks = np.zeros((params.num_slots, num_words(params.num_rbs)), np.uint32)
    for rb in range(params.num_rbs):
        masks[rb // params.num_channels, rb // _WORD_BITS] |= np.uint32(1 << (rb % _WORD_BITS))
    return masks


def _whole_slots(bits: jax.Array, params: RBParams) -> jax.Array:
    """[words] -> [words]: every RB of each slot in which the set has a member."""
    masks = jnp.asarray(_slot_masks(params))
    busy = jnp.any((bits[None, :] & masks) > 0, axis=-1)
    return jnp.bitwise_or.reduce(jnp.where(busy[:, None], masks, jnp.uint32(0)), axis=0)


def signalling_head(requests: jax.Array, two_hop: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32: RBs at the start of the frame that node i may not claim,

        K_i = ceil( (a_i + sum_{E2(i)} a_j) / M  +  (1 + |E2(i)|) message_bytes / rb_payload_bytes ).

    Every requested RB costs one of M mini-slots of an RB, and the mean-field messages of a neighbourhood share what is
    left of the head (nodes within two hops may not share an RB). With head_scope "two_hop" a node waits for the longest
    head within two hops.
    """
    messages = 1 + jnp.sum(two_hop.astype(jnp.int32), axis=1)
    mini_slots = params.mini_slots_per_rb or 1
    parts = messages * params.message_bytes * mini_slots  # in units of 1 / (M payload) RBs
    if params.mini_slots_per_rb is not None:
        heard = requests + jnp.sum(jnp.where(two_hop, requests[None, :], 0), axis=1)
        parts = parts + heard * params.rb_payload_bytes
    head = -(-parts // (mini_slots * params.rb_payload_bytes))
    if params.head_scope == "two_hop":
        head = jnp.maximum(head, jnp.max(jnp.where(two_hop, head[None, :], 0), axis=1))
    return jnp.minimum(head, params.num_rbs).astype(jnp.int32)


def turn_order(t: jax.Array, alive: jax.Array) -> jax.Array:
    """[N] int32: node order[m] claims m-th, starting at t mod N_alive. Absent nodes come last."""
    node = jnp.arange(alive.shape[0])
    num_alive = jnp.maximum(jnp.sum(alive.astype(jnp.int32)), 1)
    return jnp.where(alive, (node + t) % num_alive, node)


def reserve(
    requests: jax.Array,
    head: jax.Array,
    two_hop: jax.Array,
    receiver: jax.Array,
    alive: jax.Array,
    t: jax.Array,
    params: RBParams,
) -> jax.Array:
    """Claims [N, words] uint32 of one frame.

    In the order i = t mod N_alive, t + 1 mod N_alive, ... node i claims its first `requests[i]` RBs b >= head[i]
    that no node within two hops has claimed; fewer if fewer are free. With half duplex it also leaves out the slots
    in which its receiver transmits or it receives.

    requests, head [N] int32; two_hop [N, N] bool; receiver [N] int32; alive [N] bool (a prefix); t [] int32.
    """
    chex.assert_rank([requests, head, two_hop, receiver, alive, t], [1, 1, 2, 1, 1, 0])
    num_agents, words = requests.shape[0], num_words(params.num_rbs)
    claimable = bits_from(head, words) & ~bits_from(jnp.full_like(head, params.num_rbs), words)
    talks_to = receiver[:, None] == jnp.arange(num_agents)[None, :]
    link_ends = talks_to | talks_to.T

    def turn(claims, node):  # claims [N, words]
        taken = jnp.bitwise_or.reduce(jnp.where(two_hop[node][:, None], claims, jnp.uint32(0)), axis=0)
        if params.half_duplex:
            ends = jnp.bitwise_or.reduce(jnp.where(link_ends[node][:, None], claims, jnp.uint32(0)), axis=0)
            taken = taken | _whole_slots(ends, params)
        claim = first_bits(claimable[node] & ~taken, requests[node])
        return claims.at[node].set(claim), None

    claims, _ = jax.lax.scan(turn, jnp.zeros((num_agents, words), jnp.uint32), turn_order(t, alive))
    return claims
