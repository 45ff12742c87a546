"""Where the users of network slicing are: sessions, hot-spots, movement, link budget.

2000 sessions live at a time in a disc around the base stations. A session has a slice, and either roams on a straight line
or belongs to one of its slice's hot-spots, crowds that move across the cells. Sessions end and are replaced by new ones
elsewhere, whose slice follows a mix that drifts: that is how the load of a cell changes.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from networld_envs import ns_traffic as traffic
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
    """Moving crowds; hot-spot i belongs to slice i mod 3."""

    centre_m: jax.Array  # [3 P, 2]
    direction: jax.Array  # [3 P, 2] unit vector


@struct.dataclass
class SessionDraws:
    """Randomness of a new session, for every user; used where a session starts."""

    uniform: jax.Array  # [7, U] end of the old one, slice, hot-spot or not, which one, radius, angle, first packet
    normal: jax.Array  # [4, U] direction, offset


@struct.dataclass
class UserTraces:
    """Recorded users instead of simulated ones."""

    position_m: jax.Array  # [T, U, 2] positions at window starts; window t of an episode reads row (start + t) mod T
    slice_index: jax.Array  # [U] int32 slice of each user


def draw_sessions(key: chex.PRNGKey, num_users: int, dtype=jnp.float32) -> SessionDraws:
    """Randomness for `new_sessions`."""
    uniform_key, normal_key = jax.random.split(key)
    return SessionDraws(
        jax.random.uniform(uniform_key, (7, num_users), dtype), jax.random.normal(normal_key, (4, num_users), dtype)
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


def new_hotspots(key: chex.PRNGKey, params: Any) -> Hotspots:
    """Centres uniform in the disc, directions uniform."""
    radius_key, angle_key, direction_key = jax.random.split(key, 3)
    count = 3 * params.hotspots_per_slice
    radius = params.hotspot_range_m * jnp.sqrt(jax.random.uniform(radius_key, (count,)))
    angle = 2 * jnp.pi * jax.random.uniform(angle_key, (count,))
    centre = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return Hotspots(centre, _unit(jax.random.normal(direction_key, (count, 2))))


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
    timer = traffic.gap_slots(slice_index, packet_u) - 1
    return Users(position, direction, slice_index, hotspot, offset, timer)


def renew_sessions(users: Users, draws: SessionDraws, mix: jax.Array, hotspots: Hotspots, may_end, params: Any) -> Users:
    """Ends each session that may end (nothing waits, [U] bool) with `session_end_probability`; a new one takes its row."""
    ends = may_end & (draws.uniform[0] < params.session_end_probability)
    fresh = new_sessions(draws, mix, hotspots, params)
    return jax.tree.map(lambda new, old: jnp.where(ends.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, users)


def move(users: Users, hotspots: Hotspots, params: Any) -> tuple[Users, Hotspots]:
    """One window of movement: straight lines, specular reflection at the edge of the region."""
    centre = hotspots.centre_m + (params.hotspot_speed_mps * params.mobility_step_s) * hotspots.direction
    hotspots = Hotspots(*reflect(centre, hotspots.direction, params.hotspot_range_m))
    step = (jnp.asarray(params.speed_mps, users.position_m.dtype) * params.mobility_step_s)[users.slice_index]
    position, direction = reflect(
        users.position_m + step[:, None] * users.direction, users.direction, params.region_radius_m
    )
    if params.hotspots_per_slice:
        in_crowd = (users.hotspot >= 0)[:, None]
        crowd, _ = reflect(hotspots.centre_m[users.hotspot] + users.offset_m, direction, params.region_radius_m)
        position = jnp.where(in_crowd, crowd, position)
        direction = jnp.where(in_crowd, users.direction, direction)
    return users.replace(position_m=position, direction=direction), hotspots


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
