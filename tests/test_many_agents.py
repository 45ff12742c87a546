"""The planner for more agents than one network has: neighbour lists and chunks give the plans of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import planning
from networld_jax.mean_field import neighbour_lists
from networld_jax.types import PlannerConfig
from tests import tiny

N = 11


@pytest.fixture(scope="module")
def case():
    data = tiny.linear_task(num_runs=2, num_steps=12, num_agents=N)
    return tiny.with_linear_nets(tiny.build(data=data))


def actions(case, graph, map_fn=None, **config):
    planner = planning.make_planner(case.world_model, case.schedule, "line", PlannerConfig(**config), map_fn=map_fn)
    carry = planner.init(jax.random.key(0), N)
    params = planning.PolicyParams(case.params, case.stats)
    return planner.act(jax.random.key(1), params, carry, jnp.asarray(case.data.obs[0, 3]), graph, None)[0]


@pytest.fixture(scope="module")
def plain(case):
    with jax.debug_key_reuse(True):
        return actions(case, jnp.asarray(case.data.adjacency[0]))


# Below: the same sums in another order or batch, a few units in the last place of numbers of size 1, five steps deep.


def test_lists_give_the_plans_of_the_matrix(case, plain):
    np.testing.assert_allclose(actions(case, neighbour_lists(case.data.adjacency[0])), plain, atol=1e-5)


@pytest.mark.parametrize("size", [4, N, 100])
def test_chunks_give_the_plans_of_one_batch(case, plain, size):
    graph = jnp.asarray(case.data.adjacency[0])
    np.testing.assert_allclose(actions(case, graph, planning.in_chunks(size)), plain, atol=1e-5)


def test_messages_are_lost_from_lists_too(case, plain):
    lists = neighbour_lists(case.data.adjacency[0])
    silent = actions(case, neighbour_lists(np.zeros((N, N))))
    np.testing.assert_allclose(actions(case, lists, message_loss=1.0 - 1e-7), silent, atol=1e-5)
    assert np.abs(silent - plain).max() > 1e-3  # the messages matter


def test_empty_chunks_are_refused():
    with pytest.raises(ValueError, match="at least 1 agent, got 0"):
        planning.in_chunks(0)
