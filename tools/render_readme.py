"""Fills the generated blocks of README.md and docs/ from results/*.json, so that no number is typed by hand.

python -m tools.render_readme            writes the files
python -m tools.render_readme --check    fails when one of them is not up to date
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

from experiments import evidence, evidence_tables, rows
from experiments.calibrate import ANCHORS
from experiments.configs import evidence as configuration
from experiments.tables import markdown_table, replace_blocks
from tools import render_performance, render_results

ROOT = Path(__file__).resolve().parent.parent


def demo_block() -> str:
    """The table that `make demo` prints."""
    demo = json.loads((ROOT / "results/demo.json").read_text())
    low, high = ANCHORS[demo["held_out"]]
    ordered = sorted(demo["policies"].items(), key=lambda item: -item[1]["reward"])
    lines = [
        (f"`{name}`", f"{r['reward']:.3f} ± {r['sem']:.3f}", f"{r['score']:.2f} ± {r['score_sem']:.2f}")
        for name, r in ordered
    ]
    first = ordered[0][1]
    intro = (
        f"Held-out task `{demo['held_out']}`, {first['instances']} unseen networks x {first['steps']} steps, seed "
        f"{demo['seed']}; ± is the standard error over networks; score 0 = {low}, 1 = `{high}`. "
        f"{demo['seconds']:.0f} s on {demo['device']}, jax {demo['versions']['jax']}: `{demo['command']}`.\n\n"
    )
    return intro + markdown_table(("policy", "reward", "score"), lines)


def calibration_block() -> str:
    """One line per task: random, best realisable rule, best of all."""
    results = json.loads((ROOT / "results/calibration.json").read_text())
    lines = []
    for task, (low, high) in ANCHORS.items():  # not the variants with changed parameters
        policies = results[task]
        best = max(policies, key=lambda name: policies[name]["mean"])
        cells = [f"`{name}` {policies[name]['mean']:.3f} ± {policies[name]['sem']:.3f}" for name in (low, high, best)]
        first = policies[low]
        lines.append((f"`{task}`", f"{first['instances']} x {first['steps']}", *cells))
    header = ("task", "instances x steps", "random", "best rule an agent could follow", "best of all")
    return markdown_table(header, lines)


def reliability_block() -> str:
    """Faults injected, survived, lost, by stage."""
    counts = json.loads((ROOT / "results/reliability.json").read_text())
    table = [(r["stage"], r["fault"], f"{r['injected']:,}", f"{r['survived']:,}", f"{r['lost']:,}") for r in counts]
    return markdown_table(("stage or file", "fault", "injected", "survived", "lost"), table)


@functools.cache
def published() -> tuple[list[rows.Row], tuple[str, ...]]:
    """(rows of the evidence, its tasks)."""
    found = evidence.select(rows.read(ROOT / "results/runs.jsonl"), preset="small")
    return found, tuple(configuration.get_config().tasks)


def evidence_block() -> str:
    """NetWorld beside the best rule and the best other learned method, per task and tier."""
    found, tasks = published()
    table = evidence_tables.summary_table(found, tasks, render_results.TIERS, configuration.HEADLINE)
    return f"Mean reward on unseen networks [95 % interval]. {render_results.provenance(found, 'small')}\n{table}"


def tuned_block() -> str:
    """NetWorld and its rivals after the same search, on mixed data."""
    found, tasks = published()
    config = configuration.get_config()
    methods = tuple(config.groups.tuned.methods)
    return evidence_tables.tuned_summary_table(found, config, tasks, "mixed", methods, configuration.HEADLINE)


def ensembles_block() -> str:
    """Four policies acting as one, ours and the rivals', on mixed data."""
    return evidence_tables.ensemble_table(*published(), "mixed", configuration.HEADLINE, configuration.IN_FOURS)


BLOCKS = {
    "demo": demo_block,
    "evidence": evidence_block,
    "tuned": tuned_block,
    "ensembles": ensembles_block,
    "calibration": calibration_block,
    "performance": render_performance.headlines_block,
}
FILES = {"README.md": BLOCKS, "docs/reliability.md": {"reliability": reliability_block}}


def render(text: str, blocks: dict[str, Callable[[], str]] = BLOCKS, name: str = "README.md") -> str:
    """The text of a file with every generated block replaced."""
    return replace_blocks(text, {block_name: block() for block_name, block in blocks.items()}, name)


def write_all(check: bool = False) -> None:
    """Writes every file with generated blocks; with `check` exits with an error where one is not up to date."""
    for name, blocks in FILES.items():
        path = ROOT / name
        wanted = render(path.read_text(), blocks, name)
        if not check:
            path.write_text(wanted)
        elif wanted != path.read_text():
            sys.exit(f"{name} is not what results/ say: run python -m tools.render_readme")


if __name__ == "__main__":
    write_all(check="--check" in sys.argv)
