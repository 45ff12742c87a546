"""Policies of the beamforming task: rules an agent could run, experts that no agent could, tiers for the data sets.

Rules with `information="own"` act on the observation alone (the backhaul messages in it are declared in the TaskSpec),
so they know exactly what a learned policy knows. Those with `information="global"` read the channels of the whole
network out of the state; they bracket the learned policies and make the data.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from networld_envs import cbf_dynamics as dynamics
from networld_envs.cbf_dynamics import CBFState
from networld_envs.cbf_links import interference_without, own
from networld_envs.cbf_observation import LocalView, decode_local_csi, max_slnr_direction
from networld_envs.cbf_params import CBFParams
from networld_envs.channel import complex_normal, squared_magnitude
from networld_envs.experts import beamforming as solvers
from networld_envs.policies import disturbed, mixture, stateless
from networld_envs.types import Policy

MIXED_SEGMENT_STEPS = 25
BEAM_NOISE_PROBABILITY = 0.2
BEAM_NOISE_POWER = 0.1  # of P_max
STATIC_ITERATIONS = 10  # per slot, from the last slot's beams: static once converged, after some 30 slots
ROBUST_ITERATIONS = 5


def policies(params: CBFParams) -> dict[str, Policy]:
    """All policies of the face that `params` describe.

    Default face: random, greedy (best code, full power), mrt, slnr_full_power, local_fp, local_fp_floor on own
    observations; static_beams, robust_wmmse, warm_fp1, warm_fp10 (the latter two with the power floor), best_response,
    coordinate_ascent with more. Reference face: those with codebook actions.
    """
    discrete = {
        "random": stateless(lambda key, obs, adjacency, state: _indices(dynamics.random_index(key, params), params)),
        "greedy": _greedy(params),
        "best_response": _best_response(params),
        "coordinate_ascent": _coordinate_ascent(params),
    }
    if params.face == "reference":
        return discrete
    return discrete | {
        "mrt": _on_observation(_mrt, params),
        "slnr_full_power": _on_observation(_slnr_full_power, params),
        "local_fp": _on_observation(_local_fp, params),
        "local_fp_floor": _on_observation(_local_fp_floor, params),
        "static_beams": _static_beams(params),
        "robust_wmmse": _robust_wmmse(params),
        "warm_fp1": warm_fp(params, 1),
        "warm_fp10": warm_fp(params, 10),
    }


def tiers(params: CBFParams) -> dict[str, Policy]:
    """Data-collecting policies: expert, local_fp, medium, mixed, noisy_expert. Collect under `jax.enable_x64`.

    mixed: per agent and segment of 25 slots one of random, greedy, MRT, SLNR, local FP, FP10; with probability 0.2 a
    beam is disturbed by CN(0, 0.1 P_max). Raises ValueError for the reference face, which has no beams.
    """
    if params.face != "default":
        raise ValueError(f"tiers need the default face (beam actions), got face={params.face!r}; use policies(params)")
    table = policies(params)
    members = [table[name] for name in ("random", "greedy", "mrt", "slnr_full_power", "local_fp", "warm_fp10")]

    def add_noise(key: jax.Array, action: jax.Array) -> jax.Array:
        scale = jnp.sqrt(BEAM_NOISE_POWER * params.p_max_mw / params.num_antennas)
        noise = scale * complex_normal(key, (params.num_agents, params.num_antennas))
        return dynamics.project_beam(action + dynamics.beam_to_reals(noise).astype(action.dtype), params)

    return {
        "expert": table["warm_fp10"],
        "local_fp": table["local_fp"],
        "medium": table["mrt"],
        "mixed": mixture(members, MIXED_SEGMENT_STEPS, add_noise, BEAM_NOISE_PROBABILITY),
        "noisy_expert": disturbed(table["warm_fp10"], table["random"]),
    }


# --- on own observations ---------------------------------------------------------------------------------------------


def _on_observation(beam_fn: Callable[[LocalView], jax.Array], params: CBFParams) -> Policy:
    """A rule LocalView -> normalised beam [N, K]."""

    def act(key, obs, adjacency, env_state):
        return to_action(beam_fn(decode_local_csi(obs, params)), params)

    return stateless(act, information="own")


def _mrt(view: LocalView) -> jax.Array:
    return solvers.matched_filter(view.channel)


def _slnr_full_power(view: LocalView) -> jax.Array:
    return max_slnr_direction(view.leakage, view.channel)


def _local_fp(view: LocalView) -> jax.Array:
    beam = jnp.sqrt(view.power)[:, None] * view.beam
    return solvers.local_fp_beam(view.channel, beam, view.interference, view.leakage, view.wanted)


def _local_fp_floor(view: LocalView) -> jax.Array:
    lifted = solvers.FLOOR_NORM**2 * jnp.sum(squared_magnitude(view.channel), axis=-1)
    wanted = jnp.where(view.power < solvers.FLOOR_NORM**2, lifted, view.wanted)
    beam = jnp.sqrt(view.power)[:, None] * view.beam
    return solvers.local_fp_beam(view.channel, beam, view.interference, view.leakage, wanted)


def _greedy(params: CBFParams) -> Policy:
    """The code with the largest gain on the own current channel, full power."""
    directions = _code_directions(params)
    full_power = params.power_levels.shape[0] - 1

    def act(key, obs, adjacency, env_state):
        if params.face == "reference":  # its observation has no channel, the published scheme reads it off the sounding
            channel = own(env_state.estimate)
        else:
            channel = decode_local_csi(obs, params).channel
        gain = squared_magnitude(sum(channel[:, None, k] * directions[None, :, k] for k in range(channel.shape[-1])))
        return _indices(jnp.argmax(gain, axis=-1) * params.power_levels.shape[0] + full_power, params)

    return stateless(act, information="global" if params.face == "reference" else "own")


# --- with more than an agent can know --------------------------------------------------------------------------------


def warm_fp(params: CBFParams, num_iterations: int, floor: bool = True) -> Policy:
    """Fractional programming on the current channels of all cells, from the beams of the last slot.

    `floor` restarts base stations below a tenth of full amplitude, which would otherwise stay silent for ever.
    """

    def act(key, obs, adjacency, env_state: CBFState):
        beam = dynamics.normalised_beam(env_state)
        if floor:
            beam = solvers.lift_silent(beam, own(env_state.channel))
        return to_action(solvers.fractional_programming(env_state.channel, beam, num_iterations), params)

    return stateless(act, information="global")


def _robust_wmmse(params: CBFParams) -> Policy:
    """Own link of slot t; cross links through rho^2 h h^H(t-1) + (1 - rho^2) R. A causal bracket."""

    def act(key, obs, adjacency, env_state: CBFState):
        last = env_state.last_estimate
        seen = last.conj()[..., :, None] * last[..., None, :]
        weight = params.correlation**2
        moment = weight * seen + (1.0 - weight) * dynamics.second_moment(env_state.topology, params)
        own_channel = own(env_state.estimate)
        beam = solvers.lift_silent(dynamics.normalised_beam(env_state), own_channel)
        return to_action(solvers.robust_wmmse(own_channel, moment, beam, ROBUST_ITERATIONS), params)

    return stateless(act, information="global")


def _static_beams(params: CBFParams) -> Policy:
    """Beams from long-term statistics alone, refined every slot until they stand still. No channel knowledge at all."""

    def act(key, obs, adjacency, env_state: CBFState):
        moment = dynamics.second_moment(env_state.topology, params)
        beam = solvers.lift_silent(dynamics.normalised_beam(env_state), own(env_state.estimate))
        return to_action(solvers.static_beams(moment, beam, STATIC_ITERATIONS), params)

    return stateless(act, information="global")


def _best_response(params: CBFParams) -> Policy:
    """Own link of slot t, everything else one slot old, own reward over all victims, all cells at once."""
    directions, powers = _action_table(params)

    def act(key, obs, adjacency, env_state: CBFState):
        own_gains = own(jnp.swapaxes(solvers.action_gains(env_state.estimate, directions, powers), 1, 2))
        gains = solvers.action_gains(env_state.last_estimate, directions, powers)
        _, interference = dynamics.measure(env_state)
        links = env_state.links
        index = solvers.best_response(
            own_gains, interference, gains, links.wanted, interference_without(links.received)
        )
        return _indices(index, params)

    return stateless(act, information="global")


def _coordinate_ascent(params: CBFParams, num_sweeps: int = 3) -> Policy:
    """Discrete coordinate ascent on the sum rate with the current channels of all cells, from random actions."""
    directions, powers = _action_table(params)

    def act(key, obs, adjacency, env_state: CBFState):
        gains = solvers.action_gains(env_state.channel, directions, powers)
        return _indices(solvers.coordinate_ascent(gains, dynamics.random_index(key, params), num_sweeps), params)

    return stateless(act, information="global")


# --- encoding --------------------------------------------------------------------------------------------------------


def to_action(beam: jax.Array, params: CBFParams) -> jax.Array:
    """Normalised beam [N, K] as an action [N, 2K] in sqrt(mW), canonical."""
    return dynamics.project_beam(dynamics.beam_to_reals(beam) * jnp.sqrt(params.p_max_mw), params)


def _indices(index: jax.Array, params: CBFParams) -> jax.Array:
    """Flat codebook indices [N] as actions of the face: themselves, or the beams they stand for."""
    if params.face == "reference":
        return index[:, None].astype(jnp.result_type(float))
    direction, power, _ = dynamics.decode_index(index, params)
    return to_action(jnp.sqrt(power)[:, None] * direction, params)


def _action_table(params: CBFParams) -> tuple[jax.Array, jax.Array]:
    """(unit beams [actions, K], powers [actions]) of all flat indices."""
    direction, power, _ = dynamics.decode_index(jnp.arange(params.num_actions), params)
    return direction, power


def _code_directions(params: CBFParams) -> jax.Array:
    """[codes, K]."""
    num_codes, num_levels = params.codebook.shape[0], params.power_levels.shape[0]
    return dynamics.decode_index(jnp.arange(num_codes) * num_levels, params)[0]
