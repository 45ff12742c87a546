"""What a base station observes: `local_csi` of the default face, the published scalars of the reference face."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from networld_envs.cbf_dynamics import CBFState, measure
from networld_envs.cbf_hermitian import hermitian_eigen, hermitian_to_reals, matrix_function, reals_to_hermitian
from networld_envs.cbf_links import (
    canonical_phase,
    interference_price,
    leakage_matrices,
    own,
    ranks,
    strongest,
    unit,
)
from networld_envs.cbf_params import CBFParams, scope_mask
from networld_envs.channel import squared_magnitude
from networld_envs.types import Information

LG_FLOOR = 1e-3  # lg x = log10(x + floor): the range of received powers spans fifteen decades
SLNR_REGULARISER = 1e-2
RATE_SCALE = 5.0  # bit/s/Hz
GAIN_SCALE = 1e-9  # of the reference observation, linear gain and mW
INTERFERENCE_SCALE = 1e-7  # mW
FLOAT_BYTES = 4


def lg(x: jax.Array) -> jax.Array:
    """log10(x + 1e-3)."""
    return jnp.log10(x + LG_FLOOR)


def unlg(y: jax.Array) -> jax.Array:
    """Inverse of `lg`, never negative."""
    return jnp.maximum(10.0**y - LG_FLOOR, 0.0)


# --- default face ------------------------------------------------------------------------------------------------


def local_csi_blocks(params: CBFParams) -> dict[str, int]:
    """Block name -> number of entries, in order."""
    num_antennas = params.num_antennas
    blocks = {
        "power": 1,
        "rate": 1,
        "channel_gain": 1,
        "equivalent_gain": 1,
        "interference_now": 1,
        "wanted": 1,
        "interference": 1,
        "beam": 2 * num_antennas - 1,
        "channel": 2 * num_antennas - 1,
        "leakage": num_antennas**2,
        "slnr": (2 * num_antennas - 1) if params.slnr_feature else 0,
        "interferer_power": params.num_neighbours,
        "interferer_rate": params.num_neighbours,
    }
    return {name: size for name, size in blocks.items() if size}


def split_local_csi(obs: jax.Array, params: CBFParams) -> dict[str, jax.Array]:
    """Observation [..., O] cut into its named blocks."""
    blocks, start = {}, 0
    for name, size in local_csi_blocks(params).items():
        blocks[name] = obs[..., start : start + size]
        start += size
    return blocks


def direction_to_reals(direction: jax.Array) -> jax.Array:
    """Unit vector [..., K] in canonical phase as 2K - 1 reals: real parts, then imaginary parts of antennas 1..K-1."""
    direction = canonical_phase(direction)
    return jnp.concatenate([direction.real, direction.imag[..., 1:]], axis=-1)


def reals_to_direction(reals: jax.Array) -> jax.Array:
    """Inverse of `direction_to_reals`."""
    num_antennas = (reals.shape[-1] + 1) // 2
    imag = jnp.concatenate([jnp.zeros_like(reals[..., :1]), reals[..., num_antennas:]], axis=-1)
    return jax.lax.complex(reals[..., :num_antennas], imag)


def local_csi(state: CBFState, params: CBFParams) -> jax.Array:
    """[N, O] observation at the start of slot t, in normalised units (noise 1, |w| <= 1; lg x = log10(x + 1e-3)).

    | entries | what | slot |
    |---|---|---|
    | power, rate | sqrt(p), C/5 | t-1 |
    | channel_gain, equivalent_gain | lg |h_nn|^2, lg |h_nn^T w|^2 with w of t-1 | t |
    | interference_now | lg IN on (H(t), w(t-1)) | t |
    | wanted, interference | lg d, lg IN | t-1 |
    | beam (2K-1) | own unit beam, canonical phase | t-1 |
    | channel (2K-1) | own channel direction, canonical phase | t |
    | leakage (K^2) | matrix logarithm of A_n = sum_k a_k h_nk^* h_nk^T over the victims k within `price_scope` | t-1 |
    | slnr (2K-1) | only with `slnr_feature`: unit (A_n + 1e-2 I)^-1 h_nn(t)^* | t |
    | interferer_power (U) | lg r_in of the U strongest interferers, falling | t-1 |
    | interferer_rate (U) | their C/5; 0 for those outside `price_scope` | t-1 |
    """
    channel, channel_gain = unit(own(state.estimate))
    equivalent_gain = state.power * squared_magnitude(jnp.sum(own(state.estimate) * state.direction, axis=-1))
    _, interference_now = measure(state)
    links = state.links
    leakage = leakage_of(state, params)
    parts = {
        "power": jnp.sqrt(state.power)[:, None],
        "rate": links.rate[:, None] / RATE_SCALE,
        "channel_gain": lg(channel_gain)[:, None],
        "equivalent_gain": lg(equivalent_gain)[:, None],
        "interference_now": lg(interference_now)[:, None],
        "wanted": lg(links.wanted)[:, None],
        "interference": lg(links.interference)[:, None],
        "beam": direction_to_reals(state.direction),
        "channel": direction_to_reals(channel),
        "leakage": log_leakage(leakage),
        **_interferers(links.received, links.rate, params),
    }
    if params.slnr_feature:
        parts["slnr"] = direction_to_reals(max_slnr_direction(leakage, channel))
    return jnp.concatenate([parts[name] for name in local_csi_blocks(params)], axis=-1)


def leakage_of(state: CBFState, params: CBFParams) -> jax.Array:
    """A_n [N, K, K] out of the estimates and prices of slot t-1, over the victims whose prices n hears."""
    price = interference_price(state.links.wanted, state.links.interference)
    return leakage_matrices(state.last_estimate, price, scope_mask(params).astype(price.dtype))


def log_leakage(leakage: jax.Array) -> jax.Array:
    """Q lg(Lambda) Q^H of [N, K, K] as K^2 reals. Rounding may leave eigenvalues an ulp of the largest below zero."""
    return hermitian_to_reals(matrix_function(leakage, lambda values: lg(jnp.maximum(values, 0.0))))


def unlog_leakage(reals: jax.Array) -> jax.Array:
    """Inverse of `log_leakage`: [N, K^2] to [N, K, K]."""
    return matrix_function(reals_to_hermitian(reals), unlg)


def max_slnr_direction(leakage: jax.Array, channel: jax.Array) -> jax.Array:
    """Unit (A + 1e-2 I)^-1 h^*: maximises received power over priced leakage plus noise."""
    values, vectors = hermitian_eigen(leakage)
    projection = jnp.sum(vectors.conj() * channel.conj()[..., :, None], axis=-2)
    weights = projection / (jnp.maximum(values, 0.0) + SLNR_REGULARISER)
    return unit(jnp.sum(vectors * weights[..., None, :], axis=-1))[0]


def _interferers(received: jax.Array, rate: jax.Array, params: CBFParams) -> dict[str, jax.Array]:
    """Powers and rates of the strongest interferers of each user, slot t-1."""
    incoming = received.T  # [user, base station]
    place = jnp.arange(params.num_neighbours).reshape(1, -1, 1)
    chosen = ranks(incoming)[:, None, :] == place  # [N, U, N], one entry per row
    pick = lambda values: jnp.sum(jnp.where(chosen, values[:, None, :], 0.0), axis=-1)  # noqa: E731
    return {
        "interferer_power": lg(pick(incoming)),
        "interferer_rate": pick(jnp.where(scope_mask(params), rate[None, :], 0.0)) / RATE_SCALE,
    }


@struct.dataclass
class LocalView:
    """Physical quantities an agent reads off its `local_csi` observation, normalised units."""

    power: jax.Array  # [...] of slot t-1, fraction of P_max
    beam: jax.Array  # [..., K] unit beam of slot t-1, canonical phase
    channel: jax.Array  # [..., K] h_nn(t) up to a common phase
    wanted: jax.Array  # [...] |h_nn(t)^T w(t-1)|^2
    interference: jax.Array  # [...] IN on (H(t), w(t-1))
    leakage: jax.Array  # [..., K, K] A_n of slot t-1


def decode_local_csi(obs: jax.Array, params: CBFParams) -> LocalView:
    """Inverts the logarithms of an observation [N, O]. What rules use: they know no more than a learned policy does."""
    blocks = split_local_csi(obs, params)
    gain = unlg(blocks["channel_gain"])
    return LocalView(
        power=blocks["power"][..., 0] ** 2,
        beam=reals_to_direction(blocks["beam"]),
        channel=jnp.sqrt(gain) * reals_to_direction(blocks["channel"]),
        wanted=unlg(blocks["equivalent_gain"][..., 0]),
        interference=unlg(blocks["interference_now"][..., 0]),
        leakage=unlog_leakage(blocks["leakage"]),
    )


def local_csi_names(params: CBFParams) -> dict[str, tuple[str, ...]]:
    """Block -> one name per entry, in order."""
    return {
        block: (block,) if size == 1 else tuple(f"{block}_{m}" for m in range(size))
        for block, size in local_csi_blocks(params).items()
    }


def local_csi_information(params: CBFParams) -> tuple[Information, ...]:
    """Whose, how old, how many bytes. Prices and rates come over the backhaul as one float32 each per heard cell."""
    scope = params.price_scope
    heard = int(params.adjacency.sum(axis=1).max()) if scope == "one_hop" else params.num_agents - 1
    message_bytes = FLOAT_BYTES * heard
    names = local_csi_names(params)

    def block(blocks: tuple[str, ...], whose: str, lag: int, num_bytes: int, source: str) -> Information:
        return Information(sum((names[block] for block in blocks), ()), whose, lag, num_bytes, source)

    table = [
        block(("power", "beam"), "own", 1, 0, "own last action"),
        block(("channel_gain", "equivalent_gain", "channel"), "own", 0, 0, "uplink sounding of the own link"),
        block(("rate", "wanted", "interference"), "own", 1, 0, "feedback of the own user on the last slot"),
        block(("interference_now",), "global", 0, 0, "power measurement of the own user: everybody's last beams"),
        block(("leakage",), scope, 1, message_bytes, "uplink sounding of victims, prices over the backhaul"),
        block(("interferer_power",), "global", 1, 0, "per-cell pilot powers measured by the own user"),
        block(("interferer_rate",), scope, 1, message_bytes, "rates over the backhaul"),
    ]
    if params.slnr_feature:
        table.append(block(("slnr",), scope, 0, 0, "from leakage and own channel"))
    return tuple(table)


# --- reference face ------------------------------------------------------------------------------------------------


def reference_observation(state: CBFState, params: CBFParams) -> jax.Array:
    """[N, 7 + 11 U] observation of the published simulator at the start of slot t + 1 (state.t), t the slot just run.

    | index | value |
    |---|---|
    | 0, 1, 2 | power(t) / P_max, code index(t), C(t) / 5 |
    | 3, 4 | own gain on (H(t+1), code(t)) and on (H(t), code(t-1)), / 1e-9 |
    | 5, 6 | IN on (H(t+1), w(t)) and on (H(t), w(t-1)), mW / 1e-7 |
    | 7 + 4q | q-th strongest interferer i of slot t: i / (N-1), r_in / 1e-9 mW, code index, C_i / 5 |
    | 7 + 4U + 4q | the same of slot t-1 |
    | 7 + 8U + 3q | q-th most interfered user k of slot t: gain_nk / 1e-9, C_k / 5, r_nk / IN_k |
    """
    links, memory = state.links, state.memory
    own_gain, interference = measure(state)
    gain_unit = 1.0 / (params.max_snr * GAIN_SCALE)
    power_unit_mw = params.noise_mw / GAIN_SCALE
    interference_unit_mw = params.noise_mw / INTERFERENCE_SCALE
    dtype = links.rate.dtype
    own_part = jnp.stack(
        [
            state.power,
            state.code_index.astype(dtype),
            links.rate / RATE_SCALE,
            own_gain * gain_unit,
            memory.own_gain * gain_unit,
            interference * interference_unit_mw,
            memory.interference * interference_unit_mw,
        ],
        axis=-1,
    )

    def interferers(received: jax.Array, code_index: jax.Array, rate: jax.Array) -> jax.Array:
        index = strongest(received.T, params.num_neighbours)
        power_mw = jnp.take_along_axis(received.T, index, axis=1) * power_unit_mw
        number = index.astype(dtype) / (params.num_agents - 1)
        return jnp.stack([number, power_mw, code_index[index].astype(dtype), rate[index] / RATE_SCALE], axis=-1)

    victims = strongest(links.received, params.num_neighbours)
    interfered = jnp.stack(
        [
            jnp.take_along_axis(links.gain, victims, axis=1) * gain_unit,
            links.rate[victims] / RATE_SCALE,
            jnp.take_along_axis(links.received, victims, axis=1) / links.interference[victims],
        ],
        axis=-1,
    )
    now = interferers(links.received, state.code_index, links.rate)
    before = interferers(memory.received, memory.code_index, memory.rate)
    flat = [part.reshape(params.num_agents, -1) for part in (now, before, interfered)]
    return jnp.concatenate([own_part, *flat], axis=-1)


def reference_names(params: CBFParams) -> tuple[str, ...]:
    """One name per entry of the reference observation."""
    own_part = ("power", "code", "rate", "gain_now", "gain_before", "interference_now", "interference_before")
    blocks = (("interferer", 4), ("last_interferer", 4), ("interfered", 3))
    return own_part + tuple(
        f"{name}_{q}_{m}" for name, size in blocks for q in range(params.num_neighbours) for m in range(size)
    )


def reference_information(params: CBFParams) -> tuple[Information, ...]:
    """The published scheme exchanges with the currently strongest cells, wherever they are."""
    names = reference_names(params)
    num_bytes = FLOAT_BYTES * params.num_neighbours
    return (
        Information(names[:3], "own", 1, 0, "own last action and rate"),
        Information(names[3:5], "own", 0, 0, "gain of the own link under the old code, current and previous"),
        Information(names[5:7], "global", 0, 0, "power measurement of the own user, current and previous"),
        Information(names[7:], "global", 1, 11 * num_bytes, "exchange with the strongest interferers and interfered"),
    )
