"""Parameters of the beamforming task, their two faces, and their validation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import struct

from networld_envs.topology import hex_adjacency, hex_cells
from networld_envs.units import dbm_to_mw

Static = struct.field


@struct.dataclass
class CBFParams:
    """One downlink cell per agent; powers in mW and gains linear once converted, decibels only here.

    Array-valued fields may be swept with `vmap` or differentiated; fields marked static fix shapes or code paths.
    """

    bs_xy_m: Any  # [N, 2] base stations
    adjacency: Any  # [N, N] 1 = one hop, zero diagonal
    codebook: Any  # [C, K] complex unit beams of the discrete policies and of codebook actions
    power_levels: Any  # [Q] fractions of P_max of the discrete policies and of codebook actions
    inter_site_m: float = 400.0  # distance of neighbouring base stations; users stay within half of it
    min_distance_m: float = 10.0  # of a user from its base station
    shadowing_db: float = 8.0  # standard deviation
    noise_dbm: float = -114.0
    p_max_dbm: float = 38.0
    correlation: float = 0.64  # rho of the fading per 20 ms slot; J0(2 pi 10 Hz 20 ms)
    path_spread_deg: float = 3.0
    csi_error_db: float | None = None  # squared error of channel estimates over mean channel power; None = exact
    path_gain: Any = None  # [N, N] linear power gains of the user's own network; None = drawn
    azimuth_rad: Any = None  # [N, N] nominal departure angles that go with them; None = drawn
    channels: Any = None  # [T, N, N, K] complex channel trace (amplitude gains), T >= episode_steps + warmup_slots + 1
    face: str = Static(pytree_node=False, default="default")  # "default" | "reference"
    episode_steps: int = Static(pytree_node=False, default=1000)
    num_paths: int = Static(pytree_node=False, default=4)
    num_neighbours: int = Static(pytree_node=False, default=5)  # U: victims in the reward, interferers observed
    price_scope: str = Static(pytree_node=False, default="one_hop")  # "one_hop" | "global": reach of backhaul messages
    slnr_feature: bool = Static(pytree_node=False, default=False)  # adds the max-SLNR direction to local_csi
    topology_seed: int | None = Static(pytree_node=False, default=None)  # None = redrawn at every reset
    warmup_slots: int = Static(pytree_node=False, default=1)  # random slots before the first observation
    compress_paths: bool = Static(pytree_node=False, default=True)  # K equivalent paths instead of L, same law
    one_sided_angles: bool = Static(pytree_node=False, default=False)  # published quirk
    unit_power_start: bool = Static(pytree_node=False, default=False)  # published quirk: taps start at variance 1/L

    @property
    def num_agents(self) -> int:
        return self.bs_xy_m.shape[0]

    @property
    def num_antennas(self) -> int:
        return self.codebook.shape[-1]

    @property
    def num_actions(self) -> int:
        """Number of (code, power level) pairs."""
        return self.codebook.shape[0] * self.power_levels.shape[0]

    @property
    def p_max_mw(self) -> Any:
        return dbm_to_mw(self.p_max_dbm)

    @property
    def noise_mw(self) -> Any:
        return dbm_to_mw(self.noise_dbm)

    @property
    def max_snr(self) -> Any:
        """P_max / noise, the factor between linear gains and normalised ones."""
        return self.p_max_mw / self.noise_mw


REFERENCE_QUIRKS = {
    "warmup_slots": 10,
    "compress_paths": False,
    "one_sided_angles": True,
    "unit_power_start": True,
}


def phase_codebook(num_codes: int, num_antennas: int) -> np.ndarray:
    """[C, K] unit beams with 16 phases: exp(j 2 pi/16 fix(m ((c + C/2) mod C) 16/C)) / sqrt(K), m antenna, c code."""
    codes, antennas = np.arange(num_codes)[:, None], np.arange(num_antennas)[None, :]
    turns = antennas * np.mod(codes + num_codes / 2, num_codes) * 16 / num_codes
    turns = np.fix(np.round(turns, 9))  # a product like 2.9999999999999996 must not lose a step
    return np.exp(2j * np.pi / 16 * turns) / np.sqrt(num_antennas)


def make_params(
    face: str = "default",
    num_cells: int = 19,
    num_antennas: int = 3,
    num_codes: int = 4,
    num_power_levels: int = 5,
    **overrides: Any,
) -> CBFParams:
    """Validated parameters. Raises ValueError for anything out of range, before any tracing."""
    if face not in ("default", "reference"):
        raise ValueError(f"face must be 'default' or 'reference', got {face!r}")
    known = {field.name for field in dataclasses.fields(CBFParams)} - {"face"}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"unknown cbf parameter {unknown[0]!r}; choose among {sorted(known)}")
    quirks = REFERENCE_QUIRKS if face == "reference" else {}
    values = {
        **quirks,
        "codebook": phase_codebook(num_codes, num_antennas),
        "power_levels": np.arange(num_power_levels) / max(num_power_levels - 1, 1),
        **overrides,
    }
    values |= _layout(values, num_cells)
    for name in ("bs_xy_m", "adjacency", "codebook", "power_levels", "path_gain", "azimuth_rad", "channels"):
        if values.get(name) is not None:
            values[name] = np.asarray(values[name])
    params = CBFParams(face=face, **values)
    _validate(params)
    return params


def _layout(values: dict, num_cells: int) -> dict:
    """Base stations and graph: hexagonal, unless the user brings gains or channels of a network of another size."""
    supplied = values.get("channels") if values.get("channels") is not None else values.get("path_gain")
    if supplied is not None:
        num_cells = np.shape(supplied)[-2]
    inter_site_m = values.get("inter_site_m", CBFParams.inter_site_m)
    layout = {name: values[name] for name in ("bs_xy_m", "adjacency") if values.get(name) is not None}
    if supplied is not None and "bs_xy_m" not in layout and num_cells not in (1, 7, 19):
        layout["bs_xy_m"] = np.full((num_cells, 2), np.nan)  # unknown and not needed: gains are given
        if "adjacency" not in layout:
            raise ValueError(
                f"a network of {num_cells} cells has no default graph: "
                f"pass adjacency [{num_cells}, {num_cells}], 1 = one hop"
            )
    layout.setdefault("bs_xy_m", hex_cells(num_cells, inter_site_m) if "bs_xy_m" not in layout else None)
    if "adjacency" not in layout:
        layout["adjacency"] = hex_adjacency(np.asarray(layout["bs_xy_m"]), inter_site_m)
    return layout


def _validate(params: CBFParams) -> None:
    num_agents, num_antennas = params.num_agents, params.num_antennas
    square = (num_agents, num_agents)
    for name in ("adjacency", "path_gain", "azimuth_rad"):
        value = getattr(params, name)
        if value is not None and value.shape != square:
            raise ValueError(f"{name} must have shape [N, N] = {list(square)}, got {list(value.shape)}")
    if np.any(np.diagonal(params.adjacency)):
        raise ValueError("adjacency must have a zero diagonal: an agent is not its own neighbour")
    if params.path_gain is not None and not np.all(params.path_gain > 0):
        raise ValueError("path_gain must be positive: linear power gains, not dB")
    if params.channels is not None:
        needed = params.episode_steps + params.warmup_slots + 1
        if params.channels.shape[1:] != (*square, num_antennas) or len(params.channels) < needed:
            raise ValueError(
                f"channels must have shape [T >= {needed}, N={num_agents}, N, K={num_antennas}], "
                f"got {list(params.channels.shape)}; give a longer trace or lower episode_steps"
            )
    if not 1 <= params.num_neighbours <= num_agents - 1:
        raise ValueError(
            f"num_neighbours must lie in 1..{num_agents - 1} with {num_agents} cells, got {params.num_neighbours}"
        )
    if params.price_scope not in ("one_hop", "global"):
        raise ValueError(f"price_scope must be 'one_hop' or 'global', got {params.price_scope!r}")
    if not 0.0 <= params.correlation < 1.0:
        raise ValueError(f"correlation must lie in [0, 1), got {params.correlation}")
    if not 0 < params.min_distance_m < params.inter_site_m / 2:
        raise ValueError(
            f"min_distance_m must lie in (0, inter_site_m / 2 = {params.inter_site_m / 2}), got {params.min_distance_m}"
        )
    for name, low in (("episode_steps", 1), ("num_paths", 1), ("warmup_slots", 1)):
        if getattr(params, name) < low:
            raise ValueError(f"{name} must be >= {low}, got {getattr(params, name)}")
    if np.any(params.power_levels < 0) or np.any(params.power_levels > 1):
        raise ValueError(f"power_levels are fractions of P_max in [0, 1], got {params.power_levels.tolist()}")


def scope_mask(params: CBFParams) -> jax.Array:
    """[N, N] bool, whose backhaul messages agent n hears: 1-hop neighbours, or everybody else."""
    if params.price_scope == "one_hop":
        return jax.numpy.asarray(params.adjacency) > 0
    return jax.numpy.logical_not(jax.numpy.eye(params.num_agents, dtype=bool))
