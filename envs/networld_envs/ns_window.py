"""One window of network slicing as a pure transition: movement, handover, slots, judgement; see `ns` for the task."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from networld_envs import ns_mobility as mobility
from networld_envs import ns_slots as slots
from networld_envs import ns_traffic as traffic
from networld_envs import prng
from networld_envs.ns_mobility import Hotspots, SessionDraws, Users
from networld_envs.ns_params import NUM_SLICES, NSParams
from networld_envs.ns_slots import RB_HZ, WORD, Queue
from networld_envs.types import TimeStep


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
    words = prng.bits(packet_key, (params.window_slots + 1, params.num_words, WORD))
    shadow = prng.normal(shadow_key, (params.window_slots, params.num_words, WORD)).astype(dtype)
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
    return slots.Cells(
        user_id=user_id.reshape(-1, WORD),
        group=group.reshape(-1, WORD),
        group_start=jnp.searchsorted(group, jnp.arange(num_groups + 1, dtype=group.dtype)).astype(jnp.int32),
        num_rbs=whole_rbs(alloc_hz).reshape(-1),
        bandwidth_hz=alloc_hz.reshape(-1),
        latency_limit_slots=limit.reshape(-1, WORD),
        rate_threshold_bps=threshold.reshape(-1, WORD),
        mimo_factor=jnp.asarray(params.mimo_factor, alloc_hz.dtype),
    )


def _into_order(by_id: jax.Array, user_id: jax.Array) -> jax.Array:
    """[U, ...] by user id -> [V, 32, ...] in service order, zeros for the padding."""
    padding = [(0, user_id.size - by_id.shape[0])] + [(0, 0)] * (by_id.ndim - 1)
    return jnp.pad(by_id, padding)[user_id].reshape(-1, WORD, *by_id.shape[1:])


def _by_id(in_order: jax.Array, user_id: jax.Array, num_users: int) -> jax.Array:
    """[V, 32] in service order -> [U] by user id."""
    flat = in_order.reshape(-1)
    return jnp.zeros_like(flat).at[user_id].set(flat, unique_indices=True)[:num_users]


def _radio(users: Users, cell: jax.Array, user_id: jax.Array, params: NSParams) -> tuple[jax.Array, jax.Array]:
    """Service order: (SNR on one RB [V, 32], interference-to-noise ratio of each BS at full load [V, 32, N])."""
    snr = mobility.snr_per_rb(users.position_m, params)
    own = jax.nn.one_hot(cell, params.num_cells, dtype=bool)
    # An interferer spreads its power over all of W; a user's own band gets the full power (published link budget).
    inr = jnp.where(own, 0, snr) * (RB_HZ / params.bandwidth_hz)
    own_snr = jnp.where(own, snr, 0).sum(axis=-1)
    return _into_order(own_snr, user_id), _into_order(inr, user_id)


def _row(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


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
        timer = jnp.where(due, _row(period, slot + 1), timer) - runs
        return jnp.where(due, _row(size_bits, slot + 1), -1), (timer, num_arrived + due.astype(jnp.int32))

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


def advance_users(state: NSState, draws: NSDraws, params: NSParams) -> tuple[Users, Hotspots, jax.Array, jax.Array]:
    """Movement, drift of the slice mix, session ends: (users, hot-spots, log mix, [U] bool session ended).

    No allocation enters: all policies meet the same users.
    """
    if params.traces is not None:
        row = (state.trace_start + state.t) % params.traces.position_m.shape[0]
        position = _row(params.traces.position_m, row)
        nobody = jnp.zeros(params.num_users, bool)
        return state.users.replace(position_m=position), state.hotspots, state.log_mix, nobody
    hotspots = mobility.move_hotspots(state.hotspots, draws.sessions.hotspot_uniform, params)
    users = mobility.move_users(state.users, hotspots, params)
    log_mix = state.log_mix + params.mix_return * (state.mean_log_mix - state.log_mix)
    log_mix = log_mix + params.mix_drift * draws.mix_normal
    users, ended = mobility.renew_sessions(users, draws.sessions, jax.nn.softmax(log_mix), hotspots, params)
    return users, hotspots, log_mix, ended


def abandon(queue: Queue, ended: jax.Array) -> tuple[Queue, jax.Array]:
    """Who leaves takes the packets that wait along, judged by nobody: (queue, [U] int32 such packets)."""
    abandoned = jnp.where(ended, slots.num_queued(queue), 0)
    return jax.tree.map(lambda x: jnp.where(ended, 0, x), queue), abandoned


def _per_cell(group_of_user: jax.Array, num_cells: int, x: jax.Array) -> jax.Array:
    """[N, 3] sums of x [U] over the users of each BS and slice."""
    return jax.ops.segment_sum(x, group_of_user, NUM_SLICES * num_cells).reshape(num_cells, NUM_SLICES)


def observe(state: NSState, params: NSParams) -> jax.Array:
    """[N, 15] (or [N, 6] with observation="demand"): see the table on top of this module."""
    blocks = [state.arrivals_before, state.arrivals_last]
    if params.observation == "full":
        blocks += [state.backlog, state.alloc_hz / params.bandwidth_hz, state.ssr]
    return jnp.concatenate(blocks, axis=-1)


def _packets(cells: slots.Cells, words: jax.Array, params: NSParams, dtype) -> tuple[jax.Array, jax.Array]:
    """(size in bits, slots until the next one) [S + 1, V, 32] of a packet, should one arrive before that slot."""
    gaps, bits = traffic.packet_tables(params.traffic_load, params.urllc_size, dtype)
    base = ((cells.group % NUM_SLICES) << 16).astype(jnp.uint32)[None]
    look_up = lambda table, half: table.at[base | half].get(mode="promise_in_bounds")  # noqa: E731
    return look_up(bits, words >> 16), look_up(gaps, words & 0xFFFF)


@struct.dataclass
class _Served:
    """What a window leaves, users in order of id."""

    queue: Queue
    timer_slots: jax.Array  # [U] int32
    pointer_id: jax.Array  # [3 N]
    load: jax.Array  # [N] of the last span
    mean_load: jax.Array  # [N]
    arrived: jax.Array  # [N, 3] int32, as the following
    waiting: jax.Array
    ok: jax.Array
    missed: jax.Array
    dropped: jax.Array
    rate_bps_slots: jax.Array  # [N] sum over users and slots of the scheduled rate


def _serve(
    state: NSState, users: Users, cell: jax.Array, queue: Queue, alloc_hz, draws: NSDraws, params: NSParams
) -> _Served:
    """All slots of a window for users that have moved to their cells with what waits for them."""
    user_id, group = _service_order(cell, users.slice_index, params)
    cells = _cells(user_id, group, alloc_hz, params)
    snr_rb, inr_rb = _radio(users, cell, user_id, params)
    queue, timer = jax.tree.map(lambda x: _into_order(x, user_id), (queue, users.timer_slots))
    packets = _packets(cells, draws.packet_words, params, snr_rb.dtype)
    queue, pointer_id, tally, timer, arrived, load, mean_load = _run_window(
        cells, queue, state.pointer_id, state.load, timer, packets, snr_rb, inr_rb, draws.shadow_db, params
    )
    to_id = functools.partial(_by_id, user_id=user_id, num_users=params.num_users)
    queue, tally, timer, arrived = jax.tree.map(to_id, (queue, tally, timer, arrived))
    per_cell = functools.partial(_per_cell, cell * NUM_SLICES + users.slice_index, params.num_cells)
    return _Served(
        queue=queue,
        timer_slots=timer,
        pointer_id=pointer_id,
        load=load,
        mean_load=mean_load,
        arrived=per_cell(arrived),
        waiting=per_cell(slots.num_queued(queue)),
        ok=per_cell(tally.ok),
        missed=per_cell(tally.missed),
        dropped=per_cell(tally.dropped),
        rate_bps_slots=per_cell(tally.rate_bps_slots).sum(axis=-1),
    )


def _judged(served: _Served, params: NSParams) -> jax.Array:
    """[N, 3] int32 packets judged in the window; where queues are wiped, what waits has missed."""
    judged = served.ok + served.missed + served.dropped
    return judged if params.carries_queues else judged + served.waiting


def _metrics(
    served: _Served, ssr: jax.Array, handover: jax.Array, abandoned: jax.Array, params: NSParams
) -> dict[str, jax.Array]:
    dtype = ssr.dtype
    reward = ssr.mean(axis=-1)
    judged = _judged(served, params)
    efficiency = served.rate_bps_slots / (params.window_slots * params.bandwidth_hz)
    metrics = {
        "spectral_efficiency_bps_hz": efficiency,
        "utility": ssr.sum(axis=-1) + 0.01 * efficiency,
        "load": served.mean_load,
        "reward_p10": jnp.percentile(reward, 10.0),
        "handover_share": handover.astype(dtype).mean(),
        "dropped": served.dropped.sum(axis=-1).astype(dtype),
    }
    for n, name in enumerate(traffic.SLICES):
        metrics[f"ssr_{name}"] = ssr[:, n]
        metrics[f"judged_{name}"] = judged[:, n].astype(dtype)
        metrics[f"missed_{name}"] = (judged - served.ok)[:, n].astype(dtype)
        metrics[f"abandoned_{name}"] = abandoned[:, n].astype(dtype)
    return metrics


def transition(state: NSState, action: jax.Array, draws: NSDraws, params: NSParams) -> tuple[NSState, TimeStep]:
    """One window: users move and hand over, 200 slots are served in the allocation in force, the next one is set."""
    target_hz = project_action(action, params)
    users, hotspots, log_mix, ended = advance_users(state, draws, params)
    cell = mobility.nearest_cell(users.position_m, params)
    alloc_hz = target_hz if params.is_instant else state.alloc_hz
    dtype = state.ssr.dtype
    queue = state.queue if params.carries_queues else slots.empty_queue((params.num_users,), dtype)
    queue, abandoned = abandon(queue, ended)
    abandoned = _per_cell(state.cell * NUM_SLICES + state.users.slice_index, params.num_cells, abandoned)
    served = _serve(state, users, cell, queue, alloc_hz, draws, params)
    judged = _judged(served, params)
    ssr = jnp.where(judged > 0, served.ok.astype(dtype) / jnp.maximum(judged, 1).astype(dtype), 1)
    new_state = state.replace(
        users=users.replace(timer_slots=served.timer_slots),
        hotspots=hotspots,
        queue=served.queue,
        cell=cell,
        pointer_id=served.pointer_id,
        log_mix=log_mix,
        alloc_hz=target_hz if params.is_instant else next_allocation(state.alloc_hz, target_hz, params),
        load=served.load,
        arrivals_before=state.arrivals_last,
        arrivals_last=served.arrived.astype(dtype),
        backlog=served.waiting.astype(dtype),
        ssr=ssr,
        t=state.t + 1,
    )
    step = TimeStep(
        obs=observe(new_state, params),
        reward=ssr.mean(axis=-1),
        action=target_hz,
        terminated=jnp.zeros((), bool),
        truncated=new_state.t >= params.episode_steps,
        metrics=_metrics(served, ssr, cell != state.cell, abandoned, params),
    )
    return new_state, step
