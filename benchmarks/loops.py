"""The environments as per-agent Python loops (tests/reference), set up to be timed: one call is one environment step.

They have the structure of the published simulators: one entry per link, sorted lists per agent, queues of packets. The
same arithmetic in float64 NumPy and the randomness of a step included, as in the compiled environments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import networld_envs
from benchmarks.numpy_cbf import ArrayNetwork
from networld_envs import cbf_dynamics, ns_mobility
from tests.reference import cbf_loop, ns_loop, rb_loop


class Loop(NamedTuple):
    """A simulator to be timed."""

    call: Callable[[], Any]
    env_steps_per_call: float  # a fraction where a call is part of a step


def cbf(network: type = cbf_loop.LoopNetwork) -> Loop:
    """19 cells, default face, random beams; `network` is the loop or `numpy_cbf.ArrayNetwork`."""
    env = networld_envs.make("cbf")
    params, rng = env.default_params, np.random.default_rng(0)
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    loop = network(
        cbf_loop.LoopParams(
            adjacency=np.asarray(params.adjacency),
            responses=np.asarray(state.topology.responses) / np.sqrt(params.max_snr),
            noise_mw=params.noise_mw,
            p_max_mw=params.p_max_mw,
            correlation=params.correlation,
            num_neighbours=params.num_neighbours,
        ),
        state.fading,
        np.sqrt(params.p_max_mw) * np.asarray(cbf_dynamics.normalised_beam(state)),
    )
    shape = state.fading.shape

    def step():
        innovation = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * np.sqrt(0.5)
        return loop.step(rng.normal(size=(env.spec.max_agents, env.spec.action_dim)) * 40, innovation)

    return Loop(step, 1.0)


def rb() -> Loop:
    """9 nodes, random requests."""
    env = networld_envs.make("rb", alive_choices=(9,))
    params, rng = env.default_params, np.random.default_rng(0)
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    net = jax.tree.map(lambda x: np.asarray(x, np.float64), state.network)
    network = dict(
        position=net.position,
        mean_snr=net.mean_snr,
        receiver=net.receiver.astype(int),
        load=net.load,
        threshold=net.link_threshold,
        rate=net.link_rate.astype(int),
        num_alive=net.alive.sum(),
    )
    loop = rb_loop.RBLoop(network, np.asarray(state.mode))
    n = params.max_agents

    def step():
        draws = dict(
            fading=rng.exponential(size=(n, n, params.num_channels)),
            relay=rng.uniform(size=(n, params.max_request_rbs * params.max_rate)),
            arrivals=rng.uniform(size=(n, 2)),
            mode=rng.uniform(size=n),
            cluster=rng.uniform(size=params.num_clusters),
        )
        return loop.frame(rng.integers(0, params.max_request_rbs + 1, n), draws)

    return Loop(step, 1.0)


def ns(num_slots: int = 40) -> Loop:
    """19 BSs, 2000 users, an equal split; a call is `num_slots` of the 200 slots of a window."""
    env = networld_envs.make("ns")
    params, rng = env.default_params, np.random.default_rng(0)
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    users, short = state.users, params.replace(window_slots=num_slots)
    cell, slice_index = np.asarray(state.cell), np.asarray(users.slice_index)
    snr = np.asarray(ns_mobility.snr_per_rb(jnp.asarray(users.position_m), params), np.float64)
    num_users, num_cells = snr.shape
    queues: list[list] = [[] for _ in range(num_users)]
    timers, pointers = np.asarray(users.timer_slots).copy(), np.zeros(3 * num_cells, int)
    alloc, load = np.full((num_cells, 3), params.bandwidth_hz / 3), np.full(num_cells, 0.5)

    def step():
        draws = {
            "shadow_db": rng.normal(size=(num_slots, num_users)) * params.shadow_std_db,
            "gap_uniform": rng.uniform(size=(num_slots + 1, num_users)),
            "size_uniform": rng.uniform(size=(num_slots + 1, num_users)),
        }
        return ns_loop.window(short, cell, slice_index, snr, queues, timers, pointers, alloc, load, draws)

    return Loop(step, num_slots / params.window_slots)


LOOPS = {"cbf": cbf, "rb": rb, "ns": ns}
ARRAYS = {"cbf": functools.partial(cbf, ArrayNetwork)}
"""Vectorised NumPy forms, where there are any."""
