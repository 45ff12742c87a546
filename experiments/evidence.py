"""What the rows of results/runs.jsonl say: selections, cells, curves. Reads rows, never runs anything; the tables made
of them are in `evidence_tables`, the figures in `evidence_figures`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.configs.default import label_of
from experiments.evaluate import ANCHORS
from experiments.methods import FINETUNE_SCALES, PRETRAINED_ON, finetuned
from experiments.rows import Row
from experiments.runs import Run, Search, best_cell, search_of
from networld_jax import statistics

OURS, WITHOUT_PRETRAINING = "networld", "networld_scratch"
CLONES = ("ma_bc", "bc_shift", "bc_quantile", "filtered_bc", "rc_bc", "multi_task_bc")
FEW_SHOT_ONLY = ("random_unet", "networld_shuffled", "networld_autoregressive")
TRANSFER_CONTROLS = (WITHOUT_PRETRAINING, *FEW_SHOT_ONLY)
"""Transfer is claimed only where the pre-trained model beats each of these in paired intervals."""
UNPAIRED = "best_behaviour"


@dataclasses.dataclass(frozen=True)
class Cell:
    """All seeds of one method under one setting."""

    method: str
    rows: tuple[Row, ...]  # by seed

    @property
    def rewards(self) -> np.ndarray:
        """[S, I]."""
        return np.array([row["instance_rewards"] for row in self.rows])

    @property
    def interval(self) -> statistics.Interval:
        """Of the mean reward."""
        return statistics.mean_interval(self.rewards)

    @property
    def seeds(self) -> int:
        return len(self.rows)


def highest(cells: Iterable[Cell]) -> Cell:
    """The cell with the highest mean reward."""
    return max(cells, key=lambda c: c.rewards.mean())


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows whose fields equal `wanted`; a tuple, list or set means any of its values."""

    def fits(value, want):
        return value in want if isinstance(want, (tuple, list, set, frozenset)) else value == want

    return [row for row in rows if all(fits(row[field], want) for field, want in wanted.items())]


def most_common_size(rows: Sequence[Row], methods: Sequence[str]) -> int:
    """The amount of target data at which most of these methods were run; 0 without such rows."""
    runs = {(row["target_transitions"], row["method"]) for row in rows if row["method"] in methods}
    counts = Counter(size for size, _ in runs if size)
    return max(counts, key=lambda size: (counts[size], size), default=0)


def cell(rows: Sequence[Row], task: str, tier: str, method: str, **wanted: Any) -> Cell | None:
    """A method's rows at the end of training, in its best cell on validation (without such rows: with messages and the
    task's label, not a rung of the ladder) and, of several settings, the one with the most seeds (the latest among
    equals). Data come from as few networks as hold them, unless `wanted` says from how many. None without rows."""
    found = select(rows, task=task, tier=tier, method=method, split="test", **wanted)
    if not found:
        return None
    if "target_topologies" not in wanted and "target_transitions" in wanted:
        found = select(found, target_topologies=min(row["target_topologies"] for row in found))
    final = max(row["updates"] for row in found)
    found = [row for row in found if row["updates"] == final]
    groups: dict[tuple, dict[int, Row]] = defaultdict(dict)
    for row in found:
        key = (row["obs_set"], row["label"], row["target_topologies"], json.dumps(row["settings"], sort_keys=True))
        groups[key][row["seed"]] = row
    chosen = best_cell(rows, task, tier, method) or ("own+mf", label_of(task))
    keys = (
        [key for key in groups if key[:2] == chosen] or [key for key in groups if key[0] == chosen[0]] or list(groups)
    )
    best = max(enumerate(keys), key=lambda item: (len(groups[item[1]]), item[0]))[1]
    return Cell(method, tuple(groups[best][seed] for seed in sorted(groups[best])))


def anchors(rows: Sequence[Row], task: str) -> tuple[float, float] | None:
    """Rewards at score 0 and 1 on the test instances."""
    found = [cell(rows, task, "none", name) for name in ANCHORS.get(task, ("random", "expert"))]
    return None if None in found else tuple(float(c.rewards.mean()) for c in found)


def expert_span(rows: Sequence[Row], task: str) -> float | None:
    """Reward of the expert minus that of the random policy."""
    ends = [cell(rows, task, "none", name) for name in ("random", "expert")]
    if ends[1] is None:  # a task without a policy of that name: its high anchor
        ends[1] = cell(rows, task, "none", ANCHORS.get(task, ("random", "expert"))[1])
    return None if None in ends else float(ends[1].rewards.mean() - ends[0].rewards.mean())


def scored(interval: statistics.Interval, ends: tuple[float, float]) -> statistics.Interval:
    """An interval of rewards as one of anchored scores."""
    low, high = ends
    return statistics.Interval(*((value - low) / (high - low) for value in dataclasses.astuple(interval)))


def headline_size(rows: Sequence[Row], task: str, tier: str, methods: Sequence[str]) -> int:
    """The amount of target data of the headline."""
    return most_common_size(select(rows, task=task, tier=tier, split="test"), methods)


def headline_cells(
    rows: Sequence[Row], task: str, tier: str, methods: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, Cell]:
    """The cells of `names` (None: of all `methods`) at the headline's amount of data, where there are rows."""
    size = headline_size(rows, task, tier, methods)
    found = {name: cell(rows, task, tier, name, target_transitions=size) for name in names or methods}
    return {name: c for name, c in found.items() if c is not None}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A method as it is and in its best setting on validation instances."""

    as_it_is: Cell
    best: Cell
    search: Search

    @property
    def setting(self) -> str:
        """What the best one changes."""
        changed = self.best.method.removeprefix(f"{self.as_it_is.method}_")
        return "as it is" if self.best.method == self.as_it_is.method else f"`{changed}`"

    def minus(self, other: Cell) -> tuple[statistics.Interval, statistics.Interval]:
        """Paired differences to another cell, as it is and in its best setting."""
        as_it_is, best = (statistics.paired_interval(c.rewards, other.rewards) for c in (self.as_it_is, self.best))
        return as_it_is, best


def tuned_methods(
    rows: Sequence[Row], config: Any, task: str, tier: str, methods: Sequence[str], headline: Sequence[str]
) -> dict[str, Tuned]:
    """Those of `methods` of which settings were tried, the best on test instances first."""
    found = {}
    for name, c in headline_cells(rows, task, tier, headline, methods).items():
        first = c.rows[0]
        search = search_of(config, rows, Run(task, tier, name, first["obs_set"], first["label"]))
        if len(search.finalists) > 1 and name in search.finalists:
            tuned = cell(rows, task, tier, search.best, target_transitions=first["target_transitions"])
            found |= {} if tuned is None else {name: Tuned(c, tuned, search)}
    return dict(sorted(found.items(), key=lambda item: -item[1].best.rewards.mean()))


def adaptation_rates(rows: Sequence[Row], task: str, tier: str, size: int) -> dict[str, Search]:
    """{method of `PRETRAINED_ON`: itself and its slower rates of adaptation, on validation instances} for those scored
    there at two rates at least."""
    found = {}
    for name in PRETRAINED_ON:
        rewards = {}
        for method in (finetuned(name, rate) for rate in (1.0, *FINETUNE_SCALES)):
            same = select(rows, task=task, tier=tier, method=method, split="validation", target_transitions=size)
            few = min((row["target_topologies"] for row in same), default=0)
            if same:
                rewards[method] = {row["seed"]: row["reward"] for row in select(same, target_topologies=few)}
        search = Search(name, rewards)
        found |= {name: search} if len(search.finalists) > 1 else {}
    return found


def curve(rows: Sequence[Row], task: str, tier: str, method: str, topologies: bool = False) -> dict[int, np.ndarray]:
    """Target data (or number of topologies, at the amount of data where it was varied) -> rewards [S, I]."""
    found = select(rows, task=task, tier=tier, method=method, split="test")
    if topologies:
        sizes = Counter(size for size, _ in {(row["target_transitions"], row["target_topologies"]) for row in found})
        if not sizes or max(sizes.values()) < 2:
            return {}
        size = max(sizes, key=lambda s: sizes[s])
        found = [row for row in found if row["target_transitions"] == size]
        points = sorted({row["target_topologies"] for row in found})
        cells = {n: cell(found, task, tier, method, target_topologies=n) for n in points}
    else:
        sizes = sorted({row["target_transitions"] for row in found})
        cells = {size: cell(rows, task, tier, method, target_transitions=size) for size in sizes}
    return {point: c.rewards for point, c in cells.items() if c is not None}


def training_curves(
    rows: Sequence[Row], task: str, tier: str, methods: Sequence[str]
) -> dict[str, dict[int, np.ndarray]]:
    """{method: {updates: mean rewards [S]}} at the headline's amount of data, for methods scored at two points of their
    training at least."""
    size = headline_size(rows, task, tier, methods)
    found = select(rows, task=task, tier=tier, split="test", target_transitions=size)
    curves = {}
    for name in methods:
        points = sorted({row["updates"] for row in select(found, method=name)})
        at = {u: cell(select(found, method=name, updates=u), task, tier, name) for u in points}
        curves[name] = {updates: c.rewards.mean(1) for updates, c in at.items() if c is not None}
    return {name: curve for name, curve in curves.items() if len(curve) > 1}
