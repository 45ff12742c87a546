"""One slot of the beamforming network: state, topology, draws, actions, fading, and the order of events."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from networld_envs import channel as channels
from networld_envs.cbf_links import Links, canonical_phase, link_quantities, own, received_amplitude, unit
from networld_envs.cbf_params import CBFParams
from networld_envs.channel import squared_magnitude


@struct.dataclass
class Topology:
    """What stays fixed within an episode. Linear gains; responses normalised so that noise is 1 and full power is 1."""

    path_gain: jax.Array  # [N, N] linear
    responses: jax.Array | None  # [N, N, M, K] complex, None with a channel trace
    mean_gain: jax.Array  # [N, N] stationary E|h_ijk|^2 per antenna, normalised
    ue_xy_m: jax.Array | None = None  # [N, 2]; None when gains or channels are supplied without positions


@struct.dataclass
class CBFDraws:
    """All randomness of a step."""

    innovation: jax.Array | None  # [N, N, M] CN(0, 1); None with a channel trace
    csi_error: jax.Array | None  # [N, N, K] CN(0, 1); None with perfect estimates


@struct.dataclass
class ReferenceMemory:
    """What only the reference observation looks back to."""

    received: jax.Array  # [N, N] slot t-2
    rate: jax.Array  # [N] slot t-2
    code_index: jax.Array  # [N] slot t-2
    own_gain: jax.Array  # [N] on (H(t-1), beams of t-2): measured before action t-1
    interference: jax.Array  # [N] likewise


@struct.dataclass
class CBFState:
    """At the start of slot t: the channel is H(t), beams and link quantities are those of slot t-1."""

    t: jax.Array  # [] int32
    topology: Topology
    fading: jax.Array | None  # [N, N, M] complex coefficients g(t)
    channel: jax.Array  # [N, N, K] complex H(t), normalised
    estimate: jax.Array  # [N, N, K] what the base stations know of H(t); equal to it without estimation error
    last_channel: jax.Array  # [N, N, K] H(t-1)
    last_estimate: jax.Array  # [N, N, K] what they knew of H(t-1)
    direction: jax.Array  # [N, K] complex unit beams of slot t-1, zero where silent
    power: jax.Array  # [N] of slot t-1, fraction of P_max
    code_index: jax.Array  # [N] int32 code of slot t-1; keeps its old value under continuous beams
    links: Links  # on (H(t-1), beams of t-1)
    memory: ReferenceMemory | None  # reference face only


# --- topology and fading -------------------------------------------------------------------------------------------


def draw_topology(key: chex.PRNGKey, params: CBFParams) -> Topology:
    """Users, path gains and path angles; whatever the parameters supply is not drawn. See `channel` for the laws."""
    if params.topology_seed is not None:
        key = jax.random.key(params.topology_seed)
    user_key, shadowing_key, angle_key, azimuth_key = jax.random.split(key, 4)
    bs_xy_m = jnp.asarray(params.bs_xy_m, jnp.result_type(float))
    ue_xy_m = channels.draw_users(user_key, bs_xy_m, params.min_distance_m, params.inter_site_m / 2)
    if params.channels is not None:
        return _trace_topology(params)
    if params.path_gain is None:
        path_gain = channels.draw_path_gain(shadowing_key, bs_xy_m, ue_xy_m, params.shadowing_db)
        nominal_rad = channels.azimuth_rad(bs_xy_m, ue_xy_m)
    else:
        path_gain = jnp.asarray(params.path_gain, ue_xy_m.dtype)
        nominal_rad = jax.random.uniform(azimuth_key, path_gain.shape, maxval=2 * jnp.pi)
    if params.azimuth_rad is not None:
        nominal_rad = jnp.asarray(params.azimuth_rad, ue_xy_m.dtype)
    spread_rad = params.path_spread_deg * jnp.pi / 180.0
    angle_rad = channels.draw_path_angles(angle_key, nominal_rad, params.num_paths, spread_rad, params.one_sided_angles)
    topology = make_topology(path_gain, channels.steering_vectors(angle_rad, params.num_antennas), params)
    return topology.replace(ue_xy_m=ue_xy_m) if params.path_gain is None else topology


def make_topology(path_gain: jax.Array, steering: jax.Array, params: CBFParams) -> Topology:
    """Topology out of linear gains [N, N] and unit steering vectors [N, N, L, K], e.g. of a recorded network."""
    responses = jnp.sqrt(path_gain * params.max_snr)[..., None, None] * steering
    if params.compress_paths and steering.shape[-1] < steering.shape[-2]:
        responses = channels.equivalent_responses(responses)
    return Topology(path_gain, responses, jnp.mean(jnp.sum(squared_magnitude(responses), axis=-2), axis=-1))


def _trace_topology(params: CBFParams) -> Topology:
    mean_gain = jnp.mean(squared_magnitude(jnp.asarray(params.channels)), axis=(0, -1))
    path_gain = mean_gain if params.path_gain is None else jnp.asarray(params.path_gain, mean_gain.dtype)
    return Topology(path_gain, None, mean_gain * params.max_snr)


def second_moment(topology: Topology, params: CBFParams) -> jax.Array:
    """R_ij = E[h_ij^* h_ij^T], [N, N, K, K], of the stationary law (of a trace: its average)."""
    samples = topology.responses
    if samples is None:
        trace = jnp.asarray(params.channels) * jnp.sqrt(params.max_snr / len(params.channels))
        samples = jnp.moveaxis(trace, 0, -2)
    return sum(
        samples[..., m, :, None].conj() * samples[..., m, None, :] for m in range(samples.shape[-2])
    )  # fmt: skip


def trace_channel(t: jax.Array, params: CBFParams) -> jax.Array:
    """Normalised channel of slot t >= -warmup_slots of the supplied trace."""
    trace = jnp.asarray(params.channels)
    return trace[t + params.warmup_slots] * jnp.sqrt(params.max_snr).astype(trace.real.dtype)


def next_channel(state: CBFState, draws: CBFDraws, params: CBFParams) -> tuple[jax.Array | None, jax.Array]:
    """(fading coefficients, channel) of slot t + 1."""
    if params.channels is not None:
        return None, trace_channel(state.t + 1, params)
    fading = channels.fade(state.fading, draws.innovation, params.correlation)
    return fading, channels.combine_paths(fading, state.topology.responses)


def estimate_channel(
    channel: jax.Array, topology: Topology, csi_error: jax.Array | None, params: CBFParams
) -> jax.Array:
    """h + sqrt(csi_error E|h|^2) CN(0, 1): uplink sounding, its squared error relative to the mean channel power."""
    if params.csi_error_db is None:
        return channel
    relative_error = 10.0 ** (params.csi_error_db / 10.0)
    return channel + jnp.sqrt(relative_error * topology.mean_gain)[..., None] * csi_error


# --- actions ---------------------------------------------------------------------------------------------------------


def reals_to_beam(action: jax.Array) -> jax.Array:
    """[..., 2K] reals (all real parts, then all imaginary parts) to [..., K] complex."""
    num_antennas = action.shape[-1] // 2
    return jax.lax.complex(action[..., :num_antennas], action[..., num_antennas:])


def beam_to_reals(beam: jax.Array) -> jax.Array:
    """Inverse of `reals_to_beam`."""
    return jnp.concatenate([beam.real, beam.imag], axis=-1)


def project_beam(action: jax.Array, params: CBFParams) -> jax.Array:
    """Executed form of a beam action [N, 2K] in sqrt(mW): into the ball |w|^2 <= P_max, antenna 0 real and >= 0."""
    beam = canonical_phase(reals_to_beam(action))
    power_mw = jnp.sum(squared_magnitude(beam), axis=-1, keepdims=True)
    excess = jnp.maximum(power_mw / params.p_max_mw, 1.0)
    return beam_to_reals(beam * jax.lax.rsqrt(excess))


def clip_action(action: jax.Array, params: CBFParams) -> jax.Array:
    """Executed form of codebook actions [N, 1]: nearest flat index code * Q + level in range."""
    return jnp.clip(jnp.round(action), 0, params.num_actions - 1)


def decode_beam(action: jax.Array, params: CBFParams) -> tuple[jax.Array, jax.Array]:
    """(direction [N, K], power [N] as a fraction of P_max) of beams [N, 2K] in sqrt(mW)."""
    return unit(reals_to_beam(action) / jnp.sqrt(params.p_max_mw))


def decode_index(index: jax.Array, params: CBFParams) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(direction [N, K], power [N], code [N]) of flat indices code * Q + level."""
    num_levels = params.power_levels.shape[0]
    code, level = index // num_levels, index % num_levels
    power = jnp.asarray(params.power_levels, jnp.result_type(float))[level]
    return jax.lax.complex(*_codebook(params))[code], power, code


def _codebook(params: CBFParams) -> tuple[jax.Array, jax.Array]:
    real = jnp.asarray(params.codebook.real, jnp.result_type(float))
    return real, jnp.asarray(params.codebook.imag, jnp.result_type(float))


# --- one slot --------------------------------------------------------------------------------------------------------


def draw(key: chex.PRNGKey, state: CBFState, params: CBFParams) -> CBFDraws:
    """Randomness of one step."""
    fading_key, error_key = jax.random.split(key)
    innovation = None if state.fading is None else channels.complex_normal(fading_key, state.fading.shape)
    exact = params.csi_error_db is None
    return CBFDraws(innovation, None if exact else channels.complex_normal(error_key, state.channel.shape))


def advance(
    state: CBFState, direction: jax.Array, power: jax.Array, code_index: jax.Array, draws: CBFDraws, params: CBFParams
) -> CBFState:
    """Slot t with the given beams: link quantities on (H(t), w(t)), then the channel moves to H(t+1).

    Args: direction [N, K] unit beams, power [N] fraction of P_max, code_index [N] (kept as is in the state).
    """
    links = link_quantities(state.channel, direction, power)
    fading, channel = next_channel(state, draws, params)
    return CBFState(
        t=state.t + 1,
        topology=state.topology,
        fading=fading,
        channel=channel,
        estimate=estimate_channel(channel, state.topology, draws.csi_error, params),
        last_channel=state.channel,
        last_estimate=state.estimate,
        direction=direction,
        power=power,
        code_index=code_index,
        links=links,
        memory=None if state.memory is None else remember(state),
    )


def remember(state: CBFState) -> ReferenceMemory:
    """What the values at the start of slot t become at its end: t-1 turns into t-2."""
    own_gain, interference = measure(state)
    return ReferenceMemory(state.links.received, state.links.rate, state.code_index, own_gain, interference)


def measure(state: CBFState) -> tuple[jax.Array, jax.Array]:
    """Own gain [N] and noise + interference [N] on (H(t), w(t-1)): current channel, old beams."""
    now = link_quantities(state.channel, state.direction, state.power)
    return own(now.gain), now.interference


def initial_state(key: chex.PRNGKey, params: CBFParams) -> CBFState:
    """Topology, stationary fading (or the published start), and random beams on the same channel as a made-up past,
    which `warm_up` replaces.
    """
    topology_key, fading_key, error_key, action_key = jax.random.split(key, 4)
    topology = draw_topology(topology_key, params)
    if topology.responses is None:
        fading, channel = None, trace_channel(jnp.int32(-params.warmup_slots), params)
    else:
        scale = params.num_paths**-0.5 if params.unit_power_start else 1.0
        fading = scale * channels.complex_normal(fading_key, topology.responses.shape[:-1])
        channel = channels.combine_paths(fading, topology.responses)
    exact = params.csi_error_db is None
    csi_error = None if exact else channels.complex_normal(error_key, channel.shape)
    estimate = estimate_channel(channel, topology, csi_error, params)
    direction, power, code_index = random_beams(action_key, params)
    links = link_quantities(channel, direction, power)
    state = CBFState(
        jnp.int32(-params.warmup_slots), topology, fading, channel, estimate, channel, estimate,
        direction, power, code_index, links, None,
    )  # fmt: skip
    return state.replace(memory=remember(state)) if params.face == "reference" else state


def random_index(key: chex.PRNGKey, params: CBFParams) -> jax.Array:
    """[N] int32 uniform flat codebook actions."""
    return jax.random.randint(key, (params.num_agents,), 0, params.num_actions)


def random_beams(key: chex.PRNGKey, params: CBFParams) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(direction, power, code) of the start: random codebook actions in the reference face; in the default face random
    codes with uniform amplitude, so that no cell starts silent (a fixed point of fractional programming)."""
    index_key, amplitude_key = jax.random.split(key)
    direction, power, code_index = decode_index(random_index(index_key, params), params)
    if params.face == "default":
        power = jax.random.uniform(amplitude_key, power.shape) ** 2
    return direction, power, code_index


def warm_up(key: chex.PRNGKey, state: CBFState, params: CBFParams) -> CBFState:
    """`warmup_slots` slots of random beams."""

    def slot(state, t):
        action_key, draw_key = jax.random.split(jax.random.fold_in(key, t))
        return advance(state, *random_beams(action_key, params), draw(draw_key, state, params), params), None

    return jax.lax.scan(slot, state, jnp.arange(params.warmup_slots))[0]


def normalised_beam(state: CBFState) -> jax.Array:
    """[N, K] complex beams of slot t-1, |w| <= 1."""
    return jnp.sqrt(state.power)[:, None] * state.direction


def own_amplitude(channel: jax.Array, beam: jax.Array) -> jax.Array:
    """h_nn^T w_n [N]."""
    return jnp.sum(own(channel) * beam, axis=-1)


def received_power(channel: jax.Array, beam: jax.Array) -> jax.Array:
    """|h_ij^T w_i|^2 [N, N]."""
    return squared_magnitude(received_amplitude(channel, beam))
