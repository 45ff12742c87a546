"""Finished runs as JSON lines: one complete, fsynced line per run, so a kill loses at most the run at hand."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from networld_jax.files import write_atomically

Row = dict[str, Any]

IDENTITY = (
    "task", "tier", "method", "seed", "preset", "split", "updates", "target_transitions", "target_topologies",
    "obs_set", "label", "settings",
)  # fmt: skip
"""Two rows that agree on these are the same run."""

FIELDS = (
    *IDENTITY, "pretrain", "tuning_trials", "message_bytes", "instance_rewards", "reward", "score", "metrics",
    "seconds", "device", "versions", "command",
)  # fmt: skip


def identity(row: Row) -> str:
    """What makes a row the same run as another."""
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


def read(path: Path) -> list[Row]:
    """Whole rows of a file, in order; a last line cut by a kill is left out, a file that is not there is empty.

    Raises ValueError, naming the line, when a line before the last is broken: that is no kill.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline: never finished
                break
            raise ValueError(f"{path}:{number} is no JSON object ({error}); repair or delete the line") from error
    return rows


def append(path: Path, row: Row) -> None:
    """Adds one row: a single write of a whole line, fsynced, under a lock that other queues on the file respect. What a
    kill left of a last line is cut off first."""
    missing = sorted(set(FIELDS) - row.keys())
    if missing:
        raise ValueError(f"a row needs the fields {missing}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(plain(row)) + "\n").encode()
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(_whole_size(file))
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _whole_size(file: Any) -> int:
    """Bytes up to the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def plain(value: Any) -> Any:
    """JSON values; numbers rounded to 7 digits, what float32 holds."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return float(f"{value:.7g}") if isinstance(value, float) else value


def merge(path: Path, rows: Sequence[Row]) -> int:
    """Adds rows to a published file; a row replaces the one with its identity. Returns how many there are now."""
    kept = {identity(row): row for row in [*read(path), *rows]}
    text = "".join(json.dumps(plain(row)) + "\n" for row in kept.values())
    write_atomically(Path(path), text.encode())
    return len(kept)


@contextlib.contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds the lock file while inside; yields False at once when another process holds it (unless `wait`). The system
    frees it when the holder dies."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
