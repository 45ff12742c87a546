"""The one message of NetWorld: formula, graph symmetries, neighbour lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax.mean_field import Neighbours, make_graph, mean_field, neighbour_lists, neighbours_from_edges

N, D = 6, 3


@pytest.fixture(scope="module")
def case():
    """Random latents [2, 5, N, D] and a random symmetric graph in which agent 4 is isolated."""
    rng = np.random.default_rng(0)
    graph = np.triu(rng.random((N, N)) < 0.5, 1).astype(np.float32)
    graph = graph + graph.T
    graph[4] = graph[:, 4] = 0
    assert graph.sum() > 6
    return rng.normal(size=(2, 5, N, D)).astype(np.float32), graph


def loop(z, graph):
    out = np.zeros(z.shape)
    for i in range(N):
        neighbours = [j for j in range(N) if graph[i, j] > 0]
        for j in neighbours:
            out[..., i, :] += z[..., j, :].astype(np.float64) / len(neighbours)
    return out


def test_is_the_average_over_neighbours(case):
    z, graph = case
    got = mean_field(jnp.asarray(z), jnp.asarray(graph)[None, None])
    # Sums of at most 5 float32 numbers of size 1: a few units in the last place (1.2e-7).
    np.testing.assert_allclose(got, loop(z, graph), atol=1e-6)
    assert not np.any(got[..., 4, :])


def test_neighbour_lists_equal_the_matrix(case):
    z, graph = case
    lists = neighbour_lists(graph)
    assert lists.index.shape == lists.weight.shape == (N, int(graph.sum(-1).max()))
    np.testing.assert_allclose(mean_field(jnp.asarray(z), lists), loop(z, graph), atol=1e-6)


def test_neighbour_lists_may_differ_along_the_leading_axes(case):
    z, graph = case
    thinned = graph.copy()
    thinned[0] = 0
    both = [neighbour_lists(g, max_degree=N - 1) for g in (graph, thinned)]
    stacked = jax.tree.map(lambda *x: np.stack([np.stack(x)] * z.shape[1], 1), *both)  # [2, 5, N, K]
    got = mean_field(jnp.asarray(z), stacked)
    np.testing.assert_allclose(got[0], loop(z[0], graph), atol=1e-6)
    np.testing.assert_allclose(got[1], loop(z[1], thinned), atol=1e-6)


def test_weights_of_a_matrix_survive_in_the_lists(case):
    z, graph = case
    weighted = graph * np.random.default_rng(2).uniform(0.2, 1.0, graph.shape).astype(np.float32)
    dense = mean_field(jnp.asarray(z[0, 0]), jnp.asarray(weighted))
    np.testing.assert_allclose(mean_field(jnp.asarray(z[0, 0]), neighbour_lists(weighted)), dense, atol=1e-6)


def test_neighbour_lists_of_a_graph_without_edges():
    lists = neighbour_lists(np.zeros((N, N), np.float32))
    assert lists.index.shape == (N, 1) and not lists.weight.any()


def test_large_graphs_become_lists_and_small_ones_a_matrix(case):
    _, graph = case
    edges = np.random.default_rng(3).permutation(np.argwhere(graph > 0))  # any order
    np.testing.assert_array_equal(make_graph(edges, N), graph)
    lists = make_graph(edges, N, dense_max_agents=N - 1)
    assert isinstance(lists, Neighbours)
    np.testing.assert_array_equal(lists.index, neighbour_lists(graph).index)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 1), (0, 2), (0, 3)], "agent 0 has 3 neighbours, max_degree is 2"),
        ([(1, 1)], "agent 1 is its own neighbour"),
        ([(0, 6)], "agents 0..5, got 0..6"),
        ([(0, 1), (2, 3), (0, 1)], "repeated"),
    ],
)
def test_impossible_graphs_are_refused(edges, message):
    with pytest.raises(ValueError, match=message):
        neighbours_from_edges(np.array(edges), N, max_degree=2)


def test_permuting_agents_permutes_the_result(case):
    z, graph = case
    order = np.random.default_rng(1).permutation(N)
    plain = mean_field(jnp.asarray(z), jnp.asarray(graph)[None, None])
    permuted = mean_field(jnp.asarray(z[..., order, :]), jnp.asarray(graph[order][:, order])[None, None])
    np.testing.assert_allclose(permuted, np.asarray(plain)[..., order, :], atol=1e-6)


def test_an_absent_agents_latent_is_never_read(case):
    z, graph = case
    changed = z.copy()
    changed[..., 4, :] = 1e6
    args = jnp.asarray(graph)[None, None]
    np.testing.assert_array_equal(mean_field(jnp.asarray(z), args), mean_field(jnp.asarray(changed), args))


def test_lost_messages_leave_the_mean_of_the_rest(case):
    z, graph = case
    receiver = int(graph.sum(-1).argmax())
    lost, *rest = np.flatnonzero(graph[receiver])
    thinned = graph.copy()
    thinned[receiver, lost] = 0
    got = mean_field(jnp.asarray(z[0, 0]), jnp.asarray(thinned))[receiver]
    np.testing.assert_allclose(got, z[0, 0, rest].mean(0), atol=1e-6)


def test_wrong_graph_size_is_refused():
    with pytest.raises(ValueError, match=r"\[N, N\] = \(6, 6\), got \(5, 5\)"):
        mean_field(jnp.zeros((N, D)), jnp.zeros((5, 5)))
