"""The network-slicing environment: parity with a loop, conservation, laws, information, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs import ns_mobility, ns_slots, ns_traffic, ns_window
from networld_envs.ns import make_ns
from networld_envs.ns_params import PRESETS, NSParams
from networld_envs.ns_window import next_allocation, project_action, whole_rbs
from tests.reference import ns_loop

NUM_WINDOWS = 4


@pytest.fixture(scope="module")
def env():
    """Small and overloaded, so that queues fill, packets expire and are dropped."""
    return make_ns("tiny", mimo_factor=8.0, interference_slots=10, max_change_hz=2e6)


@pytest.fixture(scope="module")
def rollout(env):
    """[(state before, action, draws, state after, time step)] of a few windows with random actions."""
    params = env.default_params
    draw, transition = jax.jit(env.draw), jax.jit(env.transition)
    state, _ = jax.jit(env.reset)(jax.random.key(3), params)
    starved = jnp.array([[5e6, 5e6, 0.0], [4e6, 0.0, 6e6]])[jnp.arange(env.spec.max_agents) % 2]
    state = state.replace(alloc_hz=starved)
    steps = []
    for t in range(NUM_WINDOWS):
        draw_key, action_key = jax.random.split(jax.random.key(100 + t))
        action = 1e7 * jax.random.uniform(action_key, (env.spec.max_agents, 3))
        draws = draw(draw_key, state, params)
        after, step = transition(state, action, draws, params)
        steps.append((state, action, draws, after, step))
        state = after
    return steps


def unpack_queues(queue):
    """The packed queues as lists of [bits left, size, age]."""
    sizes, left, ages = np.stack(queue.size_bits, -1), np.asarray(queue.left_bits), np.asarray(queue.ages)
    queues = []
    for u in range(len(left)):
        age = [(ages[u] >> (6 * place)) & 63 for place in range(5)]
        packets = [[float(sizes[u, i]), float(sizes[u, i]), int(a)] for i, a in enumerate(age) if a]
        if packets:
            packets[0][0] = float(left[u])
        queues.append(packets)
    return queues


def test_a_window_equals_the_loop(env, rollout):
    params = env.default_params
    seen = dict.fromkeys(("ok", "missed", "dropped", "backlog"), 0)
    for before, _, draws, after, step in rollout:
        cell, slice_index = np.asarray(after.cell), np.asarray(after.users.slice_index)
        snr = np.asarray(ns_mobility.snr_per_rb(after.users.position_m, params), np.float64)
        # A user whose session ended starts with a fresh timer, drawn in this window.
        position = np.asarray(after.users.position_m)
        users, _, _, ended = ns_window.advance_users(before, draws, params)
        np.testing.assert_allclose(np.asarray(users.position_m), position, rtol=1e-5, atol=1e-4)  # jit rounds otherwise
        queues, timers = unpack_queues(before.queue), np.asarray(users.timer_slots).copy()
        queues = [[] if gone else queue for gone, queue in zip(np.asarray(ended), queues, strict=True)]
        pointers = np.asarray(before.pointer_id).copy()
        gap, size = (np.asarray(x, np.float64) for x in ns_traffic.packet_uniforms(draws.packet_words))
        flat = lambda x: np.asarray(x, np.float64).reshape(x.shape[0], -1)  # noqa: E731
        recorded = {"shadow_db": flat(draws.shadow_db), "gap_uniform": flat(gap), "size_uniform": flat(size)}
        alloc, load = np.asarray(before.alloc_hz, np.float64), np.asarray(before.load, np.float64)
        out = ns_loop.window(params, cell, slice_index, snr, queues, timers, pointers, alloc, load, recorded)

        np.testing.assert_array_equal(np.asarray(after.arrivals_last), out["arrived"])
        np.testing.assert_array_equal(np.asarray(after.backlog), out["backlog"])
        np.testing.assert_array_equal(np.asarray(after.users.timer_slots), timers)
        np.testing.assert_array_equal(np.asarray(after.pointer_id), pointers)
        missed = np.stack([np.asarray(step.metrics[f"missed_{name}"]) for name in ns_traffic.SLICES], -1)
        np.testing.assert_array_equal(missed, out["missed"] + out["dropped"])
        np.testing.assert_array_equal(np.asarray(step.metrics["dropped"]), out["dropped"].sum(-1))
        # float32 ratios of small whole numbers, and sums of float32 rates
        np.testing.assert_allclose(np.asarray(after.ssr), out["ssr"], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(step.reward), out["ssr"].mean(-1), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(after.load), out["load"], rtol=1e-6)
        np.testing.assert_allclose(np.asarray(step.metrics["load"]), out["mean_load"], rtol=1e-6)
        efficiency = np.asarray(step.metrics["spectral_efficiency_bps_hz"])
        np.testing.assert_allclose(efficiency, out["efficiency"], rtol=1e-5)
        assert [len(q) for q in unpack_queues(after.queue)] == [len(q) for q in queues]
        for name in seen:
            seen[name] += out[name].sum()
    assert min(seen.values()) > 0, f"the case must exercise everything, got {seen}"


def test_packets_are_conserved_across_windows_and_handover(env, rollout):
    num_left = 0.0
    for before, _, _, after, step in rollout:
        judged = sum(step.metrics[f"judged_{name}"].sum() for name in ns_traffic.SLICES)
        waited = ns_slots.num_queued(before.queue).sum()
        left = sum(step.metrics[f"abandoned_{name}"].sum() for name in ns_traffic.SLICES)
        assert float(after.arrivals_last.sum() + waited) == float(judged + after.backlog.sum() + left)
        num_left += float(left)
    assert num_left > 0, "nobody left with packets waiting"
    cells = [np.asarray(step[3].cell) for step in rollout]
    assert any((a != b).any() for a, b in itertools.pairwise(cells)), "nobody handed over"


def test_allocation_moves_by_at_most_the_limit_and_one_window_late(env, rollout):
    params = env.default_params
    for before, action, _, after, step in rollout:
        np.testing.assert_allclose(np.asarray(after.alloc_hz).sum(-1), params.bandwidth_hz, rtol=1e-6)
        assert np.abs(np.asarray(after.alloc_hz - before.alloc_hz)).max() <= params.max_change_hz * (1 + 1e-5)
        np.testing.assert_array_equal(step.action, project_action(action, params))
        assert (np.asarray(step.reward) >= 0).all() and (np.asarray(step.reward) <= 1).all()
    before, action, draws, after, _ = rollout[0]
    other, step = env.transition(before, action[:, ::-1], draws, params)
    np.testing.assert_array_equal(step.reward, rollout[0][4].reward)  # the action is not in force yet
    assert np.abs(np.asarray(other.alloc_hz - after.alloc_hz)).max() > 1e5


def test_every_policy_meets_the_same_users(env):
    """Sessions end whether they are served or not: a starved slice must not keep its users."""
    params = env.default_params.replace(session_end_probability=0.3)
    draw, transition = jax.jit(env.draw), jax.jit(env.transition)
    first, _ = jax.jit(env.reset)(jax.random.key(3), params)
    generous = first.replace(alloc_hz=jnp.broadcast_to(jnp.array([4e6, 3e6, 3e6]), first.alloc_hz.shape))
    starving = first.replace(alloc_hz=jnp.broadcast_to(jnp.array([0.0, 0.0, 1e7]), first.alloc_hz.shape))
    for t in range(4):
        draws = draw(jax.random.key(200 + t), generous, params)
        generous, _ = transition(generous, generous.alloc_hz, draws, params)
        starving, _ = transition(starving, starving.alloc_hz, draws, params)
    jax.tree.map(np.testing.assert_array_equal, generous.hotspots, starving.hotspots)
    for field in ("position_m", "slice_index", "hotspot"):
        np.testing.assert_array_equal(getattr(generous.users, field), getattr(starving.users, field))
    assert float(starving.backlog[:, :2].sum()) > float(generous.backlog[:, :2].sum()), "nobody was starved"


def test_who_leaves_takes_what_waits(rollout):
    _, _, _, state, _ = rollout[-1]
    waiting = np.asarray(ns_slots.num_queued(state.queue))
    ended = np.arange(waiting.size) % 2 == 0
    queue, abandoned = ns_window.abandon(state.queue, jnp.asarray(ended))
    assert waiting[ended].sum() > 0 and waiting[~ended].sum() > 0
    np.testing.assert_array_equal(abandoned, np.where(ended, waiting, 0))
    np.testing.assert_array_equal(ns_slots.num_queued(queue), np.where(ended, 0, waiting))


def test_change_goes_straight_to_the_target():
    params = NSParams(max_change_hz=1e6)
    start, target = jnp.array([[8e6, 1e6, 1e6]]), jnp.array([[2e6, 4e6, 4e6]])
    np.testing.assert_allclose(next_allocation(start, target, params), [[7e6, 1.5e6, 1.5e6]], rtol=1e-6)
    near = jnp.array([[7.5e6, 1.5e6, 1e6]])
    np.testing.assert_allclose(next_allocation(start, near, params), near, rtol=1e-6)


def test_projection_is_on_the_simplex_and_keeps_proportions():
    params = NSParams(bandwidth_hz=10e6)
    action = jnp.array([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0], [-5.0, 3e6, 1e6]])
    expected = [[2.5e6, 2.5e6, 5e6], [1e7 / 3] * 3, [0.0, 7.5e6, 2.5e6]]
    np.testing.assert_allclose(project_action(action * jnp.array([[1e6], [1.0], [1.0]]), params), expected, atol=20)
    np.testing.assert_array_equal(whole_rbs(jnp.array([180e3 * 7, 180e3 * 7 - 100, 0.0])), [7, 6, 0])


@pytest.mark.parametrize("slice_index,mean_slots", [(0, 160.5), (1, 12.47), (2, 360.5)])
def test_gaps_follow_their_law(slice_index, mean_slots):
    """Mean packet period against the published rates (12.5, 160.4, 5.55 packets/s), within 5 standard errors."""
    uniform = jax.random.uniform(jax.random.key(slice_index), (40000,))
    gaps = np.asarray(ns_traffic.gap_slots(jnp.full(uniform.shape, slice_index), uniform), np.float64)
    assert abs(gaps.mean() - mean_slots) < 5 * gaps.std() / np.sqrt(gaps.size)
    assert gaps.min() >= 1
    if slice_index == 1:  # P(0.006 X > 0.0125) = (1 + 12.5 / 6)^-1.2: the cap of 25 slots; plus 24 < gap <= 25
        at_cap = (1 + 24 / 12) ** -1.2
        assert abs((gaps == 25).mean() - at_cap) < 5 * np.sqrt(at_cap / gaps.size)


def test_sizes_follow_their_law():
    uniform = jax.random.uniform(jax.random.key(9), (40000,))
    size = [np.asarray(ns_traffic.packet_bits(jnp.full(uniform.shape, n), uniform, "small")) for n in range(3)]
    assert (size[0] == 320).all()
    probability = np.sort(size[1][size[1] < 2000])
    law = 1 - (1 + probability / 800) ** -1.2
    empirical = np.arange(1, probability.size + 1) / size[1].size
    assert np.abs(empirical - law).max() < 1.95 / np.sqrt(size[1].size)  # Kolmogorov-Smirnov at 1e-3
    values, counts = np.unique(size[2], return_counts=True)
    np.testing.assert_allclose(values, np.array([6.4, 12.8, 19.2, 25.6, 32]) * 8e3, rtol=1e-6)
    assert np.abs(counts / size[2].size - 0.2).max() < 5 * np.sqrt(0.16 / size[2].size)


def test_reflection_keeps_users_inside_and_mirrors_directions():
    position, direction = ns_mobility.reflect(
        jnp.array([[12.0, 0.0], [3.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]]), 10.0
    )
    np.testing.assert_allclose(position, [[8.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(direction, [[-1.0, 0.0], [1.0, 0.0]])


def test_observation_is_the_cells_own(env, rollout):
    params = env.default_params
    state = rollout[-1][3]
    obs = env.observe(state, params)
    assert obs.shape == (7, 15) and len(env.spec.obs_names) == 15
    changed = state.replace(
        backlog=state.backlog.at[2].add(5.0), ssr=state.ssr.at[2].set(0.1), load=state.load.at[2].set(0)
    )
    moved = np.abs(np.asarray(env.observe(changed, params) - obs)).sum(axis=-1) > 0
    np.testing.assert_array_equal(moved, np.arange(7) == 2)
    names = list(env.spec.obs_names)
    np.testing.assert_array_equal(obs[:, names.index("ssr_urllc")], state.ssr[:, 2])
    np.testing.assert_array_equal(obs[:, names.index("arrivals_before_video")], rollout[-1][0].arrivals_last[:, 1])
    demand = make_ns("tiny", observation="demand")
    np.testing.assert_array_equal(demand.observe(state, demand.default_params), obs[:, :6])


def test_traces_replace_simulated_users():
    position = np.stack([np.zeros((40, 2)), np.full((40, 2), 1.0)]).astype(np.float32)
    env = make_ns("tiny", user_traces=(position, np.arange(40) % 3))
    state, _ = env.reset(jax.random.key(0), env.default_params)
    assert env.default_params.num_users == 40
    np.testing.assert_array_equal(state.cell, 0)
    np.testing.assert_array_equal(state.users.slice_index, np.arange(40) % 3)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"preset": "big"}, "unknown preset 'big'"),
        ({"num_cell": 7}, "unknown parameters"),
        ({"observation": "all"}, "observation must be 'full' or 'demand'"),
        ({"interference_slots": 7}, "window_slots must be a multiple"),
        ({"num_cells": 8}, "num_cells must be 1, 7 or 19"),
        ({"urllc_size": "huge"}, "urllc_size must be one of"),
        ({"user_traces": (np.zeros((3, 2)), np.zeros(3))}, "user_traces must be"),
    ],
)
def test_errors_name_the_fix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_ns(**kwargs)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_sessions_of_a_preset_belong_to_its_crowds(preset):
    env = make_ns(preset)
    params = env.default_params
    state, _ = jax.jit(env.reset)(jax.random.key(0), params)
    wanted = float(params.hotspot_fraction) if params.hotspots_per_slice else 0.0
    error = 5 * np.sqrt(wanted * (1 - wanted) / params.num_users)  # five standard errors
    assert abs(float((state.users.hotspot >= 0).mean()) - wanted) <= error
    np.testing.assert_allclose(state.alloc_hz.sum(-1), params.bandwidth_hz, rtol=1e-6)


def test_looked_up_packets_are_those_of_the_laws(env):
    """Every half word of every slice: the table holds what the laws give."""
    params = env.default_params
    gaps, bits = ns_traffic.packet_tables(params.traffic_load, params.urllc_size)
    words = jnp.arange(1 << 16, dtype=jnp.uint32)
    for n in range(3):
        uniform = (words.astype(jnp.float32) + 0.5) / 65536
        slice_index = jnp.full(words.shape, n)
        rows = slice(n << 16, (n + 1) << 16)
        np.testing.assert_array_equal(gaps[rows], ns_traffic.gap_slots(slice_index, uniform, params.traffic_load))
        np.testing.assert_array_equal(bits[rows], ns_traffic.packet_bits(slice_index, uniform, params.urllc_size))
