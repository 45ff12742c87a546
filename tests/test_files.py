"""Files on disk: whole or not there; a flipped bit is noticed; nothing is unpickled."""

import ast
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from networld_jax import datasets, files

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = {"name": "x\u00e9", "rate": 1e-05, "sizes": (1, 2), "nothing": None}
ROWS = [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3, 4)]


def flipped(content: bytes, bit: int) -> bytes:
    position, mask = bit // 8, 1 << bit % 8
    return content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]


def test_signed_documents_come_back(tmp_path):
    files.write_signed(tmp_path / "a.json", DOCUMENT)
    assert files.read_signed(tmp_path / "a.json") == DOCUMENT | {"sizes": [1, 2]}
    with pytest.raises(ValueError, match="name of the checksum"):
        files.write_signed(tmp_path / "a.json", {"sha256": 1})
    with pytest.raises(FileNotFoundError):
        files.read_signed(tmp_path / "b.json")


def test_every_single_bit_of_a_signed_document_counts(tmp_path):
    """Also those that leave the parsed content as it was, such as 1e-05 and 1E-05."""
    path = tmp_path / "a.json"
    files.write_signed(path, DOCUMENT)
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(files.DamagedFileError, match=r"a\.json"):
            files.read_signed(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(files.DamagedFileError, match=r"a\.json"):
            files.read_signed(path)


@pytest.fixture
def log(tmp_path):
    made = files.SealedLog(tmp_path / "log.jsonl")
    for row in ROWS:
        made.append(row)
    return tmp_path / "log.jsonl"


def test_sealed_rows_come_back(log):
    assert files.read_sealed(log) == (ROWS, None)
    assert files.read_sealed(log.with_name("none")) == ([], None)
    assert json.loads(log.read_text().splitlines()[0])["loss"] == 1.0  # any JSON reader reads it


def test_every_single_bit_of_a_log_counts(log):
    content = log.read_bytes()
    for bit in range(8 * len(content)):
        log.write_bytes(flipped(content, bit))
        rows, problem = files.read_sealed(log)
        assert problem and str(log) in problem and rows == ROWS[: len(rows)]


@pytest.mark.parametrize(("order", "intact"), [((1, 2, 3), 0), ((0, 2, 3), 1), ((0, 1, 1, 2), 2), ((0, 2, 1, 3), 1)])
def test_lines_taken_out_repeated_or_swapped_are_noticed(log, order, intact):
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[i] for i in order))
    rows, problem = files.read_sealed(log)
    assert rows == ROWS[:intact] and f"line {intact + 1}" in problem


def test_a_log_opened_again_goes_on_with_the_same_bytes(log):
    content = log.read_bytes()
    log.write_bytes(content + b'{"step": 5, "lo')  # cut by a kill
    again = files.SealedLog(log, keep_fn=lambda row: row["step"] < 3)
    assert again.rows == ROWS[:2]
    for row in ROWS[2:]:
        again.append(row)
    assert log.read_bytes() == content


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_atomically(path, b"before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        files.write_atomically(path, b"after")
    assert error.value.filename == str(path) and error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ------------------------------------------------------------------------------------------------ no pickle

PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SOURCES = sorted(path for folder in ("src", "envs", "experiments", "tools") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_unpickles(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not PICKLERS & {alias.name.split(".")[0] for alias in node.names}, f"{path}:{node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLERS, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("allow_pickle") == "False", f"{path}:{node.lineno}: np.load without allow_pickle=False"


def test_a_poisoned_shard_runs_nothing(tmp_path):
    class Poison:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    fields = {name: np.array([Poison()], object) for name in datasets.FIELDS}
    np.savez(datasets.shard_path(tmp_path, 0), **fields)
    with pytest.raises(datasets.DatasetError, match=r"shard_00000\.npz"):
        datasets.read_shard(tmp_path, 0)
    assert not (tmp_path / "executed").exists()
