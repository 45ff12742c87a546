"""Coordinated downlink beamforming: one multi-antenna base station and one user per cell, all on the same band.

Every slot (20 ms) base station n chooses a beam w_n; its user receives |h_nn^T w_n|^2 under noise plus the interference
of all other beams, IN_n, at the rate C_n = log2(1 + |h_nn^T w_n|^2 / IN_n) bit/s/Hz. The network is interference
limited: what one cell gains its neighbours pay, and that is the coordination problem.

Two faces of one simulator (`make_cbf(face=...)`):

| | default | reference |
|---|---|---|
| action | beam in sqrt(mW), 2K reals: real parts, then imaginary parts | flat index code * Q + level |
| executed as | projected onto the power ball P_max, antenna 0 real >= 0 | rounded, clipped |
| observation | `cbf_observation.local_csi`, 36 numbers for K = 3, U = 5 | 7 + 11 U published scalars |
| start | stationary fading, symmetric path angles, one random slot | published start, ten random slots |

Reward: r_n = C_n minus what the five users that hear n loudest lose through it (`cbf_links.local_reward`), bit/s/Hz.
Metrics per agent: rate bit/s/Hz, power_mw, border_cell (fewer neighbours than a full ring, there is no wrap-around),
stronger_foreign_bs (another base station has the larger path gain to the user). Continuing task: never terminated.

Simulator: Ge, Liang, Joung, Sun, IEEE Trans. Commun. 68(10), 2020. Task: NetWorld, arXiv 2602.00558, whose departures
are the observation with channel directions and topologies redrawn at every reset.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from networld_envs import cbf_dynamics as dynamics
from networld_envs import cbf_observation as observation
from networld_envs.cbf_dynamics import CBFDraws, CBFState
from networld_envs.cbf_links import local_reward, off_diagonal, own
from networld_envs.cbf_params import CBFParams, make_params
from networld_envs.types import Environment, TaskSpec, TimeStep, make_step


def make_cbf(face: str = "default", **overrides: Any) -> Environment:
    """The beamforming environment with parameters changed (fields of `CBFParams`).

    Shorthands: num_cells (1, 7 or 19 hexagonal cells), num_antennas, num_codes, num_power_levels.
    Your own network: `path_gain` [N, N] linear gains, entry [i, j] from base station i to user j (optionally with
    `azimuth_rad` [N, N]), or `channels` [T, N, N, K], a trace of complex amplitude gains replayed slot by slot from its
    start; for N other than 1, 7, 19 also `adjacency` [N, N].

    Raises ValueError for a parameter out of range.
    """
    params = make_params(face, **overrides)
    spec = make_spec(params)
    return Environment(
        spec=spec,
        default_params=params,
        reset=reset,
        step=make_step(dynamics.draw, transition, spec),
        transition=transition,
        observe=observe,
        adjacency=adjacency,
        agent_mask=agent_mask,
        project_action=project_action,
        draw=dynamics.draw,
    )


def make_spec(params: CBFParams) -> TaskSpec:
    """Names, sizes and information of the face that `params` describe."""
    if params.face == "reference":
        names, information = observation.reference_names(params), observation.reference_information(params)
        low, high, kind = (0.0,), (params.num_actions - 1.0,), "integer"
    else:
        names = sum(observation.local_csi_names(params).values(), ())
        information = observation.local_csi_information(params)
        limit = float(np.sqrt(params.p_max_mw))
        low, high, kind = (-limit,) * (2 * params.num_antennas), (limit,) * (2 * params.num_antennas), "box"
    return TaskSpec(
        name="cbf",
        max_agents=params.num_agents,
        obs_dim=len(names),
        action_dim=len(low),
        action_kind=kind,
        action_low=low,
        action_high=high,
        obs_names=names,
        information=information,
        message_delay_steps=1,  # as old as every other piece of neighbour information
    )


def reset(key: chex.PRNGKey, params: CBFParams) -> tuple[CBFState, jax.Array]:
    """Draws topology, fading and `warmup_slots` slots of random codebook actions: (state, obs [N, O])."""
    state_key, warm_key = jax.random.split(key)
    state = dynamics.warm_up(warm_key, dynamics.initial_state(state_key, params), params)
    return state, observe(state, params)


def transition(state: CBFState, action: jax.Array, draws: CBFDraws, params: CBFParams) -> tuple[CBFState, TimeStep]:
    """Slot t: beams are set, rates and rewards fall on (H(t), w(t)), the channel moves on, agents observe."""
    chex.assert_rank(action, 2)
    executed = project_action(action, params)
    if params.face == "reference":
        direction, power, code_index = dynamics.decode_index(executed[:, 0].astype(jnp.int32), params)
    else:
        direction, power = dynamics.decode_beam(executed, params)
        code_index = state.code_index
    return run_slot(state, executed, direction, power, code_index, draws, params)


def run_slot(
    state: CBFState,
    executed: jax.Array,
    direction: jax.Array,
    power: jax.Array,
    code_index: jax.Array,
    draws: CBFDraws,
    params: CBFParams,
) -> tuple[CBFState, TimeStep]:
    """`transition` after the action map: the entry for beams that are set without projection, as the published FP does.

    Args: executed [N, A] reported as the action; direction [N, K] unit beams (zero = silent); power [N], fraction of
    P_max; code_index [N], which the published simulator leaves stale under continuous beams.
    """
    new_state = dynamics.advance(state, direction, power, code_index, draws, params)
    return new_state, TimeStep(
        obs=observe(new_state, params),
        reward=local_reward(new_state.links, params.num_neighbours),
        action=executed,
        terminated=jnp.bool_(False),
        truncated=new_state.t >= params.episode_steps,
        metrics=_metrics(new_state, params),
    )


def observe(state: CBFState, params: CBFParams) -> jax.Array:
    """[N, O] observations at the start of slot state.t."""
    if params.face == "reference":
        return observation.reference_observation(state, params)
    return observation.local_csi(state, params)


def adjacency(state: CBFState, params: CBFParams) -> jax.Array:
    """[N, N] float32: cells one inter-site distance apart."""
    del state
    return jnp.asarray(params.adjacency, jnp.float32)


def agent_mask(state: CBFState, params: CBFParams) -> jax.Array:
    """[N] ones: every cell is always present."""
    del state
    return jnp.ones(params.num_agents, jnp.float32)


def project_action(action: jax.Array, params: CBFParams) -> jax.Array:
    """Default face: onto the power ball and into canonical phase. Reference face: rounded and clipped to an index."""
    if params.face == "reference":
        return dynamics.clip_action(action, params)
    return dynamics.project_beam(action, params)


def _metrics(state: CBFState, params: CBFParams) -> dict[str, jax.Array]:
    degree = jnp.sum(jnp.asarray(params.adjacency, jnp.float32), axis=1)
    foreign = jnp.max(off_diagonal(state.topology.path_gain), axis=0)
    return {
        "rate": state.links.rate,
        "power_mw": state.power * params.p_max_mw,
        "border_cell": (degree < jnp.max(degree)).astype(jnp.float32),
        "stronger_foreign_bs": (foreign > own(state.topology.path_gain)).astype(jnp.float32),
    }
