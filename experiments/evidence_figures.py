"""Figs. 5 and 6 of the paper out of rows: score against training, and against the amount of target data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments import evidence
from experiments.rows import Row
from networld_jax import statistics

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REDS = (6, 7)  # of matplotlib's tab20
LINES = {"random": "0.6", "best_behaviour": "tab:olive", "behaviour": "tab:brown", "expert": "k"}


def colours(methods: Sequence[str]) -> dict[str, Any]:
    """One colour per method; networld is red, from scratch dark red, and nobody else."""
    own = {evidence.OURS: "tab:red", evidence.WITHOUT_PRETRAINING: "darkred"}
    palette = [colour for i, colour in enumerate(plt.get_cmap("tab20").colors) if i not in REDS]
    others = [name for name in methods if name not in own]
    return {name: palette[i % len(palette)] for i, name in enumerate(others)} | own


def horizontal_lines(axis: Axes, rows: Sequence[Row], task: str, tier: str) -> None:
    """Random, behaviour, best behaviour in the data, the realisable anchor and the expert."""
    high = evidence.ANCHORS.get(task, ("random", "expert"))[1]
    for name, colour in (LINES | {high: "tab:green"}).items():
        where = tier if name in ("behaviour", "best_behaviour") else "none"
        c = evidence.cell(rows, task, where, name)
        if c is not None:
            axis.axhline(c.rewards.mean(), color=colour, lw=0.9, ls="--", label=name)


def fig5(rows: Sequence[Row], tasks: Sequence[str], tier: str, methods: Sequence[str]) -> Figure | None:
    """Mean reward against updates, one panel per task: mean and spread over seeds, same instances for all. Tasks
    without a curve are left out; None without any."""
    curves_of = {task: evidence.training_curves(rows, task, tier, methods) for task in tasks}
    tasks = [task for task in tasks if curves_of[task]]
    if not tasks:
        return None
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.6 * len(tasks) + 1.6, 3.8), squeeze=False)
    colour, handles = colours(methods), {}
    for axis, task in zip(axes[0], tasks, strict=True):
        for name, curve in curves_of[task].items():
            middle, spread = (np.array([f(m) for m in curve.values()]) for f in (np.mean, np.std))
            axis.plot(list(curve), middle, color=colour[name], label=name, lw=1.8 if name == evidence.OURS else 1.1)
            axis.fill_between(list(curve), middle - spread, middle + spread, color=colour[name], alpha=0.15)
        horizontal_lines(axis, rows, task, tier)
        axis.set_title(f"{task} ({tier})")
        axis.set_xlabel("updates")
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0][0].set_ylabel("mean reward (band: std over seeds)")
    axes[0][-1].legend(handles.values(), handles, fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def fig6(rows: Sequence[Row], tasks: Sequence[str], tier: str, methods: Sequence[str]) -> Figure | None:
    """Per task: anchored score against target data, the paper's min-max score beside it, score against the number of
    topologies at fixed data, and what the data consist of. Tasks without a curve of two points are left out; None
    without any."""
    curves_of = {task: {name: evidence.curve(rows, task, tier, name) for name in methods} for task in tasks}
    curves_of = {task: {n: c for n, c in curves.items() if len(c) > 1} for task, curves in curves_of.items()}
    tasks = [task for task in tasks if curves_of[task]]
    if not tasks:
        return None
    columns = ("target data", "the paper's min-max score", "topologies, same data", "data used")
    figure, axes = plt.subplots(len(tasks), 4, figsize=(17, 3.3 * len(tasks)), squeeze=False)
    colour = colours(methods)
    for line, task in zip(axes, tasks, strict=True):
        ends, curves = evidence.anchors(rows, task), curves_of[task]
        for name, rewards in curves.items():
            draw_curve(line[0], rewards, ends, colour[name], name)
        for name, points in min_max_curves(curves).items():
            line[1].plot(list(points), list(points.values()), "o-", color=colour[name], label=name)
        for name in methods:
            draw_curve(line[2], evidence.curve(rows, task, tier, name, topologies=True), ends, colour[name], name)
        draw_composition(line[3], rows, task, tier, methods)
        for axis, title in zip(line, columns, strict=True):
            axis.set_title(f"{task} ({tier}): {title}", fontsize=9)
            if not axis.has_data():
                axis.text(0.5, 0.5, "no rows yet", ha="center", va="center", transform=axis.transAxes, color="tab:gray")
        steps = sorted({size for rewards in curves.values() for size in rewards})
        for axis in line[:2]:
            axis.set_xscale("log")
            axis.set_xticks(steps, [f"{size:,}" for size in steps], fontsize=7, rotation=30)
            axis.minorticks_off()
            axis.set_xlabel("environment steps of target data")
        line[2].set_xlabel("networks in the target data")
        line[0].set_ylabel("score (0 random, 1 best rule)" if ends else "mean reward")
        line[0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def draw_curve(
    axis: Axes, rewards: dict[int, np.ndarray], ends: tuple[float, float] | None, colour: Any, name: str
) -> None:
    """Mean and hierarchical-bootstrap interval at every point."""
    if not rewards:
        return
    intervals = [statistics.mean_interval(r, num_resamples=500) for r in rewards.values()]
    if ends:
        intervals = [evidence.scored(i, ends) for i in intervals]
    axis.plot(list(rewards), [i.mean for i in intervals], "o-", color=colour, label=name)
    axis.fill_between(list(rewards), [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.15)


def min_max_curves(curves: dict[str, dict[int, np.ndarray]]) -> dict[str, dict[int, float]]:
    """The paper's normalisation: over the methods' mean rewards at every amount of data that all of them have."""
    common = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
    result: dict[str, dict[int, float]] = {name: {} for name in curves}
    for size in common:
        for name, value in statistics.min_max({n: float(c[size].mean()) for n, c in curves.items()}).items():
            result[name][size] = value
    return result


def draw_composition(axis: Axes, rows: Sequence[Row], task: str, tier: str, methods: Sequence[str]) -> None:
    """Environment steps that the best-fed run of every method learned from: other tasks' and the target's."""
    for x, name in enumerate(methods):
        found = evidence.select(rows, task=task, tier=tier, method=name, split="test")
        if not found:
            continue
        target = [row["target_transitions"] for row in found]
        axis.bar(x, min(target), color="tab:blue")
        axis.bar(x, max(target) - min(target), bottom=min(target), color="tab:blue", alpha=0.35)
        used = found[0]["pretrain"]
        if used:
            lengths = used.get("steps", {})
            bottom = max(target)
            for source, count in used["trajectories"].items():
                height = count * lengths.get(source, 0)
                axis.bar(x, height, bottom=bottom, color="tab:gray", alpha=0.6)
                axis.annotate(source, (x, bottom + height / 2), ha="center", va="center", fontsize=6)
                bottom += height
    axis.set_xticks(range(len(methods)), methods, rotation=60, fontsize=6)
    axis.set_ylabel("environment steps")
