"""What the adapters share; the adapters themselves are tested against the other party in test_interop_*.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networld_envs
from networld_envs.adapters import common
from networld_envs.types import Information, TaskSpec


def spec(kind, low, high):
    return TaskSpec(
        name="grid", max_agents=3, obs_dim=1, action_dim=len(low), action_kind=kind, action_low=low, action_high=high,
        obs_names=("x",), information=(Information(("x",), "own", 0, 0, "x"),),
    )  # fmt: skip


def test_an_index_counts_through_all_joint_values_once():
    grid = spec("integer", (-1.0, 0.0), (1.0, 4.0))
    assert common.num_discrete_actions(grid) == 15
    actions = np.asarray(jax.jit(lambda i: common.from_index(i, grid))(jnp.arange(15)))
    np.testing.assert_array_equal(actions[:6], [[-1, 0], [-1, 1], [-1, 2], [-1, 3], [-1, 4], [0, 0]])
    assert len({tuple(a) for a in actions}) == 15 and actions.min(0).tolist() == [-1, 0]
    assert actions.max(0).tolist() == [1, 4] and actions.dtype == np.float32


def test_the_unit_box_maps_onto_the_bounds_and_clips():
    box = spec("box", (0.0, -2.0), (10.0, 2.0))
    scaled = jnp.array([[-1.0, 1.0], [0.0, 0.0], [7.0, -7.0]])
    np.testing.assert_allclose(common.from_unit_box(scaled, box), [[0, 2], [5, 0], [10, -2]])


def test_metrics_become_one_number_per_agent():
    metrics = {"sum": jnp.float32(2.0), "each": jnp.arange(3), "matrix": jnp.ones((3, 3))}
    kept = common.per_agent(metrics, 3)
    assert {name: np.asarray(value).tolist() for name, value in kept.items()} == {"sum": [2, 2, 2], "each": [0, 1, 2]}


def test_what_cannot_be_flattened_is_refused():
    with pytest.raises(ValueError, match="only integer actions are discrete, got action_kind='box'"):
        common.num_discrete_actions(networld_envs.make("cbf").spec)
    with pytest.raises(ValueError, match="4 integer components have 10000 joint values, at most 4096"):
        common.num_discrete_actions(spec("integer", (0.0,) * 4, (9.0,) * 4))
