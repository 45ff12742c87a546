"""Offline data: validation, whole files or none, windows against slices by hand, statistics against NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets
from networld_jax.types import Trajectories, WorldModelConfig
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


def equal(a: Trajectories, b: Trajectories) -> bool:
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


# ------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": np.zeros((3, 12, 4, 2))}, "reward (3, 12, 4) asks for obs (3, 13, 4, 'O')"),
        ({"action": np.zeros((3, 12, 5, 2))}, "(3, 12, 5, 2)"),
        ({"reward": np.zeros((3, 12))}, "reward [R, L, N], got shapes (3, 13, 4, 4), (3, 12, 4, 2), (3, 12)"),
        ({"adjacency": np.ones((4, 4))}, "zero diagonal"),
        ({"adjacency": np.zeros((5, 5))}, "adjacency must be [N, N] or [R, N, N] with N = 4, got (5, 5)"),
        ({"agent_mask": np.ones((3, 5))}, "agent_mask must be [R, N] = (3, 4), got (3, 5)"),
        ({"is_demonstration": np.ones((12, 3))}, "is_demonstration must be [R, L] = (3, 12), got (12, 3)"),
        ({"reward": np.full((3, 12, 4), np.nan)}, "reward holds a value that is not finite"),
        ({"obs": np.full((3, 13, 4, 2), np.inf)}, "obs holds a value that is not finite"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(data, change, message):
    fields = {name: getattr(data, name) for name in ("obs", "action", "reward", "adjacency")}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        datasets.from_arrays(**(fields | change))
    assert "\n" not in str(error.value)


def test_an_absent_agent_must_not_appear_in_the_graph(data):
    mask = np.ones((RUNS, N), np.float32)
    mask[1, 2] = 0
    with pytest.raises(ValueError, match="absent agent"):
        datasets.from_arrays(data.obs, data.action, data.reward, data.adjacency, mask)


def test_spec_of_logged_data(data):
    spec = datasets.spec_from_trajectories("line", data)
    assert (spec.max_agents, spec.obs_dim, spec.action_dim) == (N, 4, 2)
    np.testing.assert_array_equal(spec.action_low, data.action.min((0, 1, 2)))
    np.testing.assert_array_equal(spec.action_high, data.action.max((0, 1, 2)))


def test_concatenate(data):
    both = datasets.concatenate([data, tiny.linear_task(2, STEPS, seed=9)])
    assert both.reward.shape == (RUNS + 2, STEPS, N)
    np.testing.assert_array_equal(both.obs[:RUNS], data.obs)


@pytest.mark.parametrize("num_steps", [1, 7, 12, 13, 25, 36])
def test_take_steps_keeps_the_beginning_of_as_few_trajectories_as_needed(data, num_steps):
    part = datasets.take_steps(data, num_steps)
    runs, length = part.reward.shape[:2]
    assert runs == -(-num_steps // STEPS)
    assert num_steps <= runs * length < num_steps + runs
    assert part.obs.shape[1] == length + 1
    np.testing.assert_array_equal(part.obs, data.obs[:runs, : length + 1])
    np.testing.assert_array_equal(part.action, data.action[:runs, :length])
    assert part.is_demonstration.shape == part.truncated.shape == (runs, length)


def test_take_steps_refuses_more_than_there_is(data):
    with pytest.raises(ValueError, match=r"1\.\.36.*got 37"):
        datasets.take_steps(data, 37)


# ------------------------------------------------------------------------------------------------ files


def write(directory, data, **facts):
    shards = []
    for r in range(len(data.reward)):
        digest = datasets.write_shard(directory, r, jax.tree.map(lambda x: x[r], data))  # noqa: B023
        shards.append({"file": datasets.shard_path(directory, r).name, "sha256": digest})
    datasets.write_manifest(directory, {"shards": shards, **facts})


def integer_valued(data):
    return data.replace(action=np.round(10 * np.abs(data.action)))


@pytest.mark.parametrize("make", [lambda d: d, integer_valued], ids=["box", "integer"])
def test_round_trip_is_exact(tmp_path, data, make):
    data = make(data)
    write(tmp_path, data, expert="linear")
    loaded, manifest = datasets.load(tmp_path)
    assert equal(loaded, data)
    assert manifest["expert"] == "linear" and manifest["schema_version"] == datasets.SCHEMA_VERSION
    assert equal(datasets.load(tmp_path, 2)[0], jax.tree.map(lambda x: x[:2], data))
    leftovers = [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    assert not leftovers


def test_integer_actions_take_a_byte_each(tmp_path, data):
    datasets.write_shard(tmp_path, 0, jax.tree.map(lambda x: x[0], integer_valued(data)))
    with np.load(datasets.shard_path(tmp_path, 0)) as arrays:
        assert arrays["action"].dtype == np.uint8
        assert arrays["obs"].dtype == np.float32


def test_minus_zero_keeps_its_sign(tmp_path, data):
    """Zeros look like small integers, but -0.0 would come back as +0.0: not the same bits."""
    shard = jax.tree.map(lambda x: x[0], data).replace(reward=np.full((STEPS, N), -0.0, np.float32))
    datasets.write_shard(tmp_path, 0, shard)
    assert np.signbit(datasets.read_shard(tmp_path, 0).reward).all()


def test_equal_arrays_give_equal_bytes(tmp_path, data):
    for name in ("a", "b"):
        write(tmp_path / name, data, seed=3)
    for file in ("shard_00000.npz", "shard_00002.npz", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def flip_bit(path, position=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [truncate, flip_bit, lambda p: p.unlink()], ids=["truncated", "bit", "missing"])
@pytest.mark.parametrize("file", ["shard_00001.npz", "manifest.json"])
def test_damage_is_refused_by_name(tmp_path, data, file, damage):
    write(tmp_path, data)
    damage(tmp_path / file)
    with pytest.raises(datasets.DatasetError, match=re.escape(file)) as error:
        datasets.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("position", np.linspace(0.02, 0.98, 13))
def test_every_bit_of_the_manifest_counts(tmp_path, data, position):
    write(tmp_path, data, note="x" * 40)
    flip_bit(tmp_path / "manifest.json", position)
    with pytest.raises(datasets.DatasetError, match=r"manifest\.json"):
        datasets.load(tmp_path)


def test_a_shard_read_without_its_checksum_is_still_never_half_read(tmp_path, data):
    write(tmp_path, data)
    truncate(tmp_path / "shard_00001.npz")
    with pytest.raises(datasets.DatasetError, match=r"shard_00001\.npz"):
        datasets.read_shard(tmp_path, 1)


def test_another_schema_is_refused(tmp_path, data, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(datasets, "SCHEMA_VERSION", 0)
        write(tmp_path, data)
    with pytest.raises(datasets.DatasetError, match=f"schema 0, this version reads {datasets.SCHEMA_VERSION}"):
        datasets.load(tmp_path)


def test_more_trajectories_than_stored_are_refused(tmp_path, data):
    write(tmp_path, data)
    with pytest.raises(ValueError, match="holds 3 trajectories, got num_trajectories=4"):
        datasets.load(tmp_path, 4)


# ------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_windows_are_the_slices(delay):
    data, horizon = jax.tree.map(jnp.asarray, numbered()), 4
    where = jnp.array([(0, 0), (2, STEPS - horizon), (1, 2)])
    got = datasets.windows(data, where, horizon, delay)
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
        return jax.jit(lambda key: datasets.sample_segments(key, data, 6000, 4))(jax.random.key(0))


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
        datasets.sample_segments(jax.random.key(0), data, 2, 13)


def test_the_longest_possible_window_is_drawn(data):
    segments = datasets.sample_segments(jax.random.key(0), jax.tree.map(jnp.asarray, data), 2, STEPS)
    assert not np.any(segments.start)


# ------------------------------------------------------------------------------------------------ statistics


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
    stats, same = (datasets.task_stats(d, spec, model, discount=0.5) for d in (masked, wild))

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
    stats = datasets.task_stats(flat, spec, WorldModelConfig(horizon=4), min_std=0.05)
    np.testing.assert_array_equal(stats.obs_std, np.full(4, 0.05, np.float32))
    assert np.abs(datasets.normalise_obs(jnp.asarray(flat.obs), stats)).max() < 1e-4


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
    rms = datasets.surprise(z, graphs, np.ones((40, 3)))
    np.testing.assert_allclose(rms, [0.6, 1.0, 0.0, 0.0], atol=0.02)
    z[:, :, 2, :] *= 50.0  # an absent agent's entries count for nothing
    graphs[:, 2, :] = graphs[:, :, 2] = 0.0
    rms = datasets.surprise(z, graphs, np.tile([1.0, 1.0, 0.0], (40, 1)))
    np.testing.assert_allclose(rms[:3], [0.6, 1.0, 0.0], atol=0.02)


def test_normalised_observations_have_mean_0_and_std_1(data):
    spec = datasets.spec_from_trajectories("line", data)
    stats = datasets.task_stats(data, spec, WorldModelConfig(horizon=4))
    normal = np.asarray(datasets.normalise_obs(jnp.asarray(data.obs), stats), np.float64).reshape(-1, 4)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-5)


def test_integer_tasks_have_one_bin_per_integer(data):
    whole = integer_valued(data)
    spec = datasets.spec_from_trajectories("line", whole, action_kind="integer")
    bins = datasets.action_bins(whole, spec, num_bins=99)
    assert bins.shape == (2, whole.action.max() - whole.action.min() + 1)
    np.testing.assert_array_equal(np.diff(bins), 1.0)
    assert bins[0, 0] == whole.action.min() and bins[0, -1] == whole.action.max()


def test_box_bins_cover_the_data_with_one_spare_at_each_end(data):
    spec = datasets.spec_from_trajectories("line", data)
    bins = datasets.action_bins(data, spec, num_bins=9)
    low, high = data.action.min((0, 1, 2)), data.action.max((0, 1, 2))
    assert (bins[:, 0] < low).all() and (bins[:, -1] > high).all()
    np.testing.assert_allclose(bins[:, 1], low, rtol=1e-5)  # float32 through symlog and back
    np.testing.assert_allclose(bins[:, -2], high, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ transitions


def test_transitions_are_the_rows_of_the_model_free_methods(data):
    spec = datasets.spec_from_trajectories("line", data)
    stats = datasets.task_stats(data, spec, WorldModelConfig(horizon=4))
    shown = np.ones((RUNS, STEPS), bool)
    shown[1, 5] = False
    arrays = jax.tree.map(jnp.asarray, data.replace(is_demonstration=shown))
    where = jnp.array([(0, 0), (1, 5)])
    rows = datasets.transitions(datasets.windows(arrays, where, 1, message_delay=1), stats)
    normal = np.asarray(datasets.normalise_obs(arrays.obs, stats))
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
    stats = datasets.task_stats(data, spec, WorldModelConfig(horizon=4))
    rows = datasets.sample_transitions(jax.random.key(0), jax.tree.map(jnp.asarray, data), stats, 10)
    assert rows.reward.shape == (8,)  # two whole joint steps of 4 agents
