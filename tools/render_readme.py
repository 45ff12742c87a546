"""Fills the generated blocks of README.md from results/*.json, so that no number is typed by hand.

python -m tools.render_readme            writes README.md
python -m tools.render_readme --check    fails when README.md is not up to date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from experiments.calibrate import ANCHORS
from experiments.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent


def demo_block() -> str:
    """The table that `make demo` prints."""
    demo = json.loads((ROOT / "results/demo.json").read_text())
    low, high = ANCHORS[demo["held_out"]]
    ordered = sorted(demo["policies"].items(), key=lambda item: -item[1]["reward"])
    rows = [
        (f"`{name}`", f"{r['reward']:.3f} ± {r['sem']:.3f}", f"{r['score']:.2f} ± {r['score_sem']:.2f}")
        for name, r in ordered
    ]
    first = ordered[0][1]
    intro = (
        f"Held-out task `{demo['held_out']}`, {first['instances']} unseen networks x {first['steps']} steps, seed "
        f"{demo['seed']}; ± is the standard error over networks; score 0 = {low}, 1 = `{high}`. "
        f"{demo['seconds']:.0f} s on {demo['device']}, jax {demo['versions']['jax']}: `{demo['command']}`.\n\n"
    )
    return intro + markdown_table(("policy", "reward", "score"), rows)


def calibration_block() -> str:
    """One line per task: random, best realisable rule, expert."""
    results = json.loads((ROOT / "results/calibration.json").read_text())
    rows = []
    for task, policies in results.items():
        low, high = ANCHORS[task]
        best = max(policies, key=lambda name: policies[name]["mean"])
        cells = [f"`{name}` {policies[name]['mean']:.3f} ± {policies[name]['sem']:.3f}" for name in (low, high, best)]
        first = policies[low]
        rows.append((f"`{task}`", f"{first['instances']} x {first['steps']}", *cells))
    header = ("task", "instances x steps", "random", "best rule an agent could follow", "best of all")
    return markdown_table(header, rows)


BLOCKS = {"demo": demo_block, "calibration": calibration_block}


def render(text: str) -> str:
    """README text with every generated block replaced."""
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no block <!-- {name}:begin --> ... <!-- {name}:end -->")
        text = pattern.sub(lambda m, b=block: m.group(1) + b() + m.group(2), text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    wanted = render(readme.read_text())
    if "--check" not in sys.argv:
        readme.write_text(wanted)
    elif wanted != readme.read_text():
        sys.exit("README.md is not what results/ say: run python -m tools.render_readme")
