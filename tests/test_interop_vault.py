"""A dataset as a Vault and back; OG-MARL's own loader reads it; Vaults of others.

OG-MARL is not on the package index: NETWORLD_OGMARL names a checkout of github.com/instadeepai/og-marl, whose
replay_buffers.py is loaded as it stands. Without it the documented reading path (Vault.read) is tested only.
"""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from networld_jax import datasets
from networld_jax.interop import vault
from tests import tiny

flashbax = pytest.importorskip("flashbax", reason="needs flashbax: pip install 'networld-jax[vault]'")

from flashbax.buffers.trajectory_buffer import TrajectoryBufferState  # noqa: E402
from flashbax.vault import Vault  # noqa: E402

CHECKOUT = os.environ.get("NETWORLD_OGMARL", "")
party = lambda check: pytest.mark.interop(party="OG-MARL (Flashbax Vault)", package="flashbax", check=check)  # noqa: E731
pytestmark = [
    pytest.mark.interop,
    # What flashbax and tensorstore say of their own doing.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


def whole_numbers():
    """Integer actions 0..9 of four agents of which one is absent, with disturbed steps."""
    rng = np.random.default_rng(1)
    mask = np.ones((3, 4), np.float32)
    mask[:, 3] = 0
    graph = tiny.path_graph(4) * mask[0][:, None] * mask[0][None, :]
    action = rng.integers(0, 8, size=(3, 6, 4, 1)) * mask[:, None, :, None]
    obs, reward = rng.normal(size=(3, 7, 4, 5)), rng.normal(size=(3, 6, 4)) * mask[:, None, :]
    return datasets.from_arrays(obs, action, reward, graph, mask, rng.random((3, 6)) < 0.7)


def stored(directory, data, **manifest):
    shards = [
        {"file": f"{i}", "sha256": datasets.write_shard(directory, i, jax.tree.map(lambda x: x[i], data))}  # noqa: B023
        for i in range(len(data.reward))
    ]
    datasets.write_manifest(directory, {"shards": shards, "request": {"task": "line"}} | manifest)
    return directory


KINDS = {
    "box": (lambda: tiny.linear_task(3, 6), {"action_kind": "box"}),
    "integer": (whole_numbers, {"action_kind": "integer", "action_low": [0.0], "action_high": [9.0]}),
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def exported(request, tmp_path_factory):
    """(trajectories, dataset folder, Vault)."""
    make, manifest = KINDS[request.param]
    data, folder = make(), tmp_path_factory.mktemp(request.param)
    stored(folder / "data", data, **manifest)
    path = vault.export_vault(folder / "data", folder / "vaults" / "networld" / "line" / "default.vlt" / "Mixed")
    return data, folder, path


@party("export, import: the same bytes, {exported}")
def test_round_trip(exported, tmp_path):
    data, folder, path = exported
    manifest = vault.import_vault(path, tmp_path / "back")
    for shard in sorted((folder / "data").glob("shard_*")):
        assert (tmp_path / "back" / shard.name).read_bytes() == shard.read_bytes()
    back, _ = datasets.load(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, back, data)
    assert manifest["request"] == {"task": "line"} and manifest["imported_from"] == str(path)
    with pytest.raises(datasets.DatasetError, match="holds a dataset already"):
        vault.import_vault(path, tmp_path / "back")
    with pytest.raises(vault.VaultError, match="exists already"):
        vault.export_vault(folder / "data", path)


@party("Vault.read gives the documented fields, {exported}")
def test_fields(exported):
    data, _, path = exported
    experience = Vault(path.parent.name, rel_dir=str(path.parent.parent), vault_uid=path.name).read().experience
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype.name), experience)
    flag = ((1, 18, 4), "bool")
    is_discrete = "legals" in experience["infos"]
    num_obs = data.obs.shape[-1]
    assert shapes == {
        "observations": ((1, 18, 4, num_obs), "float32"),
        "actions": ((1, 18, 4), "int32") if is_discrete else ((1, 18, 4, 2), "float32"),
        "rewards": ((1, 18, 4), "float32"),
        "terminals": flag,
        "truncations": flag,
        "infos": {"state": ((1, 18, 4 * num_obs), "float32")}
        | ({"legals": ((1, 18, 4, 10), "bool")} if is_discrete else {}),
    }
    ends = np.asarray(experience["truncations"])[0, :, 0]
    assert np.flatnonzero(ends).tolist() == [5, 11, 17] and not np.asarray(experience["terminals"]).any()
    np.testing.assert_array_equal(experience["observations"][0, 6], data.obs[1, 0])
    if is_discrete:
        assert np.asarray(experience["infos"]["legals"])[0, 0].sum(-1).tolist() == [10, 10, 10, 1]


@pytest.mark.skipif(not CHECKOUT, reason="set NETWORLD_OGMARL to a checkout of github.com/instadeepai/og-marl")
@party("OG-MARL's own FlashbaxReplayBuffer.populate_from_vault samples it, {exported}")
def test_their_loader(exported, monkeypatch):
    data, folder, _ = exported
    pytest.importorskip("tree", reason="OG-MARL's loader needs dm-tree")
    spec = importlib.util.spec_from_file_location("og_replay", Path(CHECKOUT) / "og_marl" / "replay_buffers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(folder)
    with jax.debug_key_reuse(False), jax.numpy_rank_promotion("allow"):  # our strictness is not theirs
        buffer = module.FlashbaxReplayBuffer(sequence_length=3, batch_size=4)
        assert buffer.populate_from_vault("networld", "line", "default", "Mixed")
        batch = buffer.sample()
    assert batch["observations"].shape == (4, 3, 4, data.obs.shape[-1])
    rows = np.asarray(data.obs)[:, :-1].reshape(-1, 4, data.obs.shape[-1])
    for sequence in np.asarray(batch["observations"]):
        start = np.flatnonzero((rows == sequence[0]).all((1, 2)))
        np.testing.assert_array_equal(rows[start[0] : start[0] + 3], sequence)


@pytest.mark.skipif(not CHECKOUT, reason="set NETWORLD_OGMARL to a checkout of github.com/instadeepai/og-marl")
@party("statistics agree with OG-MARL's calculate_returns, {exported}")
def test_their_statistics(exported):
    data, _, path = exported
    source = (Path(CHECKOUT) / "og_marl" / "vault_utils" / "analyse_vault.py").read_text()
    # The module imports plotting packages for its other functions; only this function is run, as it stands.
    code = source[source.index("def calculate_returns(") : source.index("def get_saco(")]
    scope = {"jax": jax, "jnp": jax.numpy, "Dict": dict, "Array": jax.Array}
    exec(compile(code, "analyse_vault.py", "exec"), scope)
    experience = Vault(path.parent.name, rel_dir=str(path.parent.parent), vault_uid=path.name).read().experience
    returns = np.asarray(scope["calculate_returns"](experience, done_flags=("terminals", "truncations")))
    np.testing.assert_allclose(returns, data.reward[:, :, 0].sum(1), rtol=1e-5)
    written = vault.read_facts(path)["statistics"]
    assert (written["episodes"], written["transitions"]) == (3, 18)
    assert written["episode_return"]["agent_0"]["mean"] == pytest.approx(returns.mean(), rel=1e-5)
    assert written["episode_return"]["agent_0"]["std"] == pytest.approx(returns.std(), rel=1e-4)


@party("a Vault of others becomes a dataset")
def test_vaults_of_others(tmp_path):
    """Episodes of 4, 3 and 5 rows, the last one cut; discrete actions; one terminal."""
    rng, length = np.random.default_rng(0), 12
    ends = np.zeros((1, length, 2), bool)
    ends[0, [3, 6]] = True
    experience = {
        "observations": rng.normal(size=(1, length, 2, 3)).astype(np.float32),
        "actions": rng.integers(0, 5, size=(1, length, 2)).astype(np.int32),
        "rewards": rng.normal(size=(1, length, 2)).astype(np.float32),
        "terminals": ends & (np.arange(length) == 3)[None, :, None],
        "truncations": ends & (np.arange(length) == 6)[None, :, None],
        "infos": {"state": rng.normal(size=(1, length, 6)).astype(np.float32)},
    }
    store = Vault("other.vlt", experience, str(tmp_path), "Good")
    state = TrajectoryBufferState(experience=experience, current_index=np.int32(length), is_full=np.bool_(True))
    store.write(state, source_interval=(0, length))
    path, graph = tmp_path / "other.vlt" / "Good", 1 - np.eye(2)
    with pytest.raises(vault.VaultError, match="holds no graph: pass adjacency"):
        vault.read_vault(path)
    with pytest.raises(vault.VaultError, match="episodes of 2 to 4 steps; num_steps cuts them"):
        vault.read_vault(path, graph)
    data, facts = vault.read_vault(path, graph, num_steps=2)
    assert data.obs.shape == (4, 3, 2, 3) and facts["action_kind"] == "integer"  # from rows 0, 4, 7 and 9
    for run, row in enumerate((0, 4, 7, 9)):
        np.testing.assert_array_equal(data.obs[run], experience["observations"][0, row : row + 3])
        np.testing.assert_array_equal(data.action[run, ..., 0], experience["actions"][0, row : row + 2])
    with pytest.raises(vault.VaultError, match="no episode of 9 steps"):
        vault.read_vault(path, graph, num_steps=9)
    with pytest.raises(vault.VaultError, match="is no Vault"):
        vault.read_vault(tmp_path / "nothing.vlt" / "x")


def test_an_altered_side_file_is_refused(exported, tmp_path):
    import shutil

    _, _, path = exported
    copy = tmp_path / "copy.vlt" / path.name
    shutil.copytree(path, copy)
    side = copy / vault.SIDE_ARRAYS
    side.write_bytes(side.read_bytes()[:-7])
    with pytest.raises(vault.VaultError, match="does not match its checksum"):
        vault.read_vault(copy)
