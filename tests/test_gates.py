"""Gates of ns: the differences, their tables, the joint and independent ascents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gates, gates_on_model, joint
from networld_envs import ns_window
from networld_envs.experts import ns, ns_model
from networld_envs.ns import make_ns


@pytest.fixture(scope="module")
def env():
    return make_ns("tiny", num_users=700)


def test_differences_are_paired_over_instances():
    rewards = {"lookahead_oracle": [0.9, 0.8], "greedy_oracle": [0.8, 0.8], "expert": [0.5, 0.7]}
    rewards["hindsight_constant"] = [0.6, 0.6]
    results = {
        "rows": {name: {"instance_rewards": values} for name, values in rewards.items()},
        "joint": {"0": {"gain": 0.02}, "1": {"gain": 0.0}},
    }
    found = gates.gates(results)
    np.testing.assert_allclose([found[g]["mean"] for g in "abc"], [0.05, 0.0, 0.01], atol=1e-12)
    np.testing.assert_allclose(found["b"]["instances"], [-0.1, 0.1])
    np.testing.assert_allclose([found[g]["sem"] for g in "abc"], [0.05, 0.1, 0.01])  # |x - y| / 2 for two values


@pytest.mark.parametrize("is_joint,expected", [(False, [[4, 7, 4], [4, 7, 4]]), (True, [[7, 4, 4], [7, 4, 4]])])
def test_cells_move_for_themselves_or_for_the_sum(is_joint, expected):
    """A cell gains 1 per RB of slice 1 and loses 3 per RB of the other cell's slice 1."""
    rewards_fn = lambda rbs: rbs[..., 1] - 3.0 * rbs[:, ::-1, 1]  # noqa: E731
    start = jnp.array([[4, 7, 4] if is_joint else [7, 4, 4]] * 2)
    moved = joint.ascend_in_simulation(rewards_fn, start, is_joint)
    np.testing.assert_array_equal(moved, expected)


def test_nobody_gives_what_it_does_not_have():
    start = jnp.array([[2, 10, 3]])
    moved = joint.ascend_in_simulation(lambda rbs: -rbs[..., 0].astype(float), start, False)
    np.testing.assert_array_equal(moved, start)  # slice 0 cannot give 3 of its 2


def test_joint_ascent_ends_above_the_independent_one(env):
    model = ns_model.make_model(env.default_params)
    users = jax.random.randint(jax.random.key(0), (7, 3), 0, 40).astype(float)
    sums = [
        float(joint.model_rewards(model, users, joint.ascend_on_model(model, users, is_joint)).sum())
        for is_joint in (False, True)
    ]
    equal = float(joint.model_rewards(model, users, jnp.full((7, 3), model.num_rbs // 3)).sum())
    assert equal < sums[0] < sums[1]


def test_frozen_users_stay_and_allocations_are_in_force_at_once(env):
    params = joint.frozen(env.default_params)
    assert params.is_instant
    state, _ = env.reset(jax.random.key(0), env.default_params)
    users, *_ = ns_window.advance_users(state, env.draw(jax.random.key(1), state, params), params)
    np.testing.assert_allclose(users.position_m, state.users.position_m, atol=1e-4)  # centre + offset, again
    np.testing.assert_array_equal(users.slice_index, state.users.slice_index)


def test_tables_replace_what_stood_between_the_marks():
    page = "before\n<!-- gates:begin -->\nold\n<!-- gates:end -->\nafter\n"
    assert gates.with_tables(page, "new\n") == "before\n<!-- gates:begin -->\nnew\n<!-- gates:end -->\nafter\n"
    with pytest.raises(ValueError, match="marks"):
        gates.with_tables("no place", "new\n")


def test_on_the_model_knowing_the_future_is_worth_nothing_where_nobody_moves(env):
    """Users that stay: after the way from the equal split, look-ahead earns what the best constant and the best free
    split earn, and so does the expert, whose old counts are still true."""
    still = env.default_params.replace(mobility_step_s=0.0, session_end_probability=0.0)
    reward = jax.jit(lambda key: gates_on_model.rewards_on_model(key, still, 120, 20))(jax.random.key(3))
    reward = {name: float(value) for name, value in reward.items()}
    assert reward["equal"] < reward["lookahead_oracle"] <= reward["unlimited"] + 1e-6
    np.testing.assert_allclose(reward["hindsight_constant"], reward["unlimited"], atol=1e-6)
    np.testing.assert_allclose(reward["lookahead_oracle"], reward["unlimited"], atol=0.01)  # 120 windows, 5 on the way
    np.testing.assert_allclose(reward["expert"], reward["lookahead_oracle"], atol=2e-3)


def test_on_the_model_a_constant_falls_behind_where_crowds_move():
    crowds = {"hotspot_fraction": 0.95, "hotspot_speed_mps": 10.0, "hotspot_dwell_windows": 20.0, "bandwidth_hz": 5e6}
    moving = make_ns("tiny", num_users=700, **crowds).default_params
    reward = jax.jit(lambda key: gates_on_model.rewards_on_model(key, moving, 120, 20))(jax.random.key(3))
    order = [float(reward[name]) for name in ("hindsight_constant", "lookahead_oracle", "unlimited")]
    assert order == sorted(order) and order[0] < order[1] - 0.01


def test_counts_are_those_of_the_simulator():
    """Almost silent users, so that no session is kept alive by a packet that waits."""
    env = make_ns("tiny", traffic_load=(1e-4, 1e-4, 1e-4), has_interference=False)
    params, key = env.default_params, jax.random.key(0)
    counts = gates_on_model.users_of_episode(key, params, 23)
    state, _ = env.reset(jax.random.fold_in(key, 0), params)
    action = jnp.full((7, 3), params.bandwidth_hz / 3)
    step = jax.jit(lambda state, key: env.transition(state, action, env.draw(key, state, params), params)[0])
    for t in range(len(counts)):
        state = step(state, jax.random.fold_in(key, 1 + t))
    np.testing.assert_array_equal(counts[-1], ns.user_counts(state.cell, state.users.slice_index, params))
