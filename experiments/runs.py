"""The runs that a configuration asks for, and what each of them is: its settings, its identity, its command."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from experiments import grids, methods, pretrain, rows, runtime
from experiments.configs import default
from experiments.demo import RULES
from experiments.methods import Method

# ---------------------------------------------------------------------------------------------------- the list


@dataclasses.dataclass(frozen=True)
class Run:
    """One row to be."""

    task: str
    tier: str  # "none" for policies that no data enter
    method: str
    obs_set: str = "none"  # "own" or "own+mf": what the policy sees; "none" for rules
    label: str = "none"  # "own" or "neighbourhood" return; "none" where no return is learned
    num_steps: int = 0  # environment steps of target data; 0 = all that the configuration gives
    num_topologies: int = 0  # ... spread over so many trajectories; 0 = as few as hold them
    num_updates: int = 0  # a point of the learning curve; 0 = the end
    split: str = "test"
    seed: int = 0

    @property
    def name(self) -> str:
        """The run as one word, for `--config.queue.only`."""
        return "/".join(str(value) for value in dataclasses.astuple(self))

    @property
    def unit(self) -> tuple:
        """Runs of a unit differ in the seed or the point of the curve only."""
        return dataclasses.astuple(dataclasses.replace(self, seed=0, num_updates=0))


def parse_run(name: str) -> Run:
    """The run of a name. Raises ValueError when it is none."""
    parts, fields = name.split("/"), dataclasses.fields(Run)
    if len(parts) != len(fields):
        raise ValueError(f"queue.only must be {'/'.join(f.name for f in fields)}, got {name!r}")
    try:
        return Run(*(int(part) if field.type == "int" else part for part, field in zip(parts, fields, strict=True)))
    except ValueError as error:
        raise ValueError(f"queue.only must be {'/'.join(f.name for f in fields)}, got {name!r} ({error})") from error


def list_runs(config: ml_collections.ConfigDict, finished: Sequence[rows.Row] = ()) -> list[Run]:
    """What the configured groups ask for, every run once, in the order of execution. `finished` rows decide which cell
    is a method's best on validation, where a group wants the best one only.

    Raises ValueError for an unknown group, method, task or tier.
    """
    q = config.queue
    if q.only:
        return [parse_run(q.only)]
    known = methods.table(config)
    runs: dict[Run, None] = {}

    @functools.cache
    def search(*whole: str) -> Search:
        return search_of(config, finished, Run(*whole))

    def settings(run: Run, variants: str) -> Sequence[str]:
        if variants not in ("best", "finalists"):
            return (run.method,)
        found = search(run.task, run.tier, run.method, run.obs_set, run.label)
        return (found.best,) if variants == "best" else found.finalists

    for name in q.groups:
        if name not in config.groups:
            raise ValueError(f"queue.groups must be among {sorted(config.groups)}, got {name!r}")
        group = config.groups[name]
        tasks = tuple(q.tasks or group.tasks or config.tasks)
        if unknown := sorted(set(tasks) - set(config.tasks)):
            raise ValueError(f"queue.tasks must be among {tuple(config.tasks)}, got {unknown}")
        for task in tasks:
            for method in q.methods or group.methods:
                for variant in (method, *grids.variants(method)) if group.variants == "all" else (method,):
                    for run in method_runs(config, group, known, task, variant, finished):
                        for setting in settings(run, group.variants):
                            runs[dataclasses.replace(run, method=setting)] = None
    return list(runs)


def method_runs(
    config: ml_collections.ConfigDict,
    group: ml_collections.ConfigDict,
    known: dict[str, Method],
    task: str,
    method: str,
    finished: Sequence[rows.Row],
) -> Iterable[Run]:
    """Runs of one method of a group on one task. "rules" stands for all rules of the task."""
    q = config.queue
    splits = tuple(q.splits or group.splits)
    if method == "rules":
        for split in splits:
            for rule in RULES.get(task, ("random", "expert")):
                yield Run(task, "none", rule, split=split)
        return
    if method in ("behaviour", "best_behaviour"):
        for tier in q.tiers or group.tiers:
            for split in splits:
                yield Run(task, tier, method, split=split)
        return
    if method not in known:
        raise ValueError(f"queue.methods must be among {sorted(known)}, 'rules' or 'behaviour', got {method!r}")
    if known[method].kind == "ceiling":
        yield from (Run(task, "none", method, split=split) for split in splits)
        return
    sizes = q.sizes or tuple(group.sizes.get(task, ())) or ((0, 0),)
    for tier in q.tiers or group.tiers:
        for cell in cells(config, group, known[method], task, tier, method, finished):
            for num_steps, num_topologies in (size if isinstance(size, (tuple, list)) else (size, 0) for size in sizes):
                for split in splits:
                    for seed in q.seeds or group.seeds:
                        for share in group.updates:
                            point = 0 if share == 1 else round_updates(config, known[method], share)
                            yield Run(task, tier, method, *cell, num_steps, num_topologies, point, split, seed)


def round_updates(config: ml_collections.ConfigDict, method: Method, share: float) -> int:
    """A share of the updates as whole dispatches."""
    c = config.baselines if method.kind == "baseline" else config.adapt
    return max(1, round(share * c.num_updates / c.updates_per_dispatch)) * c.updates_per_dispatch


def cells(
    config: ml_collections.ConfigDict,
    group: ml_collections.ConfigDict,
    method: Method,
    task: str,
    tier: str,
    name: str,
    finished: Sequence[rows.Row],
) -> list[tuple[str, str]]:
    """(obs_set, label) of a method in a group: the listed ones, or the best on validation instances so far. The label
    "task" is the task's own."""
    asked = [tuple(cell) for cell in (config.queue.cells or group.cells)] if method.cell is None else [method.cell]
    if asked == [("best", "best")]:
        asked = [best_cell(finished, task, tier, name) or tuple(config.queue.default_cell)]
    asked = [(obs_set, default.label_of(task) if label == "task" else label) for obs_set, label in asked]
    if method.kind == "baseline" and "label" not in config.baselines[methods.baseline_of(name)]:
        asked = [(obs_set, "none") for obs_set, _ in asked]
    return list(dict.fromkeys(asked))


def best_cell(finished: Sequence[rows.Row], task: str, tier: str, method: str) -> tuple[str, str] | None:
    """(obs_set, label) with the highest mean validation reward of a method; None without such rows."""
    wanted = (task, tier, method, "validation")
    rewards: dict[tuple[str, str], list[float]] = {}
    for row in finished:
        if (row["task"], row["tier"], row["method"], row["split"]) == wanted:
            rewards.setdefault((row["obs_set"], row["label"]), []).append(row["reward"])
    return max(rewards, key=lambda cell: float(np.mean(rewards[cell])), default=None)


@dataclasses.dataclass(frozen=True)
class Search:
    """What validation instances say of a method and of the settings in its grid, in two rounds: all of them on the
    seeds that all share (the first), then the method as it is and the best others on the seeds that these share."""

    method: str
    rewards: Mapping[str, Mapping[int, float]]  # setting -> seed -> mean reward

    @property
    def finalists(self) -> tuple[str, ...]:
        """The method as it is and the highest of the others in the first round; nothing before a first round."""
        first = self._means(self.rewards)
        others = sorted((name for name in first if name != self.method), key=lambda name: -first[name])
        own = (self.method,) if self.method in first else ()
        return (*own, *others[: grids.NUM_FINALISTS - 1]) if others else ()

    @property
    def seeds(self) -> set[int]:
        """The seeds that decide among the finalists."""
        return self._shared(self.finalists)

    @property
    def scores(self) -> dict[str, float]:
        """Finalist -> mean reward over these seeds."""
        return self._means(self.finalists)

    @property
    def best(self) -> str:
        """The finalist with the highest score; the method as it is without any."""
        return max(self.scores, key=self.scores.__getitem__, default=self.method)

    def _shared(self, names: Iterable[str]) -> set[int]:
        found = [set(self.rewards[name]) for name in names]
        return set.intersection(*found) if found else set()

    def _means(self, names: Iterable[str]) -> dict[str, float]:
        seeds = self._shared(names)
        return {name: float(np.mean([self.rewards[name][s] for s in seeds])) for name in names} if seeds else {}


def search_of(config: ml_collections.ConfigDict, finished: Sequence[rows.Row], run: Run) -> Search:
    """The search of a run's method: its rows and those of its settings on validation instances, at the end of training
    on all target data."""
    rewards: dict[str, dict[int, float]] = {}
    for name in (run.method, *grids.variants(run.method)):
        where = (run.task, run.tier, name, "validation")
        found = [row for row in finished if tuple(row[f] for f in ("task", "tier", "method", "split")) == where]
        if found:
            whole = Run(run.task, run.tier, name, run.obs_set, run.label, split="validation")
            _, wanted = row_start(config, whole)
            same = [row for row in found if rows.identity(row | {"seed": 0}) == rows.identity(wanted)]
            rewards |= {name: {row["seed"]: row["reward"] for row in same}} if same else {}
    return Search(run.method, rewards)


def settings_tried(finished: Sequence[rows.Row], task: str, tier: str, method: str) -> int:
    """Settings of a learned method that were scored on validation instances of this data, on record: what choosing
    among them may have won. Variants count for the method that they are variants of, all of NetWorld's as one."""

    def family(name):
        name = methods.TUNED_FROM.get(name, name)
        if name in methods.BASELINE_METHODS:
            return methods.baseline_of(name)
        return name if name in ("ma_cdmp", "paper_reading") else "networld"

    fields = ("method", "obs_set", "label", "updates", "target_transitions", "settings")
    return len(
        {
            json.dumps([row[field] for field in fields], sort_keys=True)
            for row in finished
            if (row["task"], row["tier"], row["split"]) == (task, tier, "validation")
            and family(row["method"]) == family(method)
        }
    )


# ---------------------------------------------------------------------------------------------------- settings of a run


def resolve(config: ml_collections.ConfigDict, run: Run) -> ml_collections.ConfigDict:
    """The complete configuration of a run: the queue's, then the method's changes, then the run's own fields."""
    c = config.copy_and_resolve_references()
    c.held_out, c.seed, c.evaluate.split = run.task, run.seed, run.split
    if run.tier != "none":
        c.collect.tier = run.tier
    c.adapt.num_trajectories = config.queue.target_trajectories.get(run.task, 0)
    by_tier = config.queue.settings
    c.update(by_tier.get(run.tier, by_tier.mixed).get(run.task, {}))
    c.baselines.ma_dd.inverse_dynamics_noise = c.loss.inverse_dynamics_noise
    method = methods.table(config).get(run.method)
    if method is not None:
        method.apply(c)
    if c.baselines.ma_dd.noise_aware:
        c.baselines.ma_dd.inverse_dynamics_noise = c.planner.inverse_dynamics_noise
    if run.num_steps:
        c.adapt.num_steps, c.adapt.num_topologies = run.num_steps, run.num_topologies
        c.adapt.num_trajectories = 0
    if method is not None and method.kind == "world model":
        if run.label != "none":
            c.loss.label = run.label
        if run.obs_set == "own":  # no message was ever heard, neither in training nor at run time
            c.loss.message_dropout = c.planner.message_loss = 1.0
    if method is not None and method.kind == "baseline":
        section = c.baselines[methods.baseline_of(run.method)]
        section.use_mean_field = run.obs_set == "own+mf"
        if "label" in section and run.label != "none":
            section.label = run.label
    return c


def kind_of(known: dict[str, Method], run: Run) -> str:
    """What kind of method a run's is: "rule" unless the table has it."""
    if run.method in ("behaviour", "best_behaviour"):
        return "behaviour"
    return known[run.method].kind if run.method in known else "rule"


HOW = (
    "collect.tasks", "collect.tier", "collect.num_parallel", "collect.steps_per_dispatch",
    "collect.reference_instances", "collect.reference_steps", "pretrain.updates_per_dispatch",
    "pretrain.dispatches_per_checkpoint", "adapt.updates_per_dispatch", "adapt.dispatches_per_checkpoint",
    "adapt.num_trajectories", "adapt.num_steps", "adapt.num_topologies", "baselines.methods",
    "baselines.updates_per_dispatch", "baselines.dispatches_per_checkpoint", "evaluate.num_parallel",
    "evaluate.policies", "evaluate.split",
)  # fmt: skip
"""Fields that say how a run is done, or stand in columns of their own, and not what its result is."""


def is_pretrained(config: ml_collections.ConfigDict, run: Run, kind: str) -> bool:
    """Whether something of the method has seen other tasks."""
    has_sources = kind == "world model" or methods.baseline_of(run.method) == "multi_task_bc"
    return has_sources and not config.adapt.from_scratch


def sections_of(config: ml_collections.ConfigDict, run: Run, kind: str) -> list[str]:
    """The parts of a configuration that a row depends on."""
    parts = ["environment", "evaluate"]
    if run.tier != "none":
        parts.append("collect")
    if kind in ("world model", "baseline"):
        parts.append("ensemble")
    if kind == "world model":
        parts += ["model", "loss", "planner", "adapt"]
        parts += ["baselines.num_updates", "baselines.imagined_actor"] if config.adapt.imagined_share else []
    if kind == "baseline":
        parts += ["baselines.num_updates", f"baselines.{methods.baseline_of(run.method)}"]
    return [*parts, "pretrain"] if is_pretrained(config, run, kind) else parts


def differences(config: ml_collections.ConfigDict, run: Run, kind: str) -> dict[str, Any]:
    """Fields of a resolved configuration that matter to the row and are not what `default.py` says. A field that is new
    in the library, and left at its default, does not make an old row another one."""
    reference = _flat(default.get_config())
    prefixes = tuple(f"{part}." for part in sections_of(config, run, kind))
    reads_sources = kind == "world model" or is_pretrained(config, run, kind)
    tasks = {run.task, *(pretrain.source_tasks(config) if reads_sources else ())}
    others = {f".{task}" for task in config.tasks} - {f".{task}" for task in tasks}
    found = {}
    for name, value in _flat(config).items():
        is_part = f"{name}.".startswith(prefixes) and name not in HOW and not name.endswith(tuple(others) or ("\n",))
        if is_part and reference.get(name) != value:
            found[name] = value
    return rows.plain(found)


def _flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return runtime.flat(json.loads(config.to_json_best_effort()))


def target_size(
    collect: ml_collections.ConfigDict, task: str, num_trajectories: int, num_steps: int, num_topologies: int
) -> tuple[int, int]:
    """(environment steps, topologies) of target data: what `pretrain.few_shot_data` cuts, without reading it."""
    runs, length = num_trajectories or collect.num_trajectories[task], collect.num_steps[task]
    if num_topologies:
        return num_steps, num_topologies
    if not num_steps:
        return runs * length, runs
    whole = min(runs, -(-num_steps // length))
    return whole * min(length, -(-num_steps // whole)), whole


COLUMNS = (
    "task", "tier", "method", "seed", "split", "obs_set", "label", "target_transitions", "target_topologies", "updates",
)  # fmt: skip


def columns(config: ml_collections.ConfigDict, known: dict[str, Method], run: Run) -> tuple:
    """The `COLUMNS` of the row that a run will leave: its identity but for settings, without resolving it."""
    kind = kind_of(known, run)
    size, updates = (0, 0), 0
    if kind in ("world model", "baseline"):
        whole = 0 if run.num_steps else config.queue.target_trajectories.get(run.task, 0)
        size = target_size(config.collect, run.task, whole, run.num_steps, run.num_topologies)
        section = "adapt" if kind == "world model" else "baselines"
        changed = known[run.method].changes.get(f"{section}.num_updates", config[section].num_updates)
        updates = run.num_updates or changed
    return (run.task, run.tier, run.method, run.seed, run.split, run.obs_set, run.label, *size, updates)


def describe(base: ml_collections.ConfigDict, config: ml_collections.ConfigDict, run: Run, kind: str) -> rows.Row:
    """The fields of a row that are known before it runs; `rows.IDENTITY` is among them."""
    learned = kind in ("world model", "baseline")
    c = config.adapt
    wanted = (c.num_trajectories, c.num_steps, c.num_topologies)
    transitions, topologies = target_size(config.collect, run.task, *wanted) if learned else (0, 0)
    updates = config.adapt.num_updates if kind == "world model" else config.baselines.num_updates if learned else 0
    sources = pretrain.source_tasks(config) if is_pretrained(config, run, kind) else ()
    return rows.plain(
        {
            "task": run.task,
            "tier": run.tier,
            "method": run.method,
            "seed": run.seed,
            "preset": base.queue.preset,
            "split": run.split,
            "updates": run.num_updates or updates,
            "target_transitions": transitions,
            "target_topologies": topologies,
            "pretrain": {
                "sources": sources,
                "data": config.pretrain.data,
                "updates": config.pretrain.num_updates,
                "steps": {t: config.collect.num_steps[t] for t in sources},
                "trajectories": {
                    t: config.pretrain.num_trajectories.get(t, 0) or config.collect.num_trajectories[t] for t in sources
                },
            }
            if sources
            else None,
            "obs_set": run.obs_set,
            "label": run.label,
            "settings": differences(config, run, kind),
        }
    )


def row_start(base: ml_collections.ConfigDict, run: Run) -> tuple[ml_collections.ConfigDict, rows.Row]:
    """(resolved configuration, the fields of the row known beforehand) of a run of the queue's configuration."""
    config = resolve(base, run)
    return config, describe(base, config, run, kind_of(methods.table(base), run))
