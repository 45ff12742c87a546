"""Packets: how they arrive, wait, are served by deadline and get lost. A queue is [N, 2, D]: class, age in frames."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.rb_params import NUM_CLASSES, RBParams


def clipped_poisson(uniform: jax.Array, rate: jax.Array, maximum: int) -> jax.Array:
    """min(Poisson(rate), maximum) by inversion of the cdf, int32: the number of k < maximum with cdf(k) <= uniform.

    A rejection sampler (`jax.random.poisson`) is 24 times slower here, and would not keep a draw when the rate moves.
    """
    chex.assert_equal_shape([uniform, rate])
    probability = jnp.exp(-rate)
    cdf = probability
    count = jnp.zeros(uniform.shape, jnp.int32)
    for k in range(maximum):
        count = count + (uniform >= cdf).astype(jnp.int32)
        probability = probability * rate / (k + 1)
        cdf = cdf + probability
    return count


def arrival_rate_per_class(mode: jax.Array, load: jax.Array, params: RBParams) -> jax.Array:
    """[N, 2] packets per frame: urgent, and data of a node that is ON (mode True) or OFF."""
    data = jnp.where(mode, params.data_rate_on, params.data_rate_off)
    return load[:, None] * jnp.stack([jnp.full_like(load, params.urgent_rate), data], axis=-1)


def step_mode(mode: jax.Array, own: jax.Array, cluster: jax.Array, params: RBParams) -> jax.Array:
    """The two-state traffic mode [N] bool of the next frame out of uniforms own [N] and cluster [num_clusters].

    ON turns OFF with turn_off_probability. OFF turns ON when its own trigger fires (probability p_on (1 - c)) or
    that of its cluster (p_on c), c being cluster_correlation.
    """
    chex.assert_rank([mode, own, cluster], [1, 1, 1])
    node_cluster = np.arange(mode.shape[0]) % params.num_clusters
    turns_on = (own < params.turn_on_own) | (cluster < params.turn_on_cluster)[node_cluster]
    return jnp.where(mode, own >= params.turn_off_probability, turns_on)


def deadline_order(params: RBParams) -> np.ndarray:
    """Flat indices class * D + age of the live cells, by falling urgency: least slack D_c - age first, then class 0."""
    cells = [(d_c - age, c, age) for c, d_c in enumerate(params.deadlines_frames) for age in range(d_c)]
    return np.array([c * params.max_age_frames + age for _, c, age in sorted(cells)])


def in_deadline_order(queue: jax.Array, params: RBParams) -> tuple[jax.Array, jax.Array]:
    """(packets, packets before them), both [N, cells], of the cells in the order of `deadline_order`."""
    cells = queue.reshape(queue.shape[0], -1)[:, deadline_order(params)]
    return cells, jnp.cumsum(cells, axis=-1) - cells


def serve(queue: jax.Array, delivered: jax.Array, params: RBParams) -> tuple[jax.Array, jax.Array]:
    """Takes the `delivered` [N] most urgent packets out: (queue left, packets taken), both [N, 2, D]."""
    chex.assert_rank([queue, delivered], [3, 1])
    cells, before = in_deadline_order(queue, params)
    taken = jnp.clip(delivered[:, None] - before, 0, cells)
    flat = jnp.zeros((queue.shape[0], NUM_CLASSES * params.max_age_frames), queue.dtype)
    served = flat.at[:, deadline_order(params)].set(taken).reshape(queue.shape)
    return queue - served, served


def age(queue: jax.Array, params: RBParams) -> tuple[jax.Array, jax.Array]:
    """One frame later: (queue [N, 2, D], late [N, 2]); packets in their last cell, age D_c - 1, are lost."""
    last = jnp.array(params.deadlines_frames) - 1
    is_last = jnp.arange(params.max_age_frames)[None, :] == last[:, None]
    late = jnp.sum(jnp.where(is_last[None], queue, 0), axis=-1)
    kept = jnp.where(is_last[None], 0, queue)
    return jnp.pad(kept[:, :, :-1], ((0, 0), (0, 0), (1, 0))), late


def admit(queue: jax.Array, arrivals: jax.Array, params: RBParams) -> tuple[jax.Array, jax.Array]:
    """Arrivals [N, 2] enter at age 0 as far as the buffers allow: (queue, overflow [N, 2])."""
    space = jnp.array(params.buffers_packets)[None, :] - jnp.sum(queue, axis=-1)
    entering = jnp.minimum(arrivals, jnp.maximum(space, 0))
    return queue.at[:, :, 0].add(entering), arrivals - entering


def holding_cost(queue: jax.Array, params: RBParams) -> jax.Array:
    """[N] float: sum_{c, d >= 1} w_c (d / D_c) q_cd."""
    ages = np.arange(params.max_age_frames, dtype=np.float32)
    share = ages[None, :] / np.array(params.deadlines_frames, np.float32)[:, None]
    weight = jnp.stack(list(map(jnp.asarray, params.class_weights)))[:, None] * share
    return jnp.sum(weight[None] * queue, axis=(1, 2))


def head_of_line_age(queue: jax.Array) -> jax.Array:
    """[N, 2] int32: age in frames, counted from 1, of the oldest packet of each class; 0 where there is none."""
    frames = jnp.arange(1, queue.shape[-1] + 1)
    return jnp.max(jnp.where(queue > 0, frames.reshape(1, 1, -1), 0), axis=-1).astype(jnp.int32)
