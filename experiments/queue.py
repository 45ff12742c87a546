"""All runs of the evidence as one queue: method x task x tier x seed x data size x control.

    python -m experiments.queue --config=experiments/configs/evidence.py --workdir=runs/evidence
    python -m experiments.queue ... --config.queue.groups="('controls',)" --config.queue.tasks="('rb',)"
    python -m experiments.queue ... --config.queue.dry_run=True              (the list and its time estimate only)
    python -m experiments.queue ... --publish                                (also into results/runs.jsonl and docs/)

Every finished run is one line of <workdir>/runs.jsonl. Stopped at any moment and started again, the queue goes on after
the last whole line. Several queues may work on one folder side by side (one per core or per device): each takes units
that nobody else is on. Runs share datasets, pre-trained models, adapted weights and, within a process, compiled
programs; the seeds of a method follow each other.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import adapt, baselines, collect, imagined, methods, pretrain, rows, runtime, settings, train_loop
from experiments.commands import command
from experiments.evaluate import ANCHORS, Evaluator
from experiments.memo import Memo
from experiments.runs import Run, is_pretrained, kind_of, list_runs, resolve, row_start, settings_tried
from experiments.tables import print_table
from networld_envs.types import Policy
from networld_jax import checkpoints, datasets, ensemble, lookahead, planning
from networld_jax.evaluation import Scores, anchored
from networld_jax.types import Params

# ---------------------------------------------------------------------------------------------------- running


class Learned(NamedTuple):
    """One trained policy."""

    policy: Policy
    params: planning.PolicyParams
    seconds: dict[str, float]  # spent on what other runs use too, and on training


class Queue:
    """Runs of one working folder."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self.config, self.workdir = config, Path(workdir)
        self.file = self.workdir / "runs.jsonl"
        self.methods = methods.table(config)
        self.memo = Memo()
        self.task = ""

    def kind(self, run: Run) -> str:
        """See `runs.kind_of`."""
        return kind_of(self.methods, run)

    def row_start(self, run: Run) -> tuple[ml_collections.ConfigDict, rows.Row]:
        """See `runs.row_start`."""
        return row_start(self.config, run)

    def pending(self, runs: Sequence[Run]) -> list[Run]:
        """Runs without a row."""
        done = {rows.identity(row) for row in rows.read(self.file)}
        return [run for run in runs if rows.identity(self.row_start(run)[1]) not in done]

    def work(self, runs: Sequence[Run]) -> list[str]:
        """Runs everything that has no row yet and that no other queue is on. A run that fails is reported and left out;
        returns what failed."""
        failures = []
        units: dict[tuple, list[Run]] = {}
        for run in runs:
            units.setdefault(run.unit, []).append(run)
        for number, unit in enumerate(units.values(), 1):
            if unit[0].task != self.task:  # the compiled programs of a task serve no other
                self.task = unit[0].task
                self.memo.clear()
            with rows.claimed(self.workdir / "locks" / _digest(str(unit[0].unit))) as mine:
                for run in self.pending(unit) if mine else ():
                    try:
                        self.anchors(run)
                        if not self.pending([run]):  # an anchor may have been the run itself
                            continue
                        row = self.row(run)
                    except (ValueError, RuntimeError) as error:  # a night's work must not end with one bad run
                        failures.append(f"{run.name}: {runtime.one_line(error)}")
                        runtime.warn(failures[-1])
                        continue
                    result = f"reward {row['reward']:.4f}, score {row['score']:.3f}, {row['seconds']:.0f} s"
                    line = f"[{number}/{len(units)}] {run.name}: {result}"
                    runtime.console.print(line, highlight=False, markup=False)
        return failures

    def row(self, run: Run) -> rows.Row:
        """Runs one run and appends its row."""
        config, row = self.row_start(run)
        started = time.monotonic()
        scores, message_bytes, facts = self.score(run, config)
        seconds = time.monotonic() - started - facts.pop("shared_seconds", 0.0)
        low, high = self.anchors(run)
        row |= self.outcome(run, row, scores, (low, high), message_bytes, seconds)
        row["metrics"] = row["metrics"] | facts
        rows.append(self.file, row)
        return row

    def outcome(
        self, run: Run, row: rows.Row, scores: Scores, anchors: tuple[float, float], message_bytes: int, seconds: float
    ) -> rows.Row:
        """The fields of a row that its result fills."""
        finished = [other for other in rows.read(self.file) if other["preset"] == row["preset"]]
        is_learned = self.kind(run) in ("world model", "baseline")
        return {
            "tuning_trials": settings_tried(finished, run.task, run.tier, run.method) if is_learned else 0,
            "message_bytes": message_bytes,
            "instance_rewards": scores.reward.tolist(),
            "reward": scores.mean,
            "score": float(anchored(scores.mean, *anchors)),
            "metrics": {name: float(values.mean()) for name, values in scores.metrics.items()},
            "seconds": round(seconds, 1),
            "device": runtime.device_name(),
            "versions": runtime.versions(),
            "command": command(run),
        }

    # ------------------------------------------------------------------------------------------------ what runs share

    def anchors(self, run: Run) -> tuple[float, float]:
        """Rewards at score 0 and 1 on a run's instances; their rows are written first where they are missing."""
        names = ANCHORS.get(run.task, ("random", "expert"))
        wanted = [Run(run.task, "none", name, split=run.split) for name in names]
        starts = [rows.identity(self.row_start(anchor)[1]) for anchor in wanted]
        with rows.claimed(self.workdir / "locks" / f"anchors_{run.task}_{run.split}", wait=True):
            done = {rows.identity(row): row for row in rows.read(self.file)}
            if any(start not in done for start in starts):
                began = [time.monotonic()]
                results = []
                for anchor in wanted:
                    results.append(self.score(anchor, resolve(self.config, anchor)))
                    began.append(time.monotonic())
                levels = tuple(scores.mean for scores, _, _ in results)
                for i, (anchor, (scores, message_bytes, _)) in enumerate(zip(wanted, results, strict=True)):
                    _, row = self.row_start(anchor)
                    row |= self.outcome(anchor, row, scores, levels, message_bytes, began[i + 1] - began[i])
                    rows.append(self.file, row)
                done = {rows.identity(row): row for row in rows.read(self.file)}
        return tuple(done[start]["reward"] for start in starts)

    def data(self, config: ml_collections.ConfigDict, task: str) -> None:
        """Collects a dataset of the configured tier if it is not there yet."""
        directory = collect.dataset_dir(self.workdir, task, config.collect.tier)
        with rows.claimed(directory.with_suffix(".lock"), wait=True):
            env = settings.environment(config, task)
            collect.collect_task(
                config, self.workdir, task, env, settings.tier_policy(task, env, config.collect.tier)
            )

    def pretrained(self, config: ml_collections.ConfigDict) -> Path:
        """Folder of the pre-trained model of a resolved configuration, trained if it is not there yet."""
        sources = pretrain.source_tasks(config)
        for task in sources:
            self.data(config, task)
        depends = ["tasks", "environment", "collect", "model", "loss", "pretrain"]
        if config.held_out in sources and config.pretrain.few_shot_target:
            depends += ["held_out", "adapt"]
        bare = ml_collections.ConfigDict(config)
        bare.pretrain.sources = sources
        digest = _digest(settings.fingerprint(bare, *depends), config.planner.message_delay_steps)
        name = f"{'_'.join(sources)}_{config.collect.tier}_{digest}_s{config.seed}"
        directory = self.workdir / "pretrained" / name
        return self.made(directory, lambda: pretrain.train_model(config, self.workdir, directory, self.memo))

    def trunk(self, config: ml_collections.ConfigDict) -> Params:
        """What multi_task_bc starts from: cloned from the source tasks, for as long as a world model is pre-trained."""
        sources = pretrain.source_tasks(config)
        for task in sources:
            self.data(config, task)
        digest = _digest(sources, settings.fingerprint(config, "environment", "collect", "pretrain", "baselines"))
        directory = self.workdir / "pretrained" / f"multi_task_bc_{config.collect.tier}_{digest}_s{config.seed}"
        with rows.claimed(directory.with_name(directory.name + ".lock"), wait=True):
            return baselines.train_trunk(config, self.workdir, directory, "multi_task_bc")

    def made(self, directory: Path, make: Callable[[], Path], model: str = "model") -> Path:
        """The finished model in a folder, made under a lock if it is not there; training states are deleted after."""
        with rows.claimed(directory.with_name(directory.name + ".lock"), wait=True):
            if not (directory / model / checkpoints.MODEL_FILE).exists():
                make()
                if model == "model":
                    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        return directory / model

    # ------------------------------------------------------------------------------------------------ kinds of methods

    def score(self, run: Run, config: ml_collections.ConfigDict) -> tuple[Scores, int, dict[str, Any]]:
        """(scores, bytes per message, facts about the run for its metrics)."""
        kinds = {
            "rule": self.rule,
            "behaviour": self.behaviour,
            "ceiling": self.ceiling,
            "world model": functools.partial(self.learned, self.world_model),
            "baseline": functools.partial(self.learned, self.baseline),
        }
        return kinds[self.kind(run)](run, config)

    def evaluate(
        self, run: Run, config: ml_collections.ConfigDict, policy: Policy, policy_params: Any
    ) -> tuple[Scores, int, dict[str, Any]]:
        """Scores on the run's instances, with one compiled program per policy object."""
        protocol = settings.protocol(config, run.task)

        def make():
            env = settings.environment(config, run.task)
            return Evaluator(env, protocol, run.split, config.evaluate.num_parallel)

        side_by_side, worlds = config.evaluate.num_parallel, settings.fingerprint(config, "environment")
        evaluator = self.memo(("evaluator", run.task, run.split, protocol, side_by_side, worlds), make)
        return evaluator(policy, policy_params), policy.message_bytes, {}

    def policy(self, run: Run, config: ml_collections.ConfigDict, key: Any, make: Callable[[], Policy]) -> Policy:
        """The policy object that all runs with this key share."""
        return self.memo(("policy", run.task, run.method, key, settings.fingerprint(config, "environment")), make)

    def rule(self, run: Run, config: ml_collections.ConfigDict) -> tuple[Scores, int, dict[str, Any]]:
        """A hand-written policy."""
        env = settings.environment(config, run.task)
        policy = self.policy(run, config, None, lambda: settings.rule_policy(run.task, env, run.method))
        return self.evaluate(run, config, policy, {})

    def behaviour(self, run: Run, config: ml_collections.ConfigDict) -> tuple[Scores, int, dict[str, Any]]:
        """What collected the data, on the test instances; or the best tenth of the trajectories that it left."""
        if run.method == "best_behaviour":
            self.data(config, run.task)
            data, _ = datasets.load(collect.dataset_dir(self.workdir, run.task, run.tier))
            mask = data.agent_mask[:, None]
            means = (data.reward * mask).sum((1, 2)) / np.broadcast_to(mask, data.reward.shape).sum((1, 2))
            best = np.sort(means)[-max(1, len(means) // 10) :]
            return Scores(best, {}, {}), 0, {"unpaired": 1.0}
        env = settings.environment(config, run.task)
        policy = self.policy(run, config, run.tier, lambda: settings.tier_policy(run.task, env, run.tier))
        return self.evaluate(run, config, policy, {})

    def ceiling(self, run: Run, config: ml_collections.ConfigDict) -> tuple[Scores, int, dict[str, Any]]:
        """One-step lookahead in the true simulator over the high anchor."""
        env = settings.environment(config, run.task)
        base = settings.rule_policy(run.task, env, ANCHORS.get(run.task, ("random", "expert"))[1])
        policy = self.policy(run, config, None, lambda: lookahead.make_lookahead(env, base))
        return self.evaluate(run, config, policy, {})

    def learned(
        self, member_fn: Callable[..., Learned], run: Run, config: ml_collections.ConfigDict
    ) -> tuple[Scores, int, dict[str, Any]]:
        """A trained policy, or `ensemble.num_members` of them acting as one; the first has the run's own seed, so that
        it is shared with the run of a single one."""
        count, members = config.ensemble.num_members, []
        for number in range(count):
            alone = ml_collections.ConfigDict(config)
            alone.seed = member_seed(run.seed, number)
            members.append(member_fn(dataclasses.replace(run, seed=alone.seed), alone))
        policy, params = members[0].policy, members[0].params
        if count > 1:
            learns_messages = self.kind(run) == "world model" and config.model.encoder != "identity"
            together = functools.partial(ensemble.mean_action, policy, count, shared_message=not learns_messages)
            policy = self.memo(("ensemble", policy, count), together)
            params = ensemble.stack([member.params for member in members])
        scores, message_bytes, _ = self.evaluate(run, config, policy, params)
        facts = {name: round(sum(member.seconds[name] for member in members), 1) for name in members[0].seconds}
        return scores, message_bytes, facts

    def trained(self, run: Run, config: ml_collections.ConfigDict) -> tuple[Path, float]:
        """(folder of a world model, seconds spent on what other runs use too): pre-trained (shared), then adapted
        (shared by variants that differ in planning only), what is there already is taken."""
        started = time.monotonic()
        pretrained = Path()
        if not config.adapt.from_scratch:
            pretrained = self.pretrained(config)
        self.data(config, run.task)
        shared_seconds = time.monotonic() - started
        if config.adapt.num_updates:
            depends = ["tasks", "held_out", "environment", "collect", "model", "loss", "adapt"]
            depends += [] if config.adapt.from_scratch else ["pretrain"]
            depends += imagined.depends_on(config)
            digest = _digest(settings.fingerprint(config, *depends), config.planner.message_delay_steps)
            directory = self.workdir / "models" / f"{run.task}_{run.tier}_{digest}_s{run.seed}"
            train_loop.check_updates(config.adapt, "adapt")
            updates = run.num_updates or None
            model = self.made(
                directory,
                lambda: adapt.train_model(config, self.workdir, directory, pretrained, self.memo, updates),
                f"model_{updates}" if updates else "model",
            )
        else:
            model = pretrained
        return model, shared_seconds

    def world_model(self, run: Run, config: ml_collections.ConfigDict) -> Learned:
        """NetWorld and its variants."""
        model, shared_seconds = self.trained(run, config)
        world_model, _ = settings.shared_world_model(config, self.memo)
        _, params, stats, _ = checkpoints.load_model(model)

        def make():
            policy = settings.make_planner(config, world_model, run.task)
            return policy._replace(message_bytes=0, information="own") if run.obs_set == "own" else policy

        key = (run.obs_set, settings.fingerprint(config, "tasks", "model", "planner"))
        policy = self.policy(run, config, key, make)
        seconds = {"shared_seconds": shared_seconds, "train_seconds": train_loop.read_seconds(model.parent)}
        return Learned(policy, planning.PolicyParams(params, stats[run.task]), seconds)

    def baseline(self, run: Run, config: ml_collections.ConfigDict) -> Learned:
        """A baseline of networld_jax.baselines on the same data."""
        started = time.monotonic()
        self.data(config, run.task)
        trunk = self.trunk(config) if is_pretrained(config, run, "baseline") else None
        shared_seconds = time.monotonic() - started
        c = config.baselines
        train_loop.check_updates(c, "baselines")
        spec = settings.environment(config, run.task).spec
        key = settings.fingerprint(config, "environment", "baselines")

        def make():
            baseline = baselines.make_baseline(config, methods.baseline_of(run.method), spec, trunk)
            return baseline, jax.jit(baseline.init), baselines.make_epoch(baseline, c.updates_per_dispatch)

        baseline, init, epoch = self.memo(("baseline", run.task, run.method, key, trunk is None), make)

        def make_data():
            data = pretrain.few_shot_data(config, self.workdir)
            data, stats = baseline.prepare(data, settings.task_stats(config, data, spec))
            return jax.tree.map(jnp.asarray, data), stats

        size = (run.tier, run.num_steps, run.num_topologies)
        data, stats = self.memo(("baseline data", run.task, run.method, key, size), make_data)
        if trunk is not None:  # a seed's own; update and policy are the same functions whatever its values are
            init = baselines.make_baseline(config, methods.baseline_of(run.method), spec, trunk).init
        state = init(jax.random.key(run.seed), stats)
        digest = _digest(key, size, None if trunk is None else settings.fingerprint(config, "pretrain"))
        directory = self.workdir / "models" / f"{run.method}_{run.task}_{run.tier}_{digest}_s{run.seed}"
        length = ml_collections.ConfigDict(c)
        length.num_updates = run.num_updates or c.num_updates
        with rows.claimed(directory.with_name(directory.name + ".lock"), wait=True):
            title = f"{run.method} on {run.task}"
            state = train_loop.train(
                title, directory, state, epoch, (data, stats), length, run.seed, {"loss": "loss"}
            )
        seconds = {"shared_seconds": shared_seconds, "train_seconds": time.monotonic() - started - shared_seconds}
        if not run.num_updates:
            shutil.rmtree(directory, ignore_errors=True)
        return Learned(baseline.policy, planning.PolicyParams(state.ema_params, stats), seconds)


def member_seed(seed: int, number: int) -> int:
    """The seed of an ensemble's member: far from those of other runs, and the ensemble's own for the first."""
    return (seed + 1_000_003 * number) % 2**32


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:10]


# ---------------------------------------------------------------------------------------------------- the command

SECONDS = {"rule": 15.0, "behaviour": 20.0, "ceiling": 300.0, "world model": 75.0, "baseline": 30.0}
"""Assumed cost of a run without a finished one like it (2 CPU cores, preset small)."""


def estimate(finished: Sequence[rows.Row], run: Run, kind: str, preset: str) -> float:
    """Seconds that a run will take: the mean of finished rows of the same task and method (or of the method of which it
    tries a setting), else the constant."""
    for method in (run.method, methods.TUNED_FROM.get(run.method)):
        same = (run.task, method, preset)
        alike = [row["seconds"] for row in finished if (row["task"], row["method"], row["preset"]) == same]
        if alike:
            return float(np.mean(alike))
    return SECONDS[kind]


def announce(queue: Queue, runs: Sequence[Run], pending: Sequence[Run]) -> None:
    """The list of what is to be done, and how long it will take."""
    finished = rows.read(queue.file)
    lines: dict[tuple[str, str, str], list[float]] = {}
    for run in pending:
        seconds = estimate(finished, run, queue.kind(run), queue.config.queue.preset)
        lines.setdefault((run.task, run.method, run.tier), []).append(seconds)
    table = [(f"{task} {method}", tier, len(s), f"{sum(s) / 60:.1f}") for (task, method, tier), s in lines.items()]
    if table:
        print_table(runtime.console, "to run", ("task, method", "tier", "runs", "minutes"), table)
    total = sum(map(sum, lines.values()))
    runtime.console.print(
        f"{len(runs)} runs, {len(runs) - len(pending)} finished, {len(pending)} to go: about {total / 3600:.1f} hours "
        f"on one process, shared data and pre-training not counted; rows go to {queue.file}",
        highlight=False,
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[rows.Row]:
    """Prints the list with its time estimate, runs what is missing, returns the rows of the list."""
    queue = Queue(config, workdir)
    runs = list_runs(config, rows.read(queue.file))
    for one in runs:
        queue.row_start(one)  # a mistake in any run shows before the first one starts
    pending = queue.pending(runs)
    announce(queue, runs, pending)
    failures = [] if config.queue.dry_run else queue.work(runs)
    if failures:
        raise runtime.UserError(f"{len(failures)} of {len(runs)} runs failed, the first: {failures[0]}")
    wanted = {rows.identity(queue.row_start(one)[1]) for one in runs}
    return [row for row in rows.read(queue.file) if rows.identity(row) in wanted]


def publish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Adds the working folder's rows to results/runs.jsonl."""
    del config
    total = rows.merge(Path("results/runs.jsonl"), rows.read(Path(workdir) / "runs.jsonl"))
    runtime.console.print(f"results/runs.jsonl now holds {total} rows", highlight=False)


if __name__ == "__main__":
    runtime.main(run, publish)
