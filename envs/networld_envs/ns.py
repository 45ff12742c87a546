"""Network slicing (`ns`): 19 base stations split 10 MHz among three services whose users move.

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

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from networld_envs import ns_mobility as mobility
from networld_envs import ns_slots as slots
from networld_envs import ns_traffic as traffic
from networld_envs.ns_mobility import Hotspots, SessionDraws, Users, UserTraces
from networld_envs.ns_slots import RB_HZ, WORD, Queue, SlotRules
from networld_envs.topology import hex_adjacency, hex_cells
from networld_envs.types import Environment, Information, TaskSpec, TimeStep, make_step

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
    rules: SlotRules = _static(SlotRules(discard_expired=True))
    traffic_load: tuple[float, float, float] = _static((16.0, 4.0, 16.0))  # divides the gaps between packets, per slice
    urllc_size: str = _static("small")  # or "large"
    observation: str = _static("full")  # 15 numbers, or "demand": the 6 arrival counts
    carries_queues: bool = _static(True)  # False: queues are wiped at window starts, what waits counts as missed
    has_interference: bool = _static(True)
    is_instant: bool = _static(False)  # True: an allocation serves the window of its own step, without a change limit
    interference_slots: int = _static(20)  # the load of the last 10 ms sets the interference of the next 10 ms
    hotspots_per_slice: int = _static(4)
    episode_steps: int | jax.Array = 1000
    bandwidth_hz: float | jax.Array = 10e6  # W
    max_change_hz: float | jax.Array = 0.4e6  # per slice and window
    mimo_factor: float | jax.Array = 48.0  # M, multiplies log10(1 + SINR)
    tx_power_dbw: float | jax.Array = 16.0
    antenna_gain_db: float | jax.Array = 20.0
    noise_dbw_hz: float | jax.Array = -204.0
    shadow_std_db: float | jax.Array = 8.0
    mobility_step_s: float | jax.Array = 1.0  # time that users move for between two windows
    speed_mps: tuple[float, float, float] = _static((1.0, 4.0, 8.0))  # roaming users, per slice
    hotspot_speed_mps: float | jax.Array = 0.75
    hotspot_dwell_windows: float | jax.Array = 2.0  # mean stay of a hot-spot in a cell
    hotspot_fraction: float | jax.Array = 0.95  # of the sessions
    hotspot_std_m: float | jax.Array = 10.0
    session_end_probability: float | jax.Array = 0.02  # per window
    mix_concentration: float | jax.Array = 2.0  # slice mix of an episode ~ Dirichlet(c, c, c)
    mix_return: float | jax.Array = 0.05  # pull of the drifting log mix to the episode's mean, per window
    mix_drift: float | jax.Array = 0.1  # standard deviation of its steps
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


@struct.dataclass
class NSState:
    """Everything between two windows."""

    users: Users
    hotspots: Hotspots
    queue: Queue  # fields [U], in order of user id
    cell: jax.Array  # [U] int32 serving BS of the last window
    pointer_id: jax.Array  # [3 N] int32 round-robin pointer (a user id) of each BS and slice
    log_mix: jax.Array  # [3] logits of the slice mix of new sessions
    mean_log_mix: jax.Array  # [3] what they drift around
    alloc_hz: jax.Array  # [N, 3] allocation in force in the coming window
    load: jax.Array  # [N] share of the RBs in use lately, 0..1
    arrivals_before: jax.Array  # [N, 3] packets that arrived in window t-2
    arrivals_last: jax.Array  # [N, 3] packets that arrived in window t-1
    backlog: jax.Array  # [N, 3] packets waiting after window t-1
    ssr: jax.Array  # [N, 3] SSR of window t-1
    t: jax.Array  # [] int32
    trace_start: jax.Array  # [] int32 row of `UserTraces` that window 0 reads


@struct.dataclass
class NSDraws:
    """All randomness of one window."""

    shadow_db: jax.Array  # [S, V, 32] shadowing of the users in service order
    packet_words: jax.Array  # [S + 1, V, 32] uint32: gap and size, should a packet arrive before that slot
    sessions: SessionDraws
    mix_normal: jax.Array  # [3]


def draw(key: chex.PRNGKey, state: NSState, params: NSParams) -> NSDraws:
    """Randomness for `transition`."""
    shadow_key, packet_key, session_key, mix_key = jax.random.split(key, 4)
    dtype = state.ssr.dtype
    words = jax.random.bits(packet_key, (params.window_slots + 1, params.num_words, WORD), jnp.uint32)
    shadow = jax.random.normal(shadow_key, (params.window_slots, params.num_words, WORD), dtype)
    sessions = mobility.draw_sessions(session_key, params)
    return NSDraws(shadow * params.shadow_std_db, words, sessions, jax.random.normal(mix_key, (3,), dtype))


def project_action(action: jax.Array, params: NSParams) -> jax.Array:
    """[N, 3] bandwidths in Hz on the simplex of size W: w = W max(a, eps) / sum, eps = 1e-9 W."""
    positive = jnp.maximum(action, 1e-9 * params.bandwidth_hz)
    return params.bandwidth_hz * positive / positive.sum(axis=-1, keepdims=True)


def next_allocation(alloc_hz: jax.Array, target_hz: jax.Array, params: NSParams) -> jax.Array:
    """Moves straight from `alloc_hz` to `target_hz` (on the simplex) until a slice has changed by `max_change_hz`."""
    change = target_hz - alloc_hz
    largest = jnp.max(jnp.abs(change), axis=-1, keepdims=True)
    return alloc_hz + change * jnp.minimum(1, params.max_change_hz / jnp.maximum(largest, 1))


def whole_rbs(alloc_hz: jax.Array) -> jax.Array:
    """int32 RBs of 180 kHz in a bandwidth; 20 Hz are forgiven so that rounding never costs an RB."""
    return jnp.floor((alloc_hz + 20.0) / RB_HZ).astype(jnp.int32)


# --- a window -------------------------------------------------------------------------------------------------------


def _service_order(cell: jax.Array, slice_index: jax.Array, params: NSParams) -> tuple[jax.Array, jax.Array]:
    """Users sorted by (cell, slice, id), padded to whole words: (user id, group) [32 V]; padding is in group 3 N."""
    num_groups, size = NUM_SLICES * params.num_cells, params.num_words * WORD
    group = jnp.pad(cell * NUM_SLICES + slice_index, (0, size - params.num_users), constant_values=num_groups)
    ordered = jnp.sort(group * size + jnp.arange(size, dtype=jnp.int32))
    return ordered % size, ordered // size


def _cells(user_id, group, alloc_hz, params: NSParams) -> slots.Cells:
    num_groups = NUM_SLICES * params.num_cells
    slice_index = group % NUM_SLICES
    limit = jnp.asarray(params.rules.latency_limit_slots, jnp.int32)[slice_index]
    threshold = jnp.asarray(params.rules.rate_threshold_bps, alloc_hz.dtype)[slice_index]
    words = lambda x: x.reshape(-1, WORD)  # noqa: E731
    return slots.Cells(
        user_id=words(user_id),
        group=words(group),
        group_start=jnp.searchsorted(group, jnp.arange(num_groups + 1, dtype=group.dtype)).astype(jnp.int32),
        num_rbs=whole_rbs(alloc_hz).reshape(-1),
        bandwidth_hz=alloc_hz.reshape(-1),
        latency_limit_slots=words(limit),
        rate_threshold_bps=words(threshold),
        mimo_factor=jnp.asarray(params.mimo_factor, alloc_hz.dtype),
    )


def _radio(users: Users, cell: jax.Array, user_id: jax.Array, params: NSParams) -> tuple[jax.Array, jax.Array]:
    """Service order: (SNR on one RB [V, 32], interference-to-noise ratio of each BS at full load [V, 32, N])."""
    size = params.num_words * WORD
    snr = mobility.snr_per_rb(users.position_m, params)
    own = jax.nn.one_hot(cell, params.num_cells, dtype=bool)
    # An interferer spreads its power over all of W; a user's own band gets the full power (published link budget).
    inr = jnp.where(own, 0, snr) * (RB_HZ / params.bandwidth_hz)
    order = lambda x: jnp.pad(x, [(0, size - params.num_users)] + [(0, 0)] * (x.ndim - 1))[user_id]  # noqa: E731
    return order(jnp.where(own, snr, 0).sum(axis=-1)).reshape(-1, WORD), order(inr).reshape(-1, WORD, params.num_cells)


def _run_window(cells, queue, pointer_id, load, timer, packets, snr_rb, inr_rb, shadow_db, params: NSParams):
    """All slots of a window, in spans of constant interference.

    Returns (queue, pointer ids, tally, timers, packets that arrived [V, 32], load at the end, mean load).
    """
    size_bits, period = packets
    is_served = cells.group < cells.num_rbs.shape[0]

    def arrival_fn(carry, slot, is_full):
        del is_full
        timer, num_arrived = carry
        due = is_served & (timer <= 0) & (slot + 1 < params.window_slots)
        runs = (slot + 1 < params.window_slots).astype(jnp.int32)
        row = lambda x: lax.dynamic_index_in_dim(x, slot + 1, keepdims=False)  # noqa: E731
        timer = jnp.where(due, row(period), timer) - runs
        return jnp.where(due, row(size_bits), -1), (timer, num_arrived + due.astype(jnp.int32))

    span = params.interference_slots if params.has_interference else params.window_slots
    rbs_per_span = params.bandwidth_hz / RB_HZ * span

    def run_span(carry, first_slot):
        queue, pointers, tally, load, traffic_carry = carry
        snr = snr_rb
        if params.has_interference:  # SINR = snr / (1 + sum_j load_j inr_j): both fall with the width of the band
            snr = snr_rb / (1 + jnp.einsum("vun,n->vu", inr_rb, load))
        (queue, pointers, tally, traffic_carry, used_rbs), _ = slots.run_slots(
            params.rules, cells, queue, pointers, tally, traffic_carry, arrival_fn, snr, shadow_db, first_slot, span
        )
        load = used_rbs.reshape(-1, NUM_SLICES).sum(axis=-1).astype(snr.dtype) / rbs_per_span
        return (queue, pointers, tally, load, traffic_carry), load

    tally = slots.zero_tally(cells.group.shape, snr_rb.dtype)
    carry = (timer, jnp.zeros_like(timer))
    queue, dropped, carry = slots.arrival_call(arrival_fn, carry, jnp.int32(-1), queue, tally.dropped)
    start = (queue, slots.place_pointers(cells, pointer_id), tally.replace(dropped=dropped), load, carry)
    firsts = jnp.arange(0, params.window_slots, span, dtype=jnp.int32)
    (queue, pointers, tally, load, carry), loads = lax.scan(run_span, start, firsts)
    return queue, pointers.user_id, tally, *carry, load, loads.mean(axis=0)


def _advance_users(state: NSState, draws: NSDraws, params: NSParams) -> tuple[Users, Hotspots, jax.Array]:
    """Movement, drift of the slice mix, session ends: (users, hot-spots, log mix)."""
    if params.traces is not None:
        row = (state.trace_start + state.t) % params.traces.position_m.shape[0]
        position = lax.dynamic_index_in_dim(params.traces.position_m, row, keepdims=False)
        return state.users.replace(position_m=position), state.hotspots, state.log_mix
    hotspots = mobility.move_hotspots(state.hotspots, draws.sessions.hotspot_uniform, params)
    users = mobility.move_users(state.users, hotspots, params)
    log_mix = state.log_mix + params.mix_return * (state.mean_log_mix - state.log_mix)
    log_mix = log_mix + params.mix_drift * draws.mix_normal
    idle = state.queue.ages == 0
    users = mobility.renew_sessions(users, draws.sessions, jax.nn.softmax(log_mix), hotspots, idle, params)
    return users, hotspots, log_mix


def transition(state: NSState, action: jax.Array, draws: NSDraws, params: NSParams) -> tuple[NSState, TimeStep]:
    """One window: users move and hand over, 200 slots are served in the allocation in force, the next one is set."""
    target_hz = project_action(action, params)
    alloc_hz = target_hz if params.is_instant else state.alloc_hz
    users, hotspots, log_mix = _advance_users(state, draws, params)
    cell = mobility.nearest_cell(users.position_m, params)
    group_of_user = cell * NUM_SLICES + users.slice_index
    user_id, group = _service_order(cell, users.slice_index, params)
    cells = _cells(user_id, group, alloc_hz, params)
    snr_rb, inr_rb = _radio(users, cell, user_id, params)

    gap_uniform, size_uniform = traffic.packet_uniforms(draws.packet_words, snr_rb.dtype)
    slice_of = jnp.broadcast_to((cells.group % NUM_SLICES)[None], draws.packet_words.shape)
    packets = (
        traffic.packet_bits(slice_of, size_uniform, params.urllc_size),
        traffic.gap_slots(slice_of, gap_uniform, params.traffic_load),
    )
    padding = params.num_words * WORD - params.num_users
    into_order = lambda x, fill=0: jnp.pad(x, (0, padding), constant_values=fill)[user_id].reshape(-1, WORD)  # noqa: E731
    by_id = lambda x: jnp.zeros_like(x.reshape(-1)).at[user_id].set(x.reshape(-1), unique_indices=True)  # noqa: E731
    queue = state.queue if params.carries_queues else slots.empty_queue((params.num_users,), snr_rb.dtype)
    queue, pointer_id, tally, timer, arrived, load, mean_load = _run_window(
        cells,
        jax.tree.map(into_order, queue),
        state.pointer_id,
        state.load,
        into_order(users.timer_slots),
        packets,
        snr_rb,
        inr_rb,
        draws.shadow_db,
        params,
    )
    queue, tally, timer, arrived = jax.tree.map(lambda x: by_id(x)[: params.num_users], (queue, tally, timer, arrived))

    per_cell = functools.partial(_per_cell, group_of_user, params.num_cells)
    num_arrived = per_cell(arrived)
    waiting = per_cell(slots.num_queued(queue))
    ok, missed, dropped = per_cell(tally.ok), per_cell(tally.missed), per_cell(tally.dropped)
    wiped = jnp.zeros_like(missed) if params.carries_queues else waiting
    judged = ok + missed + dropped + wiped
    dtype = state.ssr.dtype
    ssr = jnp.where(judged > 0, ok.astype(dtype) / jnp.maximum(judged, 1).astype(dtype), 1)

    new_state = state.replace(
        users=users.replace(timer_slots=timer),
        hotspots=hotspots,
        queue=queue,
        cell=cell,
        pointer_id=pointer_id,
        log_mix=log_mix,
        alloc_hz=target_hz if params.is_instant else next_allocation(state.alloc_hz, target_hz, params),
        load=load,
        arrivals_before=state.arrivals_last,
        arrivals_last=num_arrived.astype(dtype),
        backlog=waiting.astype(dtype),
        ssr=ssr,
        t=state.t + 1,
    )
    reward = ssr.mean(axis=-1)
    rate_bps_slots = per_cell(tally.rate_bps_slots).sum(axis=-1)
    efficiency = rate_bps_slots / (params.window_slots * params.bandwidth_hz)
    metrics = {
        "spectral_efficiency_bps_hz": efficiency,
        "utility": ssr.sum(axis=-1) + 0.01 * efficiency,
        "load": mean_load,
        "reward_p10": jnp.percentile(reward, 10.0),
        "handover_share": (cell != state.cell).astype(dtype).mean(),
        "dropped": dropped.sum(axis=-1).astype(dtype),
    }
    for n, name in enumerate(traffic.SLICES):
        metrics[f"ssr_{name}"] = ssr[:, n]
        metrics[f"judged_{name}"] = judged[:, n].astype(dtype)
        metrics[f"missed_{name}"] = (judged - ok)[:, n].astype(dtype)
    step = TimeStep(
        obs=observe(new_state, params),
        reward=reward,
        action=target_hz,
        terminated=jnp.zeros((), bool),
        truncated=new_state.t >= params.episode_steps,
        metrics=metrics,
    )
    return new_state, step


def _per_cell(group_of_user: jax.Array, num_cells: int, x: jax.Array) -> jax.Array:
    """[N, 3] sums of x [U] over the users of each BS and slice."""
    return jax.ops.segment_sum(x, group_of_user, NUM_SLICES * num_cells).reshape(num_cells, NUM_SLICES)


# --- the environment ------------------------------------------------------------------------------------------------


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


def observe(state: NSState, params: NSParams) -> jax.Array:
    """[N, 15] (or [N, 6] with observation="demand"): see the table on top of this module."""
    blocks = [state.arrivals_before, state.arrivals_last]
    if params.observation == "full":
        blocks += [state.backlog, state.alloc_hz / params.bandwidth_hz, state.ssr]
    return jnp.concatenate(blocks, axis=-1)


def adjacency(state: NSState, params: NSParams) -> jax.Array:
    """[N, N] float32: cells that touch."""
    del state
    return jnp.asarray(hex_adjacency(params.centres_m, params.inter_site_m))


def agent_mask(state: NSState, params: NSParams) -> jax.Array:
    """[N] ones: every BS is present."""
    del state
    return jnp.ones(params.num_cells, jnp.float32)


def _information(observation: str) -> tuple[Information, ...]:
    names = lambda block: tuple(f"{block}_{name}" for name in traffic.SLICES)  # noqa: E731
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


_PUBLISHED = dict(
    rules=SlotRules(), carries_queues=False, has_interference=False, is_instant=True, hotspots_per_slice=0,
    session_end_probability=0.0, mimo_factor=16.0, traffic_load=(1.0, 1.0, 1.0),
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": _PUBLISHED,
    "faithful": dict(window_slots=2000),
    "tiny": dict(num_cells=7, num_users=140, window_slots=40),
}


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


def make_ns(preset: str = "default", user_traces: Any = None, **overrides: Any) -> Environment:
    """Network slicing.

    Args:
      preset: "default"; "published" (wiped queues, no interference, instant allocation: 19 independent bandits);
        "faithful" (windows of 2000 slots); "tiny" (7 BSs, 140 users, 40 slots: for tests).
      user_traces: (positions [T, U, 2] in m, slices [U]) of recorded users, instead of simulated sessions: window t of
      an
        episode reads positions[(start + t) mod T] with a random start; base stations are `NSParams.centres_m`.
      **overrides: fields of `NSParams`.

    Raises ValueError for an unknown preset or parameter, or one outside its range.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {sorted(PRESETS)}")
    unknown = sorted(set(overrides) - set(NSParams.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown parameters {unknown}; choose from {sorted(NSParams.__dataclass_fields__)}")
    params = NSParams(**{**PRESETS[preset], **overrides})
    if user_traces is not None:
        params = _with_traces(params, user_traces)
    check_params(params)
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
