"""Rules, expert and oracles of network slicing, and the model on which they decide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs.experts import ns as experts
from networld_envs.experts import ns_deadline, ns_model
from networld_envs.instances import instance_keys
from networld_envs.ns import make_ns
from networld_envs.types import Policy
from networld_jax.evaluation import Protocol, make_evaluator

PROTOCOL = Protocol(num_instances=4, num_steps=40, burn_in_steps=10)


@pytest.fixture(scope="module")
def env():
    """Seven cells with the default's density of users, in shorter windows."""
    return make_ns("tiny", num_users=700)


@pytest.fixture(scope="module")
def model(env):
    return ns_model.make_model(env.default_params)


@pytest.fixture(scope="module")
def score(env):
    """(row of the table, shares of the row "given") -> rewards of the instances; one program for all rows."""
    params = env.default_params
    rows = experts.policies(params) | {"given": experts.given_split(params)}
    names = ("given", "constant", "expert")

    def act(key, choice, memory, obs, adjacency, env_state):
        index, shares = choice
        actions, memories = zip(
            *(rows[name].act(key, shares, memory, obs, adjacency, env_state) for name in names), strict=True
        )
        return jnp.stack(actions)[index], memories[names.index("expert")]

    run = make_evaluator(env, Policy(init=rows["expert"].init, act=act), PROTOCOL)
    keys = instance_keys("ns", "validation", PROTOCOL.num_instances)
    equal = jnp.full((params.num_cells, 3), 1 / 3)
    return lambda name, shares=equal: run(keys, (jnp.int32(names.index(name)), shares), params).reward


@pytest.mark.slow
def test_expert_beats_constant_splits(score):
    for name in ("constant", "given"):
        gain = score("expert") - score(name)  # paired: every policy meets the same users and packets
        assert gain.mean() > 3 * gain.std(ddof=1) / np.sqrt(gain.size), f"against {name}: {gain}"


@pytest.mark.slow
def test_hindsight_shares_are_on_the_simplex_and_beat_equal_shares(env, score):
    params = env.default_params
    key = instance_keys("ns", "validation", 1)[0]
    shares = jax.jit(lambda k: experts.hindsight_shares(k, params, PROTOCOL.num_steps, PROTOCOL.burn_in_steps))(key)
    assert shares.shape == (7, 3)
    np.testing.assert_allclose(np.asarray(shares).sum(-1), 1, rtol=1e-6)
    assert score("given", shares)[0] > score("given")[0]


def test_curves_rise_with_bandwidth_and_fall_with_users_and_interference(model):
    users = jnp.array([[30.0] * 3, [60.0] * 3, [60.0] * 3])
    curves_of = jax.jit(lambda users, load: ns_model.ssr_curves(model, users, load))
    curves = np.asarray(curves_of(users, jnp.array([0.2, 0.2, 0.8])))
    assert curves.shape == (3, 3, model.num_rbs + 1)
    assert (curves >= 0).all() and (curves <= 1 + 1e-6).all()
    assert (np.diff(curves, axis=-1) >= -0.02).all()  # a few hundredths: whole RBs make video shares uneven
    assert (curves[0] >= curves[1] - 1e-6).all() and (curves[1] >= curves[2] - 1e-6).all()
    silent = curves_of(jnp.zeros((3, 3)), jnp.zeros(3))
    np.testing.assert_allclose(silent, 1)  # no packet, nothing missed


def test_lone_packets_with_a_deadline_of_one_slot_meet_their_closed_form():
    """All users alike and no shadowing: k RBs carry the packet or not, unless another one is there."""
    snr, bits = 1000.0, 40e3
    cell = ns_deadline.Cell(np.full(4, snr), np.zeros(4), (bits,), 1, 1.0, 64.0, 0.0)
    k = np.arange(0, 56, 5)
    table = ns_deadline.success_table(cell, k, np.array([0.0]), num_slots=400)[0]
    wide = np.maximum(k, 1)
    carries = k * 180e3 * 64 * np.log10(1 + snr / wide) * 0.5e-3 >= bits
    # P(alone | present) = exp(-a) = 0.90; 40 packets: 5 standard errors are 0.24
    assert (table[0][carries] > 0.66).all() and (table[0][~carries] == 0).all()
    assert 0 < carries.sum() < k.size


def test_turns_of_volte_users_have_their_limits():
    k = jnp.array([0.0, 1.0, 4.0, 50.0])[None, :]
    ssr = np.asarray(ns_model.volte_ssr(0.1, jnp.array([[100.0]]), k))[0]
    # Rounds of 90, 15 and at least 1 slots: packets of the last 12 slots of a round are in time
    np.testing.assert_allclose(ssr[[0, 1]], [0, 1.2 / 10], rtol=1e-4)
    assert 1.2 / 2.5 < ssr[2] < 1 and ssr[3] > 0.99


def test_plans_keep_the_change_limit_and_reach_the_best_split(env):
    params = env.default_params
    grid = experts.make_grid(55, params)
    best = len(grid.splits) // 2
    scores = jnp.zeros((40, 1, len(grid.splits))).at[:, :, best].set(1.0)
    alloc = jnp.full((1, 3), params.bandwidth_hz / 3)
    step = jax.jit(lambda alloc: experts.plan(grid, scores, alloc, params))
    for _ in range(40):
        after = step(alloc)
        assert float(jnp.abs(after - alloc).max()) <= float(params.max_change_hz) + 1
        alloc = after
    expected = experts.rbs_to_hz(jnp.asarray(grid.splits[best], jnp.float32)[None], params)
    np.testing.assert_allclose(alloc, expected, rtol=1e-5)


def test_expert_hears_its_neighbours_only(env):
    params = env.default_params
    policy = experts.expert(params)
    state, obs = env.reset(jax.random.key(0), params)
    adjacency = env.adjacency(state, params).at[0].set(0.0).at[:, 0].set(0.0)  # cell 0 hears nobody
    memory = policy.init(jax.random.key(2), params.num_cells)
    act = jax.jit(lambda obs: policy.act(jax.random.key(1), {}, memory, obs, adjacency, None)[0])
    obs = obs.at[:, :6].set(20.0).at[:, 9:12].set(jnp.array([8.0, 25.0, 22.0])[None] / 55)
    video = jnp.array([1, 4])  # before and last
    moved = np.abs(np.asarray(act(obs.at[0, video].set(0.0)) - act(obs.at[0, video].set(400.0)))).sum(-1)
    assert moved[0] > 0 and (moved[1:] == 0).all()


def test_expert_learns_the_links_of_its_cell(model):
    """A window that keeps coming back: the corrected model ends at the satisfaction seen."""
    users, rbs = jnp.full((7, 3), 30.0), jnp.broadcast_to(jnp.array([8.0, 25.0, 22.0]), (7, 3))
    memory = experts.ExpertMemory(jnp.zeros((7, 3)), users, rbs, jnp.full(7, 0.5), jnp.int32(1))
    expected = ns_model.ssr_curves(model, users, memory.around)[0, :, [8, 25, 22]][[0, 1, 2], [0, 1, 2]]
    seen = jnp.broadcast_to(jnp.clip(expected - jnp.array([0.1, 0.2, 0.0]), 0.02, 0.98), (7, 3))
    arrivals = jnp.ones((7, 3)).at[3].set(0.0)  # cell 3 has seen nothing
    learn = jax.jit(lambda memory: experts.learn_links(model, memory, users, arrivals, seen))
    for _ in range(60):
        memory = memory.replace(shift=learn(memory))
    logit = lambda p: jnp.log(p / (1 - p))  # noqa: E731
    np.testing.assert_allclose(memory.shift[0], logit(seen[0]) - logit(jnp.clip(expected, 0.01, 0.99)), atol=0.02)
    np.testing.assert_array_equal(memory.shift[3], 0)
