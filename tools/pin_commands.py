"""Keeps the commands of results/runs.jsonl true after the experiments' settings have changed.

python -m tools.pin_commands            rewrites commands that would make another row today; results stay as they are
"""

from __future__ import annotations

from pathlib import Path

from experiments import commands, rows

FILE = Path(__file__).resolve().parent.parent / "results" / "runs.jsonl"


def pin(path: Path) -> int:
    """Pins every row's command and returns how many changed. Raises ValueError, and writes nothing, for a row that no
    command makes any more."""
    found = rows.read(path)
    pinned = [row | {"command": commands.pinned(row)} for row in found]
    rows.merge(path, pinned)
    return sum(a["command"] != b["command"] for a, b in zip(found, pinned, strict=True))


if __name__ == "__main__":
    print(f"{pin(FILE)} commands pinned")
