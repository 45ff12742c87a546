"""Windows against slices by hand, and the law by which they are drawn; transitions, the windows of one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, normalisation
from networld_jax.baselines.transitions import sample_transitions, transitions
from networld_jax.types import WorldModelConfig
from networld_jax.windows import sample_segments, windows
from tests import tiny

RUNS, STEPS, N = 3, 12, 4


@pytest.fixture(scope="module")
def data():
    return tiny.linear_task(RUNS, STEPS)


def numbered(runs=RUNS, steps=STEPS, agents=N):
    """Trajectories whose entries say where they come from: 10000 run + 100 step + agent."""
    place = lambda length: (  # noqa: E731
        10_000 * np.arange(runs)[:, None, None] + 100 * np.arange(length)[None, :, None] + np.arange(agents)[None, None]
    ).astype(np.float32)
    obs, at = place(steps + 1), place(steps)
    return datasets.from_arrays(obs[..., None], at[..., None] + 0.25, at + 0.5, tiny.path_graph(agents))


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_windows_are_the_slices(delay):
    data, horizon = jax.tree.map(jnp.asarray, numbered()), 4
    where = jnp.array([(0, 0), (2, STEPS - horizon), (1, 2)])
    got = windows(data, where, horizon, delay)
    for b, (run, begin) in enumerate(np.asarray(where)):
        for h in range(horizon + 1):
            here = 10_000 * run + 100 * (begin + h) + np.arange(N)
            heard = 10_000 * run + 100 * max(begin + h - delay, 0) + np.arange(N)
            np.testing.assert_array_equal(got.obs[b, :, h, 0], here)
            np.testing.assert_array_equal(got.message_obs[b, :, h, 0], heard)
            if h < horizon:
                np.testing.assert_array_equal(got.action[b, :, h, 0], here + 0.25)
                np.testing.assert_array_equal(got.reward[b, :, h], here + 0.5)
    np.testing.assert_array_equal(got.start, where[:, 1])
    np.testing.assert_array_equal(got.adjacency[0], data.adjacency[0])


@pytest.fixture(scope="module")
def many_windows():
    data = jax.tree.map(jnp.asarray, numbered())
    with jax.debug_key_reuse(True):
        return jax.jit(lambda key: sample_segments(key, data, 6000, 4))(jax.random.key(0))


def test_windows_never_cross_trajectories(many_windows):
    run = np.asarray(many_windows.obs[:, 0, :, 0]) // 10_000
    assert (run == run[:, :1]).all()
    assert int(many_windows.start.max()) == STEPS - 4 and int(many_windows.start.min()) == 0


def test_windows_are_uniform_over_trajectories_and_starts(many_windows):
    run = np.asarray(many_windows.obs[:, 0, 0, 0]).astype(int) // 10_000
    cell = run * (STEPS - 3) + np.asarray(many_windows.start)
    counts = np.bincount(cell, minlength=RUNS * (STEPS - 3))
    expected = 6000 / counts.size  # 222 per place
    chi2 = ((counts - expected) ** 2 / expected).sum()
    # Chi-square with 26 degrees of freedom: mean 26, standard deviation 7.2; five of them.
    assert counts.size == 27 and chi2 < 26 + 5 * 7.2


def test_short_trajectories_are_refused(data):
    with pytest.raises(ValueError, match="12 steps hold no window of horizon 13"):
        sample_segments(jax.random.key(0), data, 2, 13)


def test_the_longest_possible_window_is_drawn(data):
    segments = sample_segments(jax.random.key(0), jax.tree.map(jnp.asarray, data), 2, STEPS)
    assert not np.any(segments.start)


def test_transitions_are_the_rows_of_the_baselines(data):
    spec = datasets.spec_from_trajectories("line", data)
    stats = normalisation.task_stats(data, spec, WorldModelConfig(horizon=4))
    shown = np.ones((RUNS, STEPS), bool)
    shown[1, 5] = False
    arrays = jax.tree.map(jnp.asarray, data.replace(is_demonstration=shown))
    where = jnp.array([(0, 0), (1, 5)])
    rows = transitions(windows(arrays, where, 1, message_delay=1), stats)
    normal = np.asarray(normalisation.normalise_obs(arrays.obs, stats))
    assert rows.obs.shape == (2 * N, 4)
    for b, (run, t) in enumerate(np.asarray(where)):
        for i in range(N):
            row = b * N + i
            neighbours = np.flatnonzero(data.adjacency[run, i])
            np.testing.assert_array_equal(rows.obs[row], normal[run, t, i])
            np.testing.assert_array_equal(rows.next_obs[row], normal[run, t + 1, i])
            # Means of two float32 numbers of size 1.
            heard = normal[run][:, neighbours].mean(1)  # [L + 1, O]
            np.testing.assert_allclose(rows.neighbour_mean[row], heard[max(t - 1, 0)], atol=1e-6)
            np.testing.assert_allclose(rows.next_neighbour_mean[row], heard[t], atol=1e-6)
            np.testing.assert_array_equal(rows.action[row], data.action[run, t, i])
            assert rows.reward[row] == data.reward[run, t, i]
            assert rows.weight[row] == (b == 0)


def test_sample_transitions_folds_the_agents(data):
    spec = datasets.spec_from_trajectories("line", data)
    stats = normalisation.task_stats(data, spec, WorldModelConfig(horizon=4))
    rows = sample_transitions(jax.random.key(0), jax.tree.map(jnp.asarray, data), stats, 10)
    assert rows.reward.shape == (8,)  # two whole joint steps of 4 agents
