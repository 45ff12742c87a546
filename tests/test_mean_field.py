"""The one message of NetWorld: formula, graph symmetries, neighbour lists."""

import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax.mean_field import mean_field, mean_field_from_lists, neighbour_lists

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
    index, weight = neighbour_lists(graph)
    assert index.shape == weight.shape == (N, int(graph.sum(-1).max()))
    got = mean_field_from_lists(jnp.asarray(z), jnp.asarray(index), jnp.asarray(weight))
    np.testing.assert_allclose(got, loop(z, graph), atol=1e-6)


def test_neighbour_lists_of_a_graph_without_edges():
    index, weight = neighbour_lists(np.zeros((N, N), np.float32))
    assert index.shape == (N, 1) and not weight.any()


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
