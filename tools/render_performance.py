"""Fills the generated blocks of docs/performance.md from results/benchmark.json and draws its plots.

python -m tools.render_performance            writes docs/performance.md and docs/figures/performance_*.png
python -m tools.render_performance --check    fails when docs/performance.md is not up to date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cost_model
from experiments.benchmark import SUITES
from experiments.suites import scaling
from experiments.tables import markdown_table, replace_blocks

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/performance.md"

Row = dict[str, Any]


def read() -> list[Row]:
    """Published rows and, beside them, none if nothing has been published."""
    path = ROOT / "results/benchmark.json"
    return json.loads(path.read_text()) if path.exists() else []


def number(value: float | None, form: str = ".3g", factor: float = 1.0, unit: str = "") -> str:
    """A cell; empty for None."""
    if value is None:
        return ""
    value *= factor
    return (f"{value:,.0f}" if form == ".3g" and abs(value) >= 1000 else f"{value:{form}}") + unit


def suite_block(rows: Sequence[Row], suite: str) -> str:
    """The table of one suite, headed by device, versions and command."""
    own = [r for r in rows if r["suite"] == suite]
    if not own:
        return f"Not measured yet: `python -m experiments.benchmark --suite={suite}` fills this table.\n"
    first = own[0]
    versions = first["versions"]
    intro = (
        f"{first['device']}, {first['cores']} core(s) used, jax {versions['jax']}, Python {versions['python']}: "
        f"`{first['command']}`; the process held at most {first['process_peak_memory_bytes'] / 2**30:.1f} GiB.\n\n"
    )
    header = ["", "value", "ratio", "to", "share of peak", "compile", "memory"]
    cells = [
        [
            r["name"],
            f"{number(r['value'])} {r['unit']}",
            number(r["ratio"], unit=" x"),
            r["baseline"] or "",
            number(r["share_of_peak"], ".0f", 100, " %"),
            number(r.get("compile_s"), ".1f", 1, " s"),
            number(r.get("memory_bytes"), ".3g", 2**-20, " MiB"),
        ]
        for r in own
    ]
    if any(r["return_delta"] is not None for r in own):
        header.append("return against the baseline / span")
        cells = [c + [number(r["return_delta"], "+.3f")] for c, r in zip(cells, own, strict=True)]
    text = intro + markdown_table(header, cells)
    shares = [(r["name"], r["share_of_time"]) for r in own if r.get("share_of_time")]
    if shares:
        parts = list(shares[0][1])
        lines = [[name, *(f"{100 * share[part]:.0f} %" for part in parts)] for name, share in shares]
        text += "\n" + markdown_table(["time of a step goes to", *parts], lines)
    return text


def distillation_block() -> str:
    """Teacher and students in closed loop."""
    path = ROOT / "results/distillation.json"
    if not path.exists():
        return "Not measured yet: `python -m experiments.distill --publish` fills this table.\n"
    result = json.loads(path.read_text())
    first = result["policies"]["teacher"]
    task, model = result["held_out"], result["model"]
    intro = (
        f"Task `{task}`, teacher: the guided planner of the {model} model, {first['instances']} unseen "
        f"networks x {result['steps']} steps, seed {result['seed']}; differences are paired and in units of the "
        "random-expert span. "
        f"`{result['command']}`\n\n"
    )
    lines = [
        [
            f"`{name}`",
            f"{r['reward']:.3f} ± {r['sem']:.3f}",
            f"{r['return_delta']:+.3f} ± {r['return_delta_sem']:.3f}",
            f"{r['lower_bound']:+.3f}",
            "" if name in ("teacher", "random", "expert") else ("yes" if r["non_inferior"] else "no"),
        ]
        for name, r in result["policies"].items()
    ]
    header = ["policy", "reward", "against teacher", "one-sided 95 % bound", "as good (2 % margin)"]
    return intro + markdown_table(header, lines)


HEADLINES = {  # suite -> names of the rows that the README shows
    "sampler": ("ddpm, batch 19", "ddim, batch 19", "one evaluation (chain student), batch 19", "ddpm, batch 256"),
    "env": ("cbf, 64 at once", "rb, 256 at once", "ns, 1 at once"),
    "train": ("step, batch 32",),
    "closed_loop": ("rb, guided planner", "one decision on rb, guided planner", "one decision on rb, row student"),
    "scaling": ("decision of 10000 agents",),
}


def headlines_block() -> str:
    """The README's table: a few rows of every published suite."""
    published = {(r["suite"], r["name"]): r for r in read()}
    chosen = [
        published[suite, name] for suite, names in HEADLINES.items() for name in names if (suite, name) in published
    ]
    lines = [
        [
            r["suite"],
            r["name"],
            f"{number(r['value'])} {r['unit']}",
            number(r["ratio"], unit=" x"),
            r["baseline"] or "",
            number(r["share_of_peak"], ".0f", 100, " %"),
        ]
        for r in chosen
    ]
    measured_on: dict[str, list[str]] = {}
    for r in chosen:
        suites = measured_on.setdefault(r["device"], [])
        suites += [r["suite"]] * (r["suite"] not in suites)
    devices = "; ".join(f"{device}: {', '.join(suites)}" for device, suites in measured_on.items())
    return f"{devices}.\n\n" + markdown_table(["suite", "", "value", "ratio", "to", "share of matmul peak"], lines)


def blocks(rows: Sequence[Row]) -> dict[str, str]:
    """Block name -> text."""
    suites = {suite: suite_block(rows, suite) for suite in SUITES}
    return suites | {"distillation": distillation_block(), "cost_model": cost_model.table(rows)}


def render(text: str, rows: Sequence[Row]) -> str:
    """The document with every generated block replaced. Raises ValueError for a block that it lacks."""
    return replace_blocks(text, blocks(rows), DOCUMENT.name)


def draw(rows: Sequence[Row]) -> list[Path]:
    """Steps per second against environments, the ladder of samplers, time and memory against agents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = []
    env = [r for r in rows if r["suite"] == "env"]
    if env:
        figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
        for task in dict.fromkeys(r["name"].split(",")[0] for r in env):
            points = [r for r in env if r["name"].startswith(f"{task},") and r["name"].endswith("at once")]
            counts = [r["sizes"]["environments"] for r in points]
            line = axes.loglog(counts, [r["value"] for r in points], "o-", label=task)[0]
            for r in env:
                if r["name"] == f"{task}, per-agent loop":
                    axes.axhline(r["value"], ls=":", color=line.get_color())
        axes.set(xlabel="environments at once", ylabel="environment steps / s", title="dotted: per-agent loop")
        axes.legend(frameon=False)
        paths.append(save(figure, "performance_env"))
    sampler = [r for r in rows if r["suite"] == "sampler" and r["unit"] == "ms/plan"]
    if sampler:
        figure, axes = plt.subplots(figsize=(6, 0.3 * len(sampler) + 1), layout="constrained")
        axes.barh([r["name"] for r in sampler][::-1], [r["value"] for r in sampler][::-1])
        axes.set(xscale="log", xlabel="ms per plan")
        paths.append(save(figure, "performance_sampler"))
    sizes = [r for r in rows if r["suite"] == "scaling"]
    if sizes:
        paths.append(ROOT / "docs/figures/performance_scaling.png")
        of = lambda what: [r for r in sizes if r["name"].startswith(what)]  # noqa: E731
        scaling.save_plot(paths[-1], of("decision of"), of("mean field of"))
    return paths


def save(figure: Any, name: str) -> Path:
    path = ROOT / f"docs/figures/{name}.png"
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    published = read()
    wanted = render(DOCUMENT.read_text(), published)
    if "--check" not in sys.argv:
        DOCUMENT.write_text(wanted)
        draw(published)
    elif wanted != DOCUMENT.read_text():
        sys.exit("docs/performance.md is not what results/ say: run python -m tools.render_performance")
