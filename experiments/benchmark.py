"""Speed, measured: every figure with its baseline of the same run, the device, and the sizes.

    python -m experiments.benchmark --suite=sampler --config=experiments/configs/benchmark.py --workdir=runs/benchmark
    python -m experiments.benchmark --suite=env ... --publish        also into results/benchmark.json

Suites: see `SUITES`. A suite replaces its own rows of benchmark.json and leaves the others, so they can be run one by
one, on different days. `python -m tools.render_performance` turns the file into the tables of docs/performance.md.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from experiments import measure, runtime
from experiments.tables import print_table
from networld_jax.files import write_atomically

SUITES = ("sampler", "env", "train", "closed_loop", "scaling", "memory")
"""Each is a module of `experiments.suites` with a function run(config, workdir) -> rows."""

FIELDS = (
    "suite", "name", "baseline", "ratio", "value", "unit", "share_of_peak", "device", "dtype", "sizes", "return_delta",
    "command",
)  # fmt: skip
"""What every row has; a suite may add more (p95, compile_s, memory_bytes, ...)."""

Row = dict[str, Any]
Suite = Callable[[ml_collections.ConfigDict, Path], list[Row]]


def row(
    name: str,
    value: float,
    unit: str,
    *,
    baseline: str | None = None,
    ratio: float | None = None,
    share_of_peak: float | None = None,
    dtype: str = "float32",
    return_delta: float | None = None,
    sizes: dict[str, Any] | None = None,
    **more: Any,
) -> Row:
    """One figure. `ratio` is how many times better than `baseline`, a row of the same run; None for a baseline itself.

    `return_delta` is the closed-loop return against the baseline's, in units of the random-expert span.
    """
    fields = {
        "name": name,
        "baseline": baseline,
        "ratio": ratio,
        "value": value,
        "unit": unit,
        "share_of_peak": share_of_peak,
        "dtype": dtype,
        "sizes": sizes or {},
        "return_delta": return_delta,
    }
    return fields | more


def load_suite(name: str) -> Suite:
    """The run function of a suite. Raises UserError for one that is not there."""
    try:
        return importlib.import_module(f"experiments.suites.{name}").run
    except ModuleNotFoundError as error:
        if error.name != f"experiments.suites.{name}":
            raise
        raise runtime.UserError(f"suite {name!r} is not part of this installation; choose from {SUITES}") from error


def merge(old: Sequence[Row], new: Sequence[Row], suite: str) -> list[Row]:
    """`old` with the rows of one suite replaced, suites in their usual order."""
    rows = [r for r in old if r["suite"] != suite] + list(new)
    return sorted(rows, key=lambda r: SUITES.index(r["suite"]))  # stable: a suite's rows keep their order


def read_rows(path: Path) -> list[Row]:
    """Rows of a benchmark.json, none if there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def run(config: ml_collections.ConfigDict, workdir: Path, suite: str) -> list[Row]:
    """Runs one suite; returns its rows, which are also in <workdir>/benchmark.json."""
    facts = {
        "suite": suite,
        "cores": len(os.sched_getaffinity(0)),
        **runtime.provenance(),
    }
    rows = load_suite(suite)(config, workdir)
    facts["process_peak_memory_bytes"] = measure.peak_memory_bytes()
    rows = [facts | r for r in rows]
    for r in rows:
        if missing := set(FIELDS) - set(r):
            raise ValueError(f"row {r.get('name')!r} of suite {suite!r} lacks {sorted(missing)}")
    path = Path(workdir) / "benchmark.json"
    write_atomically(path, json.dumps(merge(read_rows(path), rows, suite), indent=1).encode())
    show(rows)
    return rows


def show(rows: Sequence[Row]) -> None:
    """The rows as a table."""
    table = [
        (
            r["name"],
            f"{r['value']:.4g} {r['unit']}",
            "" if r["ratio"] is None else f"{r['ratio']:.3g} x {r['baseline']}",
            "" if r["share_of_peak"] is None else f"{100 * r['share_of_peak']:.0f} %",
            "" if r["return_delta"] is None else f"{r['return_delta']:+.3f}",
        )
        for r in rows
    ]
    header = ("name", "value", "ratio", "of peak", "return")
    print_table(runtime.console, f"{rows[0]['suite']} on {rows[0]['device']}", header, table)


def publish(config: ml_collections.ConfigDict, workdir: Path, suite: str) -> None:
    """The suite's rows into results/benchmark.json."""
    del config
    rows = [r for r in read_rows(Path(workdir) / "benchmark.json") if r["suite"] == suite]
    path = Path("results/benchmark.json")
    write_atomically(path, json.dumps(merge(read_rows(path), rows, suite), indent=1).encode())


if __name__ == "__main__":
    suite_flag = flags.DEFINE_enum("suite", None, list(SUITES), "Which suite to run.")
    flags.mark_flag_as_required("suite")
    runtime.main(
        lambda config, workdir: run(config, workdir, suite_flag.value),
        lambda config, workdir: publish(config, workdir, suite_flag.value),
    )
