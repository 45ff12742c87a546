"""Runs every interoperability check that this environment allows, against the real other parties.

    python -m tools.interop                    runs the checks and prints the table
    python -m tools.interop --publish          also writes results/interop.json and the table of docs/interop.md
    python -m tools.interop --publish -- tests/test_interop_jaxmarl.py -k QMIX        some of them only
    python -m tools.interop --render           writes the table of docs/interop.md from results/interop.json

The checks are the tests marked `interop(party=..., package=..., check=...)`. What needs a missing package, or a
checkout that NETWORLD_JAXMARL and NETWORLD_OGMARL do not name, is skipped with a printed reason. Publishing replaces
the rows of the checks that ran and keeps the others. docs/interop.md says how to make an environment for all of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.tables import markdown_table, replace_blocks
from networld_jax.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results/interop.json", ROOT / "docs/interop.md"


class Collector:
    """pytest plugin: one row per check that ran, one line per check that did not."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        marker = item.get_closest_marker("interop")
        if marker is not None and "party" in marker.kwargs:
            check = marker.kwargs["check"].format(**(item.callspec.params if hasattr(item, "callspec") else {}))
            if report.skipped:
                self.skipped.append(f"{marker.kwargs['party']}: {check}: {report.longrepr[2]}")
            elif report.when == "call" or report.failed:
                row = {
                    "party": marker.kwargs["party"],
                    "version": importlib.metadata.version(marker.kwargs["package"]),
                    "check": check,
                    "passed": report.passed,
                }
                self.rows.append(row | dict(item.user_properties))
        return report

    def pytest_collectreport(self, report):
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {report.longrepr[2]}")


def run_checks(selection: list[str]) -> Collector:
    """All checks, or those that pytest's arguments `selection` leave, in this process."""
    collector = Collector()
    arguments = ["-m", "interop", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    pytest.main([*arguments, *(selection or [str(ROOT / "tests")])], [collector])
    return collector


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the checks that ran now, and the old rows of those that did not, sorted by party and check."""
    name = lambda row: (row["party"], row["check"])  # noqa: E731
    rows = {name(row): row for row in old} | {name(row): row for row in new}
    return [rows[key] for key in sorted(rows)]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    result = {True: "passed", False: "FAILED"}
    cells = [(r["party"], r["version"], r["check"], result[r["passed"]], r.get("measured", "")) for r in rows]
    return markdown_table(("other party", "version", "what was run", "result", "measured"), cells)


def render(text: str, rows: list[dict[str, Any]]) -> str:
    """The page with its generated block replaced. Raises ValueError when it has none."""
    return replace_blocks(text, {"interop": table(rows)}, str(PAGE))


def main() -> None:
    """The command line; exit code 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="write results/interop.json and docs/interop.md")
    parser.add_argument("--render", action="store_true", help="only write docs/interop.md from results/interop.json")
    parser.add_argument("selection", nargs="*", help="arguments of pytest after --, to run some of the checks only")
    given = parser.parse_args()
    if given.render:
        write_atomically(PAGE, render(PAGE.read_text(), json.loads(RESULTS.read_text())).encode())
        return
    collector = run_checks(given.selection)
    print(table(merged([], collector.rows)))
    for line in dict.fromkeys(collector.skipped):
        print(f"skipped: {line}")
    if given.publish:
        rows = merged(json.loads(RESULTS.read_text()) if RESULTS.exists() else [], collector.rows)
        write_atomically(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
        write_atomically(PAGE, render(PAGE.read_text(), rows).encode())
    sys.exit(any(not row["passed"] for row in collector.rows))


if __name__ == "__main__":
    main()
