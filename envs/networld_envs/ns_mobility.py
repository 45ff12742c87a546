"""Where the users of network slicing are: sessions, hot-spots, movement, link budget.

2000 sessions live at a time in a disc around the base stations. A session has a slice, and either roams on a straight
line or belongs to one of its slice's hot-spots, crowds that move across the cells. Sessions end and are replaced by
new ones elsewhere, whose slice follows a mix that drifts: that is how the load of a cell changes.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from networld_envs import ns_traffic as traffic
from networld_envs import prng
from networld_envs.topology import hex_adjacency
from networld_envs.units import db_to_linear


@struct.dataclass
class Users:
    """One session per row, in order of user id."""

    position_m: jax.Array  # [U, 2]
    direction: jax.Array  # [U, 2] unit vector (roaming users)
    slice_index: jax.Array  # [U] int32
    hotspot: jax.Array  # [U] int32, -1 = roaming
    offset_m: jax.Array  # [U, 2] from the hot-spot's centre
    timer_slots: jax.Array  # [U] int32 slots until the next packet


@struct.dataclass
class Hotspots:
    """Crowds that stay in a cell, then travel straight to an adjacent one; crowd i belongs to slice i mod 3."""

    centre_m: jax.Array  # [3 P, 2]
    target_m: jax.Array  # [3 P, 2] where the crowd goes next
    dwell_windows: jax.Array  # [3 P] int32 windows until it leaves; 0 = on the way


@struct.dataclass
class SessionDraws:
    """Randomness of a new session, for every user; used where a session starts."""

    uniform: jax.Array  # [7, U] end of the old one, slice, hot-spot or not, which one, radius, angle, first packet
    normal: jax.Array  # [4, U] direction, offset
    hotspot_uniform: jax.Array  # [4, 3 P] next cell, place in it, stay


@struct.dataclass
class UserTraces:
    """Recorded users instead of simulated ones."""

    position_m: jax.Array  # [T, U, 2] positions at window starts; window t of an episode reads row (start + t) mod T
    slice_index: jax.Array  # [U] int32 slice of each user


def draw_sessions(key: chex.PRNGKey, params: Any) -> SessionDraws:
    """Randomness of a window."""
    uniform_key, normal_key, hotspot_key = jax.random.split(key, 3)
    return SessionDraws(
        prng.uniform(uniform_key, (7, params.num_users)),
        prng.normal(normal_key, (4, params.num_users)),
        jax.random.uniform(hotspot_key, (4, 3 * params.hotspots_per_slice)),
    )


def region_radius_m(num_cells: int, cell_radius_m: float) -> float:
    """Radius of the disc with the area of `num_cells` hexagons of circumradius `cell_radius_m`."""
    return math.sqrt(num_cells * 1.5 * math.sqrt(3.0) * cell_radius_m**2 / math.pi)


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-6)


def reflect(position_m: jax.Array, direction: jax.Array, radius_m: float) -> tuple[jax.Array, jax.Array]:
    """Specular reflection at a circle: positions [..., 2] outside are folded in, their directions mirrored."""
    distance = jnp.linalg.norm(position_m, axis=-1, keepdims=True)
    outside = distance > radius_m
    normal = position_m / jnp.maximum(distance, 1e-6)
    folded = normal * jnp.maximum(2 * radius_m - distance, 0)
    mirrored = direction - 2 * jnp.sum(direction * normal, axis=-1, keepdims=True) * normal
    leaving = jnp.sum(direction * normal, axis=-1, keepdims=True) > 0
    return jnp.where(outside, folded, position_m), jnp.where(outside & leaving, mirrored, direction)


def _near_cell(cell: jax.Array, uniform: jax.Array, params: Any) -> jax.Array:
    """[3 P, 2] a point within a third of the cell radius around BS `cell`; uniform [2, 3 P]."""
    radius = params.cell_radius_m / 3 * jnp.sqrt(uniform[0])
    offset = jnp.stack([jnp.cos(2 * jnp.pi * uniform[1]), jnp.sin(2 * jnp.pi * uniform[1])], axis=-1)
    return jnp.asarray(params.centres_m, radius.dtype)[cell] + radius[:, None] * offset


def _dwell(uniform: jax.Array, params: Any) -> jax.Array:
    """Uniform over about half to three halves of the mean dwell time, at least 1 window."""
    return jnp.maximum(jnp.round(params.hotspot_dwell_windows * (0.5 + uniform)), 1).astype(jnp.int32)


def _next_target(centre_m: jax.Array, uniform: jax.Array, params: Any) -> jax.Array:
    """[3 P, 2] a place in a cell adjacent to the one around `centre_m`, each equally likely; uniform [3, 3 P]."""
    adjacency = jnp.asarray(hex_adjacency(params.centres_m, params.inter_site_m))
    ways = jnp.cumsum(adjacency[nearest_cell(centre_m, params)], axis=-1)
    chosen = (uniform[0] * ways[:, -1])[:, None] >= ways
    cell = jnp.minimum(chosen.sum(axis=-1), params.num_cells - 1)
    return _near_cell(cell, uniform[1:], params)


def new_hotspots(key: chex.PRNGKey, params: Any) -> Hotspots:
    """Each in a cell drawn uniformly, somewhere in its stay."""
    uniform = jax.random.uniform(key, (8, 3 * params.hotspots_per_slice))
    cell = jnp.minimum((uniform[0] * params.num_cells).astype(jnp.int32), params.num_cells - 1)
    centre = _near_cell(cell, uniform[1:3], params)
    dwell = jnp.ceil(_dwell(uniform[3], params) * uniform[7]).astype(jnp.int32)
    return Hotspots(centre, _next_target(centre, uniform[4:7], params), dwell)


def move_hotspots(hotspots: Hotspots, uniform: jax.Array, params: Any) -> Hotspots:
    """One window: stay, or one step towards the target; who arrives stays and knows its next one. uniform [4, 3 P]."""
    leaves = hotspots.dwell_windows <= 0
    way = hotspots.target_m - hotspots.centre_m
    distance = jnp.linalg.norm(way, axis=-1)
    step = params.hotspot_speed_mps * params.mobility_step_s
    arrives = leaves & (distance <= step)
    moved = hotspots.centre_m + way * (jnp.minimum(step, distance) / jnp.maximum(distance, 1e-6))[:, None]
    centre = jnp.where(leaves[:, None], moved, hotspots.centre_m)
    return Hotspots(
        centre_m=centre,
        target_m=jnp.where(arrives[:, None], _next_target(centre, uniform[:3], params), hotspots.target_m),
        dwell_windows=jnp.where(arrives, _dwell(uniform[3], params), jnp.maximum(hotspots.dwell_windows - 1, 0)),
    )


def new_sessions(draws: SessionDraws, mix: jax.Array, hotspots: Hotspots, params: Any) -> Users:
    """Sessions that start now: slice ~ mix [3]; with probability `hotspot_fraction` in a hot-spot of that slice."""
    _, slice_u, crowd_u, which_u, radius_u, angle_u, packet_u = draws.uniform
    bounds = jnp.cumsum(mix)[:2]
    slice_index = (slice_u[:, None] >= bounds[None, :]).sum(axis=-1, dtype=jnp.int32)
    radius = params.region_radius_m * jnp.sqrt(radius_u)
    roaming = radius[:, None] * jnp.stack([jnp.cos(2 * jnp.pi * angle_u), jnp.sin(2 * jnp.pi * angle_u)], axis=-1)
    direction = _unit(draws.normal[:2].T)
    offset = params.hotspot_std_m * draws.normal[2:].T
    position, hotspot = roaming, jnp.full(slice_u.shape, -1, jnp.int32)
    if params.hotspots_per_slice:
        choice = jnp.minimum((which_u * params.hotspots_per_slice).astype(jnp.int32), params.hotspots_per_slice - 1)
        hotspot = jnp.where(crowd_u < params.hotspot_fraction, 3 * choice + slice_index, -1)
        crowd, _ = reflect(hotspots.centre_m[hotspot] + offset, direction, params.region_radius_m)
        position = jnp.where((hotspot >= 0)[:, None], crowd, roaming)
    timer = traffic.gap_slots(slice_index, packet_u, params.traffic_load) - 1
    return Users(position, direction, slice_index, hotspot, offset, timer)


def renew_sessions(
    users: Users, draws: SessionDraws, mix: jax.Array, hotspots: Hotspots, params: Any
) -> tuple[Users, jax.Array]:
    """Ends sessions with `session_end_probability`, served or not; a new one takes the row: (users, [U] bool ended)."""
    ended = draws.uniform[0] < params.session_end_probability
    fresh = new_sessions(draws, mix, hotspots, params)
    renewed = jax.tree.map(lambda new, old: jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, users)
    return renewed, ended


def move_users(users: Users, hotspots: Hotspots, params: Any) -> Users:
    """One window: roaming users on straight lines, mirrored at the edge, the others with their hot-spot."""
    step = (jnp.asarray(params.speed_mps, users.position_m.dtype) * params.mobility_step_s)[users.slice_index]
    position, direction = reflect(
        users.position_m + step[:, None] * users.direction, users.direction, params.region_radius_m
    )
    if params.hotspots_per_slice:
        in_crowd = (users.hotspot >= 0)[:, None]
        crowd, _ = reflect(hotspots.centre_m[users.hotspot] + users.offset_m, direction, params.region_radius_m)
        position = jnp.where(in_crowd, crowd, position)
        direction = jnp.where(in_crowd, users.direction, direction)
    return users.replace(position_m=position, direction=direction)


def snr_per_rb(position_m: jax.Array, params: Any) -> jax.Array:
    """[U, N] linear SNR on one RB from every BS: P - (145.4 + 37.5 log10 d_km) + G - N0 - 10 log10(180e3), d >= 1 m."""
    offset_km = (position_m[:, None, :] - jnp.asarray(params.centres_m, position_m.dtype)[None, :, :]) / 1e3
    distance2 = jnp.maximum(jnp.sum(offset_km**2, axis=-1), 1e-6)
    budget_db = params.tx_power_dbw + params.antenna_gain_db - params.noise_dbw_hz - 145.4 - 10 * math.log10(180e3)
    return db_to_linear(budget_db) * jnp.exp(-0.5 * 3.75 * jnp.log(distance2))


def nearest_cell(position_m: jax.Array, params: Any) -> jax.Array:
    """[U] int32 serving BS."""
    centres = jnp.asarray(params.centres_m, position_m.dtype)
    distance2 = jnp.sum((position_m[:, None, :] - centres[None, :, :]) ** 2, axis=-1)
    return jnp.argmin(distance2, axis=-1).astype(jnp.int32)
