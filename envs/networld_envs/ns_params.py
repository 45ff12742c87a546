"""Parameters of the network-slicing environment, its presets and their checks; see `ns` for the task."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs import ns_mobility as mobility
from networld_envs import ns_slots as slots
from networld_envs import ns_traffic as traffic
from networld_envs.ns_mobility import UserTraces
from networld_envs.ns_slots import RB_HZ, WORD, SlotRules
from networld_envs.topology import hex_cells

NUM_SLICES = 3


def _static(default):
    return struct.field(default=default, pytree_node=False)


@struct.dataclass
class NSParams:
    """Parameters; static ones (shapes, modes, geometry) recompile when they change, the others are traced."""

    num_cells: int = _static(19)  # 1, 7 or 19
    num_users: int = _static(2000)
    window_slots: int = _static(200)
    cell_radius_m: float = _static(40.0)
    rules: SlotRules = _static(SlotRules((19, 19, 5), discard_expired=True))
    traffic_load: tuple[float, float, float] = _static((72.0, 1.25, 24.0))  # divides a slice's gaps between packets
    urllc_size: str = _static("small")  # or "large"
    observation: str = _static("full")  # 15 numbers, or "demand": the 6 arrival counts
    carries_queues: bool = _static(True)  # False: queues are wiped at window starts, what waits counts as missed
    has_interference: bool = _static(True)
    is_instant: bool = _static(False)  # True: an allocation serves the window of its own step, without a change limit
    interference_slots: int = _static(20)  # the load of the last 10 ms sets the interference of the next 10 ms
    hotspots_per_slice: int = _static(6)
    episode_steps: int | jax.Array = 1000
    bandwidth_hz: float | jax.Array = 5e6  # W
    max_change_hz: float | jax.Array = 0.2e6  # per slice and window
    mimo_factor: float | jax.Array = 64.0  # M, multiplies log10(1 + SINR)
    tx_power_dbw: float | jax.Array = 16.0
    antenna_gain_db: float | jax.Array = 20.0
    noise_dbw_hz: float | jax.Array = -204.0
    shadow_std_db: float | jax.Array = 8.0
    mobility_step_s: float | jax.Array = 1.0  # time that users move for between two windows
    speed_mps: tuple[float, float, float] = _static((1.0, 4.0, 8.0))  # roaming users, per slice
    hotspot_speed_mps: float | jax.Array = 10.0
    hotspot_dwell_windows: float | jax.Array = 120.0  # mean stay of a hot-spot in a cell
    hotspot_fraction: float | jax.Array = 0.95  # of the sessions
    hotspot_std_m: float | jax.Array = 20.0
    session_end_probability: float | jax.Array = 0.02  # per window
    mix_concentration: float | jax.Array = 10.0  # slice mix of an episode ~ Dirichlet(c, c, c)
    mix_return: float | jax.Array = 0.01  # pull of the drifting log mix to the episode's mean, per window
    mix_drift: float | jax.Array = 0.2  # standard deviation of its steps
    traces: UserTraces | None = None  # recorded users instead of simulated sessions

    @property
    def inter_site_m(self) -> float:
        return 3**0.5 * self.cell_radius_m

    @property
    def centres_m(self) -> np.ndarray:
        """[N, 2] positions of the base stations."""
        return hex_cells(self.num_cells, self.inter_site_m)

    @property
    def region_radius_m(self) -> float:
        return mobility.region_radius_m(self.num_cells, self.cell_radius_m)

    @property
    def num_words(self) -> int:
        """V: users in words of 32, the last one padded."""
        return -(-self.num_users // WORD)

    @property
    def window_s(self) -> float:
        return self.window_slots * slots.SLOT_S


_ROAMING = dict(  # wide band, few short-lived crowds, many who roam: a constant split is nearly enough
    bandwidth_hz=10e6, max_change_hz=0.25e6, traffic_load=(48.0, 3.0, 24.0), hotspots_per_slice=3,
    hotspot_fraction=0.7, hotspot_speed_mps=0.75, hotspot_dwell_windows=2.0, hotspot_std_m=12.0,
    mix_concentration=2.0, mix_drift=0.15,
)  # fmt: skip
_PUBLISHED = _ROAMING | dict(
    rules=SlotRules(), carries_queues=False, has_interference=False, is_instant=True, hotspots_per_slice=0,
    session_end_probability=0.0, mimo_factor=16.0, traffic_load=(1.0, 1.0, 1.0),
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "roaming": _ROAMING,
    "published": _PUBLISHED,
    "faithful": dict(window_slots=2000),
    "tiny": _ROAMING | dict(num_cells=7, num_users=140, window_slots=40),
}


RANGES = (
    ("cell_radius_m", 1.0, 1e5), ("interference_slots", 1, 1e6), ("hotspots_per_slice", 0, 1e4),
    ("episode_steps", 1, 1e9),
    ("mimo_factor", 1e-3, 1e6), ("tx_power_dbw", -100.0, 100.0), ("antenna_gain_db", -100.0, 100.0),
    ("noise_dbw_hz", -400.0, 0.0), ("shadow_std_db", 0.0, 50.0), ("mobility_step_s", 0.0, 1e6),
    ("hotspot_speed_mps", 0.0, 1e4), ("hotspot_dwell_windows", 1e-3, 1e9), ("hotspot_fraction", 0.0, 1.0),
    ("hotspot_std_m", 0.0, 1e5), ("session_end_probability", 0.0, 1.0), ("mix_concentration", 1e-3, 1e6),
    ("mix_return", 0.0, 1.0), ("mix_drift", 0.0, 100.0),
)  # fmt: skip
"""Name, smallest and largest value; wide enough for anything physical, narrow enough to catch a wrong unit or sign."""


def check_params(params: NSParams) -> None:
    """Raises ValueError for a parameter outside its range."""
    if params.observation not in ("full", "demand"):
        raise ValueError(f"observation must be 'full' or 'demand', got {params.observation!r}")
    if params.urllc_size not in traffic.URLLC_BITS:
        raise ValueError(f"urllc_size must be one of {sorted(traffic.URLLC_BITS)}, got {params.urllc_size!r}")
    if not 1 <= params.num_users <= 20000:
        raise ValueError(f"num_users must be in 1..20000, got {params.num_users}")
    if params.has_interference and params.window_slots % params.interference_slots:
        raise ValueError(
            f"window_slots must be a multiple of interference_slots={params.interference_slots}, "
            f"got {params.window_slots}"
        )
    if not params.window_slots >= 1:
        raise ValueError(f"window_slots must be at least 1, got {params.window_slots}")
    if max(params.rules.latency_limit_slots) > 31 or min(params.rules.latency_limit_slots) < 1:
        raise ValueError(f"latency limits must be in 1..31 slots, got {params.rules.latency_limit_slots}")
    for name, low, high in RANGES:
        if not low <= getattr(params, name) <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {getattr(params, name)}")
    if not params.max_change_hz > 0 or not params.bandwidth_hz >= RB_HZ:
        raise ValueError(
            f"bandwidth_hz must be at least one RB ({RB_HZ:g}) and max_change_hz positive, "
            f"got {params.bandwidth_hz:g} and {params.max_change_hz:g}"
        )
    hex_cells(params.num_cells, 1.0)


def _with_traces(params: NSParams, user_traces: Any) -> NSParams:
    position, slice_index = (jnp.asarray(x) for x in user_traces)
    if position.ndim != 3 or position.shape[-1] != 2 or slice_index.shape != position.shape[1:2]:
        raise ValueError(
            "user_traces must be (positions [T, U, 2] in m, slices [U] in 0..2), "
            f"got shapes {position.shape} and {slice_index.shape}"
        )
    if not bool(((slice_index >= 0) & (slice_index < NUM_SLICES)).all()):
        raise ValueError("user_traces: slices must be 0 (VoLTE), 1 (video) or 2 (URLLC)")
    traces = UserTraces(position.astype(jnp.float32), slice_index.astype(jnp.int32))
    return params.replace(num_users=position.shape[1], traces=traces)


def make_params(preset: str = "default", user_traces: Any = None, **overrides: Any) -> NSParams:
    """Checked parameters; the arguments and errors of `ns.make_ns`."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {sorted(PRESETS)}")
    unknown = sorted(set(overrides) - set(NSParams.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown parameters {unknown}; choose from {sorted(NSParams.__dataclass_fields__)}")
    params = NSParams(**{**PRESETS[preset], **overrides})
    if user_traces is not None:
        params = _with_traces(params, user_traces)
    check_params(params)
    return params
