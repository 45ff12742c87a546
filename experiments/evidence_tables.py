"""The tables and verdicts of the results page and the README: what the cells of `experiments.evidence` say, in
Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.demo import RULES
from experiments.evaluate import ANCHORS
from experiments.evidence import (
    CLONES,
    OURS,
    TRANSFER_CONTROLS,
    UNPAIRED,
    WITHOUT_PRETRAINING,
    adaptation_rates,
    anchors,
    cell,
    curve,
    expert_span,
    headline_cells,
    headline_size,
    highest,
    scored,
    select,
    tuned_methods,
)
from experiments.methods import (
    BASELINE_METHODS,
    CEILING,
    FINETUNE_SCALES,
    LADDER,
    PRETRAINED_ON,
    ensemble_of,
    finetuned,
)
from experiments.rows import Row
from experiments.runs import COLUMNS, Run, settings_tried
from experiments.tables import markdown_table
from networld_jax import statistics
from networld_jax.evaluation import anchored


def number(interval: statistics.Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def signed(interval: statistics.Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def headline_table(rows: Sequence[Row], task: str, tier: str, methods: Sequence[str]) -> str:
    """Every method on one task and tier, best first, with NetWorld's paired difference to it."""
    size = headline_size(rows, task, tier, methods)
    wanted = [(name, "none", {}) for name in (*RULES.get(task, ("random", "expert")), *CEILING)]
    wanted += [(name, tier, {}) for name in ("behaviour", UNPAIRED)]
    wanted += [(name, tier, {"target_transitions": size}) for name in methods]
    cells = [c for name, where, fields in wanted if (c := cell(rows, task, where, name, **fields)) is not None]
    if not cells:
        return "No rows yet.\n"
    ends, ours = anchors(rows, task), next((c for c in cells if c.method == OURS), None)
    lines = []
    for c in sorted(cells, key=lambda c: -c.rewards.mean()):
        first, interval = c.rows[0], c.interval
        against = better = ""
        if ours is not None and c.method not in (OURS, UNPAIRED):
            against = signed(statistics.paired_interval(ours.rewards, c.rewards))
            better = f"{statistics.probability_of_improvement(ours.rewards, c.rewards):.2f}"
        setting = "" if first["obs_set"] == "none" else f"{first['obs_set']}, {first['label']}"
        score = number(scored(interval, ends)) if ends else ""
        seconds = f"{np.mean([row['seconds'] for row in c.rows]):.0f}"
        name, sent = f"**`{c.method}`**" if c.method == OURS else f"`{c.method}`", first["message_bytes"]
        tried = settings_tried(rows, task, tier, c.method) if c.method in methods else ""
        lines.append((name, number(interval), score, c.seeds, against, better, setting, tried, sent, seconds))
    header = (
        "method", "reward [95 %]", "score [95 %]", "seeds", "networld minus it", "P(networld better)", "sees, label",
        "tried", "bytes", "s per run",
    )  # fmt: skip
    trained = f"Target data: {size} environment steps. " if size else ""
    first = cells[0].rows[0]
    return f"{trained}{len(first['instance_rewards'])} test instances.\n\n" + markdown_table(header, lines)


def tuned_table(
    rows: Sequence[Row], config: Any, tasks: Sequence[str], tier: str, methods: Sequence[str], headline: Sequence[str]
) -> str | None:
    """Every method of which settings were tried: the best of them on validation instances, what it has on the test
    instances, and the differences of NetWorld from scratch, as it is and in its own best, to it. None without any."""
    lines = []
    for task in tasks:
        tuned = tuned_methods(rows, config, task, tier, methods, headline)
        ours = tuned.get(WITHOUT_PRETRAINING)
        for name, t in tuned.items():
            scores, gain, minus = t.search.scores, "", ("", "")
            if t.best.method != name:
                gain = signed(statistics.paired_interval(t.best.rewards, t.as_it_is.rewards))
            if ours is not None and t is not ours:
                minus = tuple(map(signed, ours.minus(t.best)))
            lines.append(
                (
                    f"`{task}`", f"**`{name}`**" if t is ours else f"`{name}`", len(t.search.rewards), t.setting,
                    len(t.search.seeds), f"{scores[name]:.3f}", f"{scores[t.best.method]:.3f}",
                    number(t.as_it_is.interval), number(t.best.interval), gain, *minus, t.best.seeds,
                )
            )  # fmt: skip
    header = (
        "task", "method", "settings", "best on validation", "its seeds", "validation, as it is", "validation, best",
        "test, as it is", "test, best", "gain", "NetWorld as it is minus this best", "NetWorld's best minus this best",
        "seeds",
    )  # fmt: skip
    return markdown_table(header, lines) if lines else None


def tuned_summary_table(
    rows: Sequence[Row], config: Any, tasks: Sequence[str], tier: str, methods: Sequence[str], headline: Sequence[str]
) -> str:
    """One line per task: NetWorld from scratch and its rivals, each in its best setting."""
    lines = []
    for task in tasks:
        tuned = tuned_methods(rows, config, task, tier, methods, headline)
        ours = tuned.pop(WITHOUT_PRETRAINING, None)
        if ours is None or not tuned:
            continue
        shown = [f"`{name}`, {t.setting}: {t.best.interval.mean:.3f}" for name, t in tuned.items()]
        first = next(iter(tuned.values()))
        mine = (number(ours.as_it_is.interval), f"{ours.setting}: {number(ours.best.interval)}")
        lines.append((f"`{task}`", *mine, "; ".join(shown[:3]), len(tuned), *map(signed, ours.minus(first.best))))
    header = (
        "task", "NetWorld from scratch, as it is", "its best setting", "highest rivals, each in its best",
        "rivals tuned", "NetWorld as it is minus the first", "its best minus the first",
    )  # fmt: skip
    return markdown_table(header, lines)


def against_table(
    rows: Sequence[Row], task: str, tier: str, methods: Sequence[str], reference: str, size: int
) -> str | None:
    """Methods at one amount of target data, each with the paired difference of `reference` to it. None without rows of
    the reference and of one other."""
    ours = cell(rows, task, tier, reference, target_transitions=size)
    if ours is None:
        return None
    lines = []
    for name in methods:
        c = cell(rows, task, tier, name, target_transitions=size)
        if c is None:
            continue
        against = "" if name == reference else signed(statistics.paired_interval(ours.rewards, c.rewards))
        better = "" if name == reference else f"{statistics.probability_of_improvement(ours.rewards, c.rewards):.2f}"
        lines.append((f"`{name}`", number(c.interval), c.seeds, against, better, c.rows[0]["updates"]))
    if len(lines) < 2:
        return None
    header = ("method", "reward [95 %]", "seeds", f"{reference} minus it", f"P({reference} better)", "updates")
    return f"{task}, {tier}: {size} environment steps of target data.\n\n" + markdown_table(header, lines)


def ladder_table(rows: Sequence[Row], task: str, tier: str, size: int) -> str | None:
    """Every rung with the paired gain over the one before it that has rows. None without two rungs."""
    lines, before = [], None
    ours = cell(rows, task, tier, WITHOUT_PRETRAINING, target_transitions=size)
    is_aware = ours is not None and bool(ours.rows[0]["settings"].get("model.noise_aware_inverse_dynamics"))
    for rung in LADDER:
        if rung.needs_noise_aware and not is_aware:
            continue
        obs_set, label = rung.cell
        c = cell(rows, task, tier, rung.method, target_transitions=size, obs_set=obs_set, label=label)
        if c is None:
            continue
        gain = "" if before is None else signed(statistics.paired_interval(c.rewards, before.rewards))
        lines.append((rung.change, f"`{rung.method}`", number(c.interval), c.seeds, gain))
        before = c
    header = ("rung", "method", "reward [95 %]", "seeds", "gain over the rung before")
    return f"{task}, {tier}\n\n" + markdown_table(header, lines) if len(lines) > 1 else None


def transfer_verdict(
    rows: Sequence[Row], task: str, tier: str, size: int, stand_ins: Mapping[str, str] | None = None
) -> str:
    """Whether pre-training pays: better than every control, in paired intervals. `stand_ins` names, for a method, the
    one that stands for it: itself at another rate."""
    at = lambda name: cell(rows, task, tier, (stand_ins or {}).get(name, name), target_transitions=size)  # noqa: E731
    ours, found = at(OURS), {name: at(name) for name in TRANSFER_CONTROLS}
    absent = [name for name, c in found.items() if c is None]
    if ours is None or absent:
        return f"{task}: open, no rows of {', '.join(absent or [OURS])}."
    lost = [name for name, c in found.items() if statistics.paired_interval(ours.rewards, c.rewards).low <= 0]
    if lost:
        return f"{task}: **transfer not shown**: not above {', '.join(f'`{name}`' for name in lost)}."
    return f"{task}: **transfer shown**: above scratch, random, shuffled and synthetic controls."


def rates_table(rows: Sequence[Row], sizes: Mapping[str, int], tier: str) -> str | None:
    """Controls of transfer, the pre-trained ones at the rate that validation instances choose for each, with the
    paired difference of NetWorld, at its own rate, to them; a verdict per task. `sizes` is the amount of target data
    by task. None without rows."""
    lines, verdicts = [], []
    for task, size in sizes.items():
        searches = adaptation_rates(rows, task, tier, size)
        if len(searches) < len(PRETRAINED_ON):
            continue
        chosen = {name: search.best for name, search in searches.items()}
        ours = cell(rows, task, tier, chosen[OURS], target_transitions=size)
        for name in (OURS, *TRANSFER_CONTROLS):
            c = cell(rows, task, tier, chosen.get(name, name), target_transitions=size)
            if c is None or ours is None:
                continue
            tried, seeds, interval = "", "", number(c.interval)
            if name in searches:
                scores, rates = searches[name].scores, sorted((1.0, *FINETUNE_SCALES), reverse=True)
                by_rate = {rate: scores[at] for rate in rates if (at := finetuned(name, rate)) in scores}
                tried = "; ".join(f"{rate:g}: {mean:.3f}" for rate, mean in by_rate.items())
                seeds = len(searches[name].seeds)
            against = "" if name == OURS else signed(statistics.paired_interval(ours.rewards, c.rewards))
            lines.append((f"`{task}`", f"`{name}`", tried, seeds, f"`{c.method}`", interval, against, c.seeds))
        verdicts.append(f"- {transfer_verdict(rows, task, tier, size, chosen)}")
    header = (
        "task", "method", "validation, by rate", "its seeds", "chosen", "reward [95 %]", "networld minus it",
        "seeds",
    )  # fmt: skip
    return markdown_table(header, lines) + "\n" + "\n".join(verdicts) + "\n" if lines else None


def equal_to_clones(rows: Sequence[Row], task: str, methods: Sequence[str]) -> str:
    """On expert data: is networld non-inferior to the best cloning row?"""
    clones = headline_cells(rows, task, "expert", methods, (OURS, *CLONES))
    ours, span = clones.pop(OURS, None), expert_span(rows, task)
    if ours is None or not clones or span is None or span <= 0:
        return f"{task}: open."
    best = highest(clones.values())
    result = statistics.non_inferiority(ours.rewards, best.rewards, span)
    verdict = "not inferior" if result.holds else "**inferior or undecided**"
    return (
        f"{task}: {verdict} to `{best.method}`: difference {result.difference:+.3f}, one-sided 95 % bound "
        f"{result.lower_bound:+.3f}, allowed {-result.margin:.3f} (2 % of the random-expert span)."
    )


def aggregate_table(rows: Sequence[Row], tasks: Sequence[str], tier: str, methods: Sequence[str]) -> str:
    """Anchored scores over all tasks: interquartile mean and mean over tasks x seeds, methods with all tasks only."""
    found = {task: headline_cells(rows, task, tier, methods) for task in tasks}
    ends = {task: anchors(rows, task) for task in tasks}
    lines = []
    for name in methods:
        if not all(name in found[task] and ends[task] for task in tasks):
            continue
        flat = np.concatenate([anchored(found[task][name].rewards.mean(1), *ends[task]) for task in tasks])
        spread = f"{flat.min():.2f} to {flat.max():.2f}"
        lines.append((statistics.iqm(flat), f"`{name}`", float(np.mean(flat)), spread))
    lines.sort(reverse=True)
    header = ("method", "IQM of scores", "mean", "seeds and tasks from, to")
    return markdown_table(header, [(name, f"{q:.3f}", f"{mean:.3f}", spread) for q, name, mean, spread in lines])


def summary_table(rows: Sequence[Row], tasks: Sequence[str], tiers: Sequence[str], methods: Sequence[str]) -> str:
    """One line per task and tier: random, the best rule an agent could follow, NetWorld both ways and the best other
    learned method, with the paired difference of the better NetWorld to it."""
    lines = []
    for task in tasks:
        low, high = (cell(rows, task, "none", name) for name in ANCHORS[task])
        for tier in tiers:
            found = headline_cells(rows, task, tier, methods)
            ours = [found[name] for name in (OURS, WITHOUT_PRETRAINING) if name in found]
            others = [c for name, c in found.items() if not name.startswith((OURS, "idm_only"))]
            if low is None or high is None or not ours or not others:
                continue
            best, better = highest(others), highest(ours)
            shown = [number(found[name].interval) if name in found else "" for name in (OURS, WITHOUT_PRETRAINING)]
            lines.append(
                (
                    f"`{task}`", tier, f"{low.interval.mean:.3f}", f"`{high.method}` {high.interval.mean:.3f}", *shown,
                    f"`{best.method}` {best.interval.mean:.3f} (of {len(others)})",
                    signed(statistics.paired_interval(better.rewards, best.rewards)), better.seeds,
                )
            )  # fmt: skip
    header = (
        "task", "data", "random", "best rule an agent could follow", "NetWorld, pre-trained", "NetWorld, from scratch",
        "best other learned method", "better NetWorld minus it", "seeds",
    )  # fmt: skip
    return markdown_table(header, lines)


def ensemble_table(
    rows: Sequence[Row], tasks: Sequence[str], tier: str, methods: Sequence[str], singles: Sequence[str]
) -> str:
    """One line per task and ensemble of ours: its paired differences to one of its members, to the best ensemble of a
    rival and to the best rule. `singles` are the methods of which there are ensembles, `methods` those of the
    headline."""
    lines = []
    for task in tasks:
        found = headline_cells(rows, task, tier, methods, (*singles, *map(ensemble_of, singles)))
        fours = {name: found[ensemble_of(name)] for name in singles if ensemble_of(name) in found}
        rivals = [four for name, four in fours.items() if name in BASELINE_METHODS]
        rule = cell(rows, task, "none", ANCHORS[task][1])
        if not rivals or rule is None:
            continue
        best = highest(rivals)
        for name, four in fours.items():
            if name in BASELINE_METHODS or name not in found:
                continue
            minus = [signed(statistics.paired_interval(four.rewards, c.rewards)) for c in (found[name], best, rule)]
            lines.append(
                (
                    f"`{task}`", f"`{four.method}` {number(four.interval)}", minus[0],
                    f"`{best.method}` {best.interval.mean:.3f} (of {len(rivals)})", minus[1],
                    f"`{rule.method}` {rule.interval.mean:.3f}", minus[2], four.seeds,
                )
            )  # fmt: skip
    header = (
        "task", "four of NetWorld", "minus one of them", "best four of a rival", "minus them", "best rule", "minus it",
        "seeds",
    )  # fmt: skip
    return markdown_table(header, lines) if lines else "No rows yet.\n"


def saved_table(rows: Sequence[Row], tasks: Sequence[str], tier: str, methods: Sequence[str]) -> str:
    """Target data saved by networld at the score that each method reaches with its most data."""
    lines = []
    for task in tasks:
        ours = curve(rows, task, tier, OURS)
        for name in methods:
            theirs = curve(rows, task, tier, name)
            if name == OURS or len(ours) < 2 or not theirs:
                continue
            factor, reference, reached = statistics.data_saved(ours, theirs, num_resamples=500)
            interval = f"{factor.mean:.1f} [{factor.low:.1f}, {factor.high:.1f}]"
            shown = "never reached" if np.isnan(factor.mean) else interval
            lines.append((task, f"`{name}`", reference, shown, f"{reached:.0%}"))
    if not lines:
        return "No rows yet.\n"
    header = ("task", "method", "its data (steps)", "factor saved [95 %]", "resamples that reach it")
    return markdown_table(header, lines)


def data_axis_table(rows: Sequence[Row], task: str, tier: str, methods: Sequence[str]) -> str | None:
    """Fig. 6 in numbers: one line per amount of target data that all `methods` were given, with the paired difference
    of the better NetWorld to the best of the others. None without such an amount."""
    ours, lines = (OURS, WITHOUT_PRETRAINING), []
    for size in sorted({row["target_transitions"] for row in select(rows, task=task, tier=tier)}):
        found = {name: cell(rows, task, tier, name, target_transitions=size) for name in methods}
        if not size or None in found.values():
            continue
        better = highest(found[name] for name in ours)
        best = highest(c for name, c in found.items() if name not in ours)
        shown = [number(found[name].interval) for name in ours]
        against = signed(statistics.paired_interval(better.rewards, best.rewards))
        networks = better.rows[0]["target_topologies"]
        lines.append((size, networks, *shown, f"`{best.method}` {number(best.interval)}", against, better.seeds))
    if not lines:
        return None
    header = (
        "steps", "networks", "NetWorld, pre-trained", "NetWorld, from scratch", "best other",
        "better NetWorld minus it", "seeds",
    )  # fmt: skip
    return f"{task}, {tier}: best of {len(methods) - len(ours)} others.\n\n" + markdown_table(header, lines)


def coverage(finished: Sequence[Row], wanted: Sequence[Run], group: str, columns_of: Callable[[Run], tuple]) -> str:
    """One line on what a group still lacks; `wanted` are its runs, `columns_of` the columns of their rows."""
    done = {tuple(row[name] for name in COLUMNS) for row in finished}
    absent = Counter(f"{run.task} {run.method} {run.tier}" for run in wanted if columns_of(run) not in done)
    total = sum(absent.values())
    if not total:
        return f"`{group}`: complete ({len(wanted)} runs)."
    if total == len(wanted):
        return f"`{group}`: none of {total} runs done."
    named = ", ".join(f"{name} ({count})" for name, count in sorted(absent.items())[:12])
    more = ", ..." if len(absent) > 12 else ""
    return f"`{group}`: {total} of {len(wanted)} runs missing: {named}{more}."
