"""Writes docs/results.md and its figures from results/runs.jsonl, so that no number is typed by hand.

python -m tools.render_results            writes docs/results.md, docs/figures/evidence_*.png
python -m tools.render_results --check    fails when docs/results.md is not what the rows say
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import evidence, evidence_figures, evidence_tables, rows, runs
from experiments.configs import evidence as configuration
from experiments.figures import save
from experiments.methods import TUNED_FROM
from experiments.methods import table as methods_table
from experiments.tables import markdown_table
from networld_jax.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("mixed", "expert")
GROUPS = ("headline", "headline_seeds", "tuning", "tuning_finals", "tuned", "tuned_seeds", "tuned_fresh_seeds",
          "controls", "adaptation_rate", "adaptation_controls", "sizes", "sizes_tuned", "topologies", "curves",
          "ensembles", "guidance", "planning", "training", "adaptation", "ladder_bottom", "ladder", "ceiling",
          "paper_reading")  # fmt: skip
ABLATIONS = {"guidance": "networld_scratch", "planning": "networld_scratch", "training": "networld_scratch",
             "shift": "networld_scratch", "adaptation": "networld", "paper_reading": "networld"}  # fmt: skip
"""Groups of variants, and the method that each of them changes in one point."""


def page(found: Sequence[rows.Row], preset: str, figures: Sequence[str] = ()) -> str:
    """docs/results.md of one preset."""
    found = evidence.select(found, preset=preset)
    if not found:
        return HEAD + "\nNo run of this preset is finished yet.\n"
    config = configuration.get_config(preset)
    tasks, headline, axis = tuple(config.tasks), configuration.HEADLINE, tuple(config.groups.sizes.methods)
    parts = [HEAD, provenance(found, preset), "## What is missing\n", *missing(found, config)]
    parts += ["## All methods\n", HOW_TO_READ]
    for task in tasks:
        for tier in TIERS:
            parts += [f"### {task}, {tier} data\n", evidence_tables.headline_table(found, task, tier, headline)]
    for tier in TIERS:
        parts += [f"### Over all tasks, {tier} data\n", evidence_tables.aggregate_table(found, tasks, tier, headline)]
    tuned = tuple(config.groups.tuned.methods)
    tables = {tier: evidence_tables.tuned_table(found, config, tasks, tier, tuned, headline) for tier in TIERS}
    if any(tables.values()):
        parts += ["## The same tuning budget for all\n", TUNED]
        parts += [f"### The best of nine settings, {tier} data\n\n{table}" for tier, table in tables.items() if table]
    parts += ["### On expert data, is planning at least not worse than cloning?\n"]
    parts += ["\n".join(f"- {evidence_tables.equal_to_clones(found, task, headline)}" for task in tasks) + "\n"]
    parts += ["## Does it transfer?\n", TRANSFER]
    few_shot = {task: few_shot_size(found, task) for task in tasks}
    for task, size in few_shot.items():
        control = evidence_tables.against_table(found, task, "mixed", config.groups.controls.methods, "networld", size)
        parts += [
            control or f"{task}: no rows yet.\n",
            f"- {evidence_tables.transfer_verdict(found, task, 'mixed', size)}\n",
        ]
    if rates := evidence_tables.rates_table(found, few_shot, "mixed"):
        parts += ["### At the rate of adaptation that suits each\n", RATES, rates]
    parts += ["## How much target data does pre-training save?\n", SAVED]
    parts += [evidence_tables.saved_table(found, tasks, "mixed", axis)]
    amounts = [evidence_tables.data_axis_table(found, task, "mixed", axis) for task in tasks]
    parts += [f"### Target data: {amount}" for amount in amounts if amount]
    rivals = {task: best_settings(found, config, "sizes_tuned", task) for task in tasks}
    amounts = [evidence_tables.data_axis_table(found, task, "mixed", (*axis[:2], *rivals[task])) for task in tasks]
    parts += [f"### Target data, rivals tuned: {amount}" for amount in amounts if amount]
    parts += ["## What earns the score?\n", LADDER]
    for task in tasks:
        size = evidence.most_common_size(evidence.select(found, task=task, tier="mixed"), headline)
        if rungs := evidence_tables.ladder_table(found, task, "mixed", size):
            parts += [f"### From MA-DD to NetWorld: {rungs}"]
    for name, reference in ABLATIONS.items():
        parts += [f"### {name}: {text}" for text in comparisons(found, config, name, reference)]
    parts += ["## Do four act better than one?\n", ENSEMBLES]
    parts += [evidence_tables.ensemble_table(found, tasks, "mixed", headline, configuration.IN_FOURS)]
    parts += comparisons(found, config, "ensembles", "scratch_ensemble")
    parts += ["## What the names mean\n", names(config)]
    parts += [f"\n![{name}](figures/{name}.png)\n" for name in figures]
    return "\n".join(parts)


def best_settings(found: Sequence[rows.Row], config, group: str, task: str) -> list[str]:
    """What a group of methods in their best setting runs on a task, each by its name."""
    config = config.copy_and_resolve_references()
    config.queue.groups, config.queue.tasks = (group,), (task,)
    return list(dict.fromkeys(run.method for run in runs.list_runs(config, found)))


def few_shot_size(found: Sequence[rows.Row], task: str) -> int:
    """The amount of target data of the controls."""
    return evidence.most_common_size(evidence.select(found, task=task, tier="mixed"), evidence.FEW_SHOT_ONLY)


def comparisons(found: Sequence[rows.Row], config, group: str, reference: str) -> list[str]:
    """A table per task and tier of a group's methods against one of them: few-shot where the group is, else at the
    headline's amount."""
    methods, tables = tuple(config.groups[group].methods), []
    for tier in config.groups[group].tiers:
        for task in config.tasks:
            is_few_shot = bool(config.groups[group].sizes)
            headline = evidence.headline_size(found, task, tier, configuration.HEADLINE)
            size = few_shot_size(found, task) if is_few_shot else headline
            tables.append(evidence_tables.against_table(found, task, tier, methods, reference, size))
    return [table for table in tables if table]


HEAD = """# Results

Generated by `python -m tools.render_results` from `results/runs.jsonl`, one line per finished
run; every line holds the command that repeats it.
"""
HOW_TO_READ = """Score 0 is the random policy, 1 the best rule whose information an agent can have (cbf `local_fp`, rb
`mf_rule`, ns `expert`), on the same test instances. Brackets are 95 % intervals of the hierarchical bootstrap (seeds
outside, instances inside); with three seeds they are coarse. Differences are paired by instance. Learned methods see
the same target data and messages. `best_behaviour` is the best tenth of the trajectories in the data, on other
networks: not paired. "Tried" counts the settings that were scored on validation instances, those of NetWorld's
variants together: here it is tuned more than its rivals; "The same tuning budget for all" says what that is worth.
Seconds are one process's wall time for training and scoring; a variant that differs in planning only reuses its model
and shows the scoring.
"""
TUNED = """The same search for all: of NetWorld from scratch and of every rival, eight settings other than its own, one
field changed in each (`experiments/grids.py`), are scored on validation instances, seed 0; its own and the two best
others are scored there with seeds 1 and 2, too ("its seeds": how many of the three have rows); the best by their mean
is trained with three seeds or more and scored on the test instances. Fewer than nine settings: the others have no rows
yet.
"""
TRANSFER = """Same few-shot data, updates and schedule for all. Transfer is claimed only where `networld` is above
scratch, random frozen nets, time-shuffled and synthetic pre-training, each in a paired 95 % interval.
"""
RATES = """The shared nets adapt at a share of the rate of the others, chosen for every way of pre-training by itself on
validation instances of the target task.
"""
SAVED = """Target data at which `networld` first reaches the score that a method has with its most data, as a factor;
below 1 it needs more. "Never reached" within the data measured.
"""
LADDER = """From scratch on the target data, one change at a time.
"""
ENSEMBLES = """The mean action of four policies trained alike from seeds of their own, for NetWorld and its rivals
alike: four times the training and four times the work of a decision, the same messages.
"""


def provenance(found: Sequence[rows.Row], preset: str) -> str:
    """Device, wall time, versions."""
    devices = sorted({row["device"] for row in found})
    versions = sorted({row["versions"]["jax"] for row in found})
    hours = sum(row["seconds"] for row in found) / 3600
    return (
        f"Preset `{preset}`: {len(found)} runs, {hours:.1f} hours of one process in all (shared data collection and "
        f"pre-training not counted), on {'; '.join(devices)}; jax {', '.join(versions)}.\n"
    )


def missing(found: Sequence[rows.Row], config) -> list[str]:
    """What the groups still lack."""
    lines, known = [], methods_table(config)
    for name in GROUPS:
        config.queue.groups = (name,)
        wanted = runs.list_runs(config, found)
        lines.append("- " + evidence_tables.coverage(found, wanted, name, lambda run: runs.columns(config, known, run)))
    return ["\n".join(lines) + "\n"]


def names(config) -> str:
    """Every method in a line."""
    shown = {name: method for name, method in methods_table(config).items() if name not in TUNED_FROM}
    return markdown_table(("method", "what it is"), [(f"`{name}`", method.note) for name, method in shown.items()])


def figures(found: Sequence[rows.Row], preset: str) -> dict[str, object]:
    """Name -> figure, those that the rows allow."""
    found = evidence.select(found, preset=preset)
    config = configuration.get_config(preset)
    tasks = tuple(config.tasks)
    drawn = {
        "evidence_fig5": evidence_figures.fig5(found, tasks, "mixed", configuration.HEADLINE),
        "evidence_fig6": evidence_figures.fig6(found, tasks, "mixed", tuple(config.groups.sizes.methods)),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def main() -> None:
    found, preset = rows.read(ROOT / "results/runs.jsonl"), "small"
    target, folder = ROOT / "docs/results.md", ROOT / "docs/figures"
    if "--check" in sys.argv:
        shown = sorted(path.stem for path in folder.glob("evidence_*.png"))
        if target.read_text() != page(found, preset, shown):
            sys.exit("docs/results.md is not what results/runs.jsonl says: run python -m tools.render_results")
        return
    drawn = figures(found, preset)
    for name, figure in drawn.items():
        save(figure, folder / f"{name}.png")
    write_atomically(target, page(found, preset, sorted(drawn)).encode())


if __name__ == "__main__":
    main()
