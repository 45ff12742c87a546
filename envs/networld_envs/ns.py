"""Network slicing (`ns`): 19 base stations split 5 MHz among three services whose users move.

| | |
|---|---|
| agent | one BS; hexagonal cells of radius 40 m, 1-hop neighbours are the adjacent cells |
| step | one window of 200 slots of 0.5 ms |
| action [N, 3] | bandwidth in Hz for VoLTE, video, URLLC; projected: w = W max(a, 0) / sum (equal if all are 0) |
| observation [N, 15] | arrivals(t-2), arrivals(t-1), packets waiting, allocation in force / W, last SSR; 3 each |
| reward [N] | mean over slices of SSR = ok / (ok + late + dropped), 1 where no packet was judged |

Packets wait in a queue of 5 per user and are served by round robin within their slice. Each is judged once, in the
window in which it finishes, expires or meets a full queue. An allocation takes effect one window after it is chosen,
and moves by at most `max_change_hz` per slice and window. Cells share the band (reuse 1). Time index: an observation
at t is made between window t-1 and window t; the action chosen on it decides the allocation of window t+1.

Sources: the slot loop is the single-cell simulator of GAN-DDQN (Hua et al., JSAC 2020) and its relatives, `ns_slots`;
the layout follows NetWorld, arXiv 2602.00558, and Shao et al., arXiv 2108.05063; interference, carried queues, delayed
allocation and drift are this project's.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from networld_envs import ns_mobility as mobility
from networld_envs import ns_slots as slots
from networld_envs import ns_traffic as traffic
from networld_envs.ns_params import NUM_SLICES, NSParams, make_params
from networld_envs.ns_window import NSState, draw, observe, project_action, transition
from networld_envs.topology import hex_adjacency
from networld_envs.types import Environment, Information, TaskSpec, make_step


def reset(key: chex.PRNGKey, params: NSParams) -> tuple[NSState, jax.Array]:
    """A new episode: slice mix, hot-spots, sessions; empty queues, allocation W/3 each, zero history, SSR 1."""
    mix_key, hotspot_key, session_key, trace_key = jax.random.split(key, 4)
    dtype = jnp.float32
    mix = jax.random.dirichlet(mix_key, jnp.full(3, params.mix_concentration, dtype))
    log_mix = jnp.log(jnp.maximum(mix, 1e-3))
    hotspots = mobility.new_hotspots(hotspot_key, params)
    users = mobility.new_sessions(mobility.draw_sessions(session_key, params), mix, hotspots, params)
    trace_start = jnp.int32(0)
    if params.traces is not None:
        trace_start = jax.random.randint(trace_key, (), 0, params.traces.position_m.shape[0])
        users = users.replace(
            position_m=params.traces.position_m[trace_start].astype(dtype), slice_index=params.traces.slice_index
        )
        zeros = jnp.zeros(params.num_users, dtype)
        users = users.replace(timer_slots=traffic.gap_slots(users.slice_index, zeros, params.traffic_load) - 1)
    zeros = jnp.zeros((params.num_cells, NUM_SLICES), dtype)
    state = NSState(
        users=users,
        hotspots=hotspots,
        queue=slots.empty_queue((params.num_users,), dtype),
        cell=mobility.nearest_cell(users.position_m, params),
        pointer_id=jnp.zeros(NUM_SLICES * params.num_cells, jnp.int32),
        log_mix=log_mix,
        mean_log_mix=log_mix,
        alloc_hz=zeros + params.bandwidth_hz / NUM_SLICES,
        load=jnp.full(params.num_cells, 0.5, dtype),
        arrivals_before=zeros,
        arrivals_last=zeros,
        backlog=zeros,
        ssr=zeros + 1,
        t=jnp.int32(0),
        trace_start=trace_start,
    )
    return state, observe(state, params)


def adjacency(state: NSState, params: NSParams) -> jax.Array:
    """[N, N] float32: cells that touch."""
    del state
    return jnp.asarray(hex_adjacency(params.centres_m, params.inter_site_m))


def agent_mask(state: NSState, params: NSParams) -> jax.Array:
    """[N] ones: every BS is present."""
    del state
    return jnp.ones(params.num_cells, jnp.float32)


def _information(observation: str) -> tuple[Information, ...]:

    def names(block: str) -> tuple[str, ...]:
        return tuple(f"{block}_{name}" for name in traffic.SLICES)

    counted = "packets counted at the BS"
    blocks = (
        Information(names("arrivals_before"), "own", 2, 0, counted),
        Information(names("arrivals_last"), "own", 1, 0, counted),
        Information(names("backlog"), "own", 0, 0, "queue lengths at the BS"),
        Information(names("alloc"), "own", 0, 0, "the BS's own configuration"),
        Information(names("ssr"), "own", 1, 0, "packets judged at the BS"),
    )
    return blocks if observation == "full" else blocks[:2]


def make_spec(params: NSParams) -> TaskSpec:
    """The task as other modules see it."""
    information = _information(params.observation)
    names = tuple(name for block in information for name in block.entries)
    return TaskSpec(
        name="ns",
        max_agents=params.num_cells,
        obs_dim=len(names),
        action_dim=NUM_SLICES,
        action_kind="box",
        action_low=(0.0,) * NUM_SLICES,
        action_high=(float(params.bandwidth_hz),) * NUM_SLICES,
        obs_names=names,
        information=information,
    )


def make_ns(preset: str = "default", user_traces: Any = None, **overrides: Any) -> Environment:
    """Network slicing.

    Args:
      preset: "default"; "roaming" (10 MHz, short-lived crowds, many users who roam: planning is worth less, see
        docs/environments_ns.md); "published" (10 MHz, wiped queues, no interference, instant allocation: 19 independent
        bandits); "faithful" (windows of 2000 slots); "tiny" (7 BSs, 140 users, 40 slots: for tests).
      user_traces: (positions [T, U, 2] in m, slices [U]) of recorded users, instead of simulated sessions: window t of
        an episode reads positions[(start + t) mod T] with a random start; base stations are `NSParams.centres_m`.
      **overrides: fields of `NSParams`.

    Raises ValueError for an unknown preset or parameter, or one outside its range.
    """
    params = make_params(preset, user_traces, **overrides)
    spec = make_spec(params)
    return Environment(
        spec=spec,
        default_params=params,
        reset=reset,
        step=make_step(draw, transition, spec),
        transition=transition,
        observe=observe,
        adjacency=adjacency,
        agent_mask=agent_mask,
        project_action=project_action,
        draw=draw,
    )
