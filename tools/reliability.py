"""results/reliability.json: what was injected, what survived it, what was lost; written by chaos, fuzz, soak and the
tests of bad input with --publish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from networld_jax.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results/reliability.json"


def row(stage: str, fault: str, injected: int, survived: int) -> dict[str, Any]:
    """One line of the table."""
    return {"stage": stage, "fault": fault, "injected": injected, "survived": survived, "lost": injected - survived}


def publish(rows: Sequence[dict[str, Any]]) -> None:
    """Replaces the rows of the same stage and fault, then the table of docs/reliability.md."""
    from tools import render_readme

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    new = {(r["stage"], r["fault"]): r for r in [*known, *rows]}
    write_atomically(RESULTS, json.dumps([new[key] for key in sorted(new)], indent=1).encode())
    render_readme.write_all()


def report(rows: Sequence[dict[str, Any]]) -> int:
    """Prints the rows; returns the exit code: 1 when anything was lost."""
    for r in rows:
        print(f"{r['stage']:<24} {r['fault']:<28} injected {r['injected']:>7}  survived {r['survived']:>7}")
    return int(any(r["lost"] for r in rows))


def finish(rows: Sequence[dict[str, Any]], is_published: bool) -> int:
    """How every tool ends: prints the rows, publishes them if asked to, returns the exit code."""
    code = report(rows)
    if is_published:
        publish(rows)
    return code
