"""Full disk, read-only folder, missing permission, a file in the way: one clear line, and nothing that was whole is
gone."""

import contextlib
import os
import resource
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from experiments import runtime, train_loop
from networld_jax import checkpoints, files, training

NOBODY = 65534


@contextlib.contextmanager
def largest_file(num_bytes):
    """Writing beyond so many bytes fails, in Python as in the C++ that writes checkpoints: what a full disk looks like
    to both (EFBIG in place of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def without_rights():
    """As a user who may not write where root may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readonly():
    """A folder that `without_rights` may read but not write."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        yield Path(folder)
        os.chmod(folder, 0o755)


def state_of(step, size=4096):
    params = {"a": jnp.full((size,), step, jnp.float32)}
    return training.init_train_state(params, training.make_optimiser(1e-3)).replace(step=jnp.int32(step))


def line_of(error):
    line = runtime.one_line(error)
    assert "\n" not in line and "Errno" not in line
    return line


def test_a_full_disk_while_a_file_is_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_signed(path, {"a": 1})
    with largest_file(100), pytest.raises(OSError) as error:
        files.write_signed(path, {"a": "x" * 1000})
    assert str(path) in line_of(error.value) and "File too large" in line_of(error.value)
    assert files.read_signed(path) == {"a": 1}


def test_a_full_disk_while_a_row_is_written(tmp_path):
    log = runtime.MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"loss": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with largest_file(len(whole) + 10), pytest.raises(OSError) as error:
        log.write(2, {"loss": 2.0})
    assert "metrics.jsonl" in line_of(error.value)
    again = runtime.MetricsLog(tmp_path / "metrics.jsonl", first_step=2)  # the torn row is dropped
    again.write(2, {"loss": 2.0})
    assert [row["loss"] for row in runtime.read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0]


@pytest.mark.filterwarnings("ignore")  # Orbax complains in several ways when its writes fail
def test_a_full_disk_while_a_checkpoint_is_written(tmp_path):
    folder = tmp_path / "checkpoints"
    with contextlib.closing(checkpoints.Checkpoints(folder)) as store:
        store.save(1, state_of(1))
        with largest_file(1000), pytest.raises(OSError) as error:
            store.save(2, state_of(2))
        assert str(folder / "2") in line_of(error.value) and "the one before is kept" in line_of(error.value)
    told = []
    with contextlib.closing(checkpoints.Checkpoints(folder, report_fn=told.append)) as store:
        step, restored = store.restore_latest(state_of(0))
        assert step == 1 and float(restored.params["a"][0]) == 1.0
        store.save(2, state_of(2))  # there is room again
        assert store.restore_latest(state_of(0))[0] == 2


def test_a_folder_without_write_permission(readonly):
    with without_rights(), pytest.raises(OSError) as error, runtime.owned(readonly / "run"):
        pass
    assert str(readonly / "run") in line_of(error.value) and "Permission denied" in line_of(error.value)
    with without_rights(), pytest.raises(OSError) as error:
        files.write_atomically(readonly / "a", b"")
    assert str(readonly / "a") in line_of(error.value)


def test_data_that_may_not_be_read(readonly):
    path = readonly / "secret.json"
    os.chmod(readonly, 0o755)
    files.write_signed(path, {})
    os.chmod(path, 0)
    with without_rights(), pytest.raises(PermissionError) as error:
        files.read_signed(path)
    assert "Permission denied" in line_of(error.value) and str(path) in line_of(error.value)
    os.chmod(path, 0o644)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "runs").write_bytes(b"precious")
    config = ml_collections.ConfigDict(dict(num_updates=1, updates_per_dispatch=1, dispatches_per_checkpoint=1))
    with pytest.raises(OSError) as error:
        train_loop.train("x", tmp_path / "runs", state_of(0), jax.jit(lambda *a: a), None, config, 0, {})
    assert str(tmp_path / "runs") in line_of(error.value)
    assert (tmp_path / "runs").read_bytes() == b"precious"
