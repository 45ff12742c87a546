"""Constants of the training data against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, normalisation
from networld_jax.types import WorldModelConfig
from tests import tiny

RUNS, STEPS, N = 3, 12, 4


@pytest.fixture(scope="module")
def data():
    return tiny.linear_task(RUNS, STEPS)


def test_statistics_are_those_of_present_agents(data):
    mask = np.ones((RUNS, N), np.float32)
    mask[0, 3] = 0
    graph = data.adjacency * mask[:, :, None] * mask[:, None, :]
    masked = datasets.from_arrays(data.obs, data.action, data.reward, graph, mask)
    wild = jax.tree.map(np.copy, masked)
    for values in (wild.obs, wild.action, wild.reward):
        values[0, :, 3] = 77.0
    model = WorldModelConfig(latent_dim=4, horizon=4, num_action_bins=9)
    spec = datasets.spec_from_trajectories("line", data)
    stats, same = (normalisation.task_stats(d, spec, model, discount=0.5) for d in (masked, wild))

    present = np.concatenate([masked.obs[r, :, mask[r] > 0].reshape(-1, 4) for r in range(RUNS)]).astype(np.float64)
    squashed = np.sign(present) * np.log1p(np.abs(present))
    # float32 input and result: relative 1e-6 of values of order 1.
    np.testing.assert_allclose(stats.obs_mean, squashed.mean(0), atol=2e-6)
    np.testing.assert_allclose(stats.obs_std, squashed.std(0), rtol=2e-6)
    labels = []
    for r in range(RUNS):
        for begin in range(0, STEPS - 3, 2):
            for i in np.flatnonzero(mask[r]):
                labels.append((masked.reward[r, begin : begin + 4, i] * 0.5 ** np.arange(4)).sum())
    np.testing.assert_allclose(stats.return_mean["own"], np.mean(labels), rtol=2e-6)
    np.testing.assert_allclose(stats.return_std["own"], np.std(labels), rtol=2e-6)
    for name, a, b in zip(stats.__dataclass_fields__, jax.tree.leaves(stats), jax.tree.leaves(same), strict=False):
        np.testing.assert_array_equal(a, b, err_msg=f"{name} reads absent agents")


def test_constant_entries_are_not_blown_up(data):
    flat = data.replace(obs=np.full_like(data.obs, 3.0))
    spec = datasets.spec_from_trajectories("line", flat)
    stats = normalisation.task_stats(flat, spec, WorldModelConfig(horizon=4), min_std=0.05)
    np.testing.assert_array_equal(stats.obs_std, np.full(4, 0.05, np.float32))
    assert np.abs(normalisation.normalise_obs(jnp.asarray(flat.obs), stats)).max() < 1e-4


def test_surprise_is_what_one_step_leaves_open():
    """An AR(1) channel leaves sqrt(1 - a^2), a copy of the past (own or neighbours) nothing, noise everything."""
    rng, graph = np.random.default_rng(0), tiny.path_graph(3)
    mean = graph / np.maximum(graph.sum(-1, keepdims=True), 1)
    z = np.zeros((40, 201, 3, 4))
    z[:, 0] = rng.normal(size=z[:, 0].shape)
    for t in range(200):
        fresh = rng.normal(size=(40, 3, 2))
        z[:, t + 1, :, 0] = 0.8 * z[:, t, :, 0] + 0.6 * fresh[..., 0]
        z[:, t + 1, :, 1] = fresh[..., 1]
        z[:, t + 1, :, 2] = z[:, t, :, 0]
        z[:, t + 1, :, 3] = z[:, t, :, 1] @ mean.T
    graphs = np.tile(graph, (40, 1, 1))
    rms = normalisation.surprise(z, graphs, np.ones((40, 3)))
    np.testing.assert_allclose(rms, [0.6, 1.0, 0.0, 0.0], atol=0.02)
    z[:, :, 2, :] *= 50.0  # an absent agent's entries count for nothing
    graphs[:, 2, :] = graphs[:, :, 2] = 0.0
    rms = normalisation.surprise(z, graphs, np.tile([1.0, 1.0, 0.0], (40, 1)))
    np.testing.assert_allclose(rms[:3], [0.6, 1.0, 0.0], atol=0.02)


def test_normalised_observations_have_mean_0_and_std_1(data):
    spec = datasets.spec_from_trajectories("line", data)
    stats = normalisation.task_stats(data, spec, WorldModelConfig(horizon=4))
    normal = np.asarray(normalisation.normalise_obs(jnp.asarray(data.obs), stats), np.float64).reshape(-1, 4)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-5)


def test_integer_tasks_have_one_bin_per_integer(data):
    whole = tiny.integer_valued(data)
    spec = datasets.spec_from_trajectories("line", whole, action_kind="integer")
    bins = normalisation.action_bins(whole, spec, num_bins=99)
    assert bins.shape == (2, whole.action.max() - whole.action.min() + 1)
    np.testing.assert_array_equal(np.diff(bins), 1.0)
    assert bins[0, 0] == whole.action.min() and bins[0, -1] == whole.action.max()


def test_box_bins_cover_the_data_with_one_spare_at_each_end(data):
    spec = datasets.spec_from_trajectories("line", data)
    bins = normalisation.action_bins(data, spec, num_bins=9)
    low, high = data.action.min((0, 1, 2)), data.action.max((0, 1, 2))
    assert (bins[:, 0] < low).all() and (bins[:, -1] > high).all()
    np.testing.assert_allclose(bins[:, 1], low, rtol=1e-5)  # float32 through symlog and back
    np.testing.assert_allclose(bins[:, -2], high, rtol=1e-5)


def test_action_std_is_that_of_the_histogram(data):
    spec = datasets.spec_from_trajectories("line", data)
    stats = normalisation.task_stats(data, spec, WorldModelConfig(latent_dim=4, horizon=4, num_action_bins=9))
    bins, share = np.array([[-2.0, 0.0, 4.0]] * 2), np.array([[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])
    stats = stats.replace(action_bins=jnp.asarray(bins), action_log_histogram=jnp.log(jnp.asarray(share)))
    # mean 1.5, mean square 9, so variance 6.75; a constant action has none
    np.testing.assert_allclose(normalisation.action_std(stats), [np.sqrt(6.75), 0.0], rtol=1e-6)
