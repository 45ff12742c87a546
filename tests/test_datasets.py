"""Offline data: arrays are validated, files are whole or refused."""

import re

import jax
import numpy as np
import pytest

from networld_jax import datasets
from networld_jax.types import Trajectories
from tests import tiny

RUNS, STEPS, N = 3, 12, 4


@pytest.fixture(scope="module")
def data():
    return tiny.linear_task(RUNS, STEPS)


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


def test_chop_keeps_every_step_of_whole_pieces_in_order(data):
    runs, length = data.reward.shape[:2]
    pieces = datasets.chop(data, 4)
    whole = length // 4
    assert pieces.reward.shape[:2] == (runs * whole, 4) and pieces.obs.shape[1] == 5
    for run in range(runs):
        parts = [pieces.reward[piece * runs + run] for piece in range(whole)]
        np.testing.assert_array_equal(np.concatenate(parts), data.reward[run, : 4 * whole])
        np.testing.assert_array_equal(pieces.obs[(whole - 1) * runs + run, -1], data.obs[run, 4 * whole])
        np.testing.assert_array_equal(pieces.adjacency[run], data.adjacency[run])
    jax.tree.map(np.testing.assert_array_equal, datasets.chop(data, length), data)
    with pytest.raises(ValueError, match="num_steps must lie in"):
        datasets.chop(data, length + 1)


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


@pytest.mark.parametrize("make", [lambda d: d, tiny.integer_valued], ids=["box", "integer"])
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
    datasets.write_shard(tmp_path, 0, jax.tree.map(lambda x: x[0], tiny.integer_valued(data)))
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
