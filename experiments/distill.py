"""Distils the guided planner of an adapted model into students that plan in one evaluation, and compares their returns.

    python -m experiments.distill --config=experiments/configs/demo.py --workdir=runs/demo [--publish]

Reads <workdir>/<adapt|scratch>_<held_out>/model and the few-shot data of the held-out task, writes
<workdir>/distill_<student>_<held_out>/ (metrics.jsonl, checkpoints/, model/) and
<workdir>/distillation_<held_out>.json: teacher and students on the same instances, with the one-sided 95 % bound of the
loss in units of the random-expert span.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import runtime, settings, train_loop
from experiments.adapt import adapt_dir, few_shot_data
from experiments.evaluate import Evaluator
from experiments.pretrain import segments_per_update
from experiments.tables import print_table
from networld_envs.types import Policy
from networld_jax import checkpoints, distillation, planning, training
from networld_jax.distillation import Student
from networld_jax.evaluation import Scores, paired_difference
from networld_jax.files import write_atomically
from networld_jax.schedules import cosine_schedule
from networld_jax.world_model import WorldModel

STUDENTS = ("chain", "row", "noisy_row")
MARGIN = 0.02  # of the random-expert span: what a faster planner may lose
ONE_SIDED_95 = 1.645  # standard errors


def distill_dir(workdir: Path, student: str, held_out: str) -> Path:
    """Where a student lives."""
    return Path(workdir) / f"distill_{student}_{held_out}"


def make_student(
    config: ml_collections.ConfigDict, model: WorldModel, name: str, num_steps: int = 1, task: str | None = None
) -> Student:
    """A student of the configured planner by name, for the held-out task or `task`. Raises ValueError naming the
    choices."""
    task, planner = task or config.held_out, settings.planner_config(config)
    arguments = (model, cosine_schedule(model.config.diffusion_steps), task, planner)
    sampler, hidden = settings.sampler(config), tuple(config.distill.hidden)
    if name == "chain":
        return distillation.chain_student(*arguments, num_steps=num_steps, sampler=sampler)
    if name in ("row", "noisy_row"):
        noise_rows = model.config.horizon if name == "noisy_row" else 0
        return distillation.row_student(*arguments, hidden=hidden, noise_rows=noise_rows, sampler=sampler)
    raise ValueError(f"student must be one of {STUDENTS}, got {name!r}")


def train_student(config: ml_collections.ConfigDict, workdir: Path, name: str) -> Path:
    """Trains (or resumes) one student; returns the folder of the teacher's model with the student's weights."""
    c, task = config.distill, config.held_out
    train_loop.check_updates(c, "distill")
    source = adapt_dir(workdir, task, c.model == "scratch") / "model"
    model, params, stats, facts = checkpoints.load_model(source)
    teacher = planning.PolicyParams(params, stats[task])
    directory = distill_dir(workdir, name, task)
    runtime.save_config(config, directory, "distill", ("seed", "collect", "model", "planner", "adapt", "distill"))

    student, spec = make_student(config, model, name), model.specs[task]
    rate = training.learning_rate_schedule(c.learning_rate, c.num_updates, c.warmup_updates)
    optimiser = training.make_optimiser(rate)
    loss = distillation.distillation_loss(student, model, task, settings.planner_config(config))
    update = training.make_update(loss, optimiser, c.ema_decay)
    count = segments_per_update({task: spec}, c.sequences)[task]
    sample = distillation.state_sampler(count, spec.message_delay_steps)
    epoch = jax.jit(training.make_epoch(update, sample, c.updates_per_dispatch), donate_argnums=0)
    state = training.init_train_state(student.init(jax.random.key(config.seed), params), optimiser)
    data = (jax.tree.map(jnp.asarray, few_shot_data(config, workdir)), teacher)
    title, shown = f"distil {name} on {task}", {"loss": "loss"}
    state = train_loop.train(title, directory, state, epoch, data, c, config.seed, shown, config.tracker)
    weights = distillation.with_student(teacher, state.ema_params)
    checkpoints.save_model(
        directory / "model", model, weights.params, stats, **(facts | dict(stage="distill", student=name))
    )
    return directory / "model"


def load_student(
    config: ml_collections.ConfigDict, workdir: Path, name: str, num_steps: int = 1
) -> tuple[Policy, planning.PolicyParams]:
    """A trained student as (policy, its parameters)."""
    task = config.held_out
    model, params, stats, _ = checkpoints.load_model(distill_dir(workdir, name, task) / "model")
    student = make_student(config, model, name, num_steps)
    policy = settings.make_planner(config, model, task, imagine_fn=student.imagine)
    return policy, planning.PolicyParams(params, stats[task])


def with_planner(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration with some fields of its planner replaced."""
    changed = ml_collections.ConfigDict(config)
    changed.planner = ml_collections.ConfigDict(dict(config.planner) | dict(changes))
    return changed


def policies(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, tuple[Policy, Any]]:
    """The teacher first, then its students and its own other settings, then the anchors of the score."""
    task = config.held_out
    env = settings.environment(config, task)
    source = adapt_dir(workdir, task, config.distill.model == "scratch") / "model"
    model, params, stats, _ = checkpoints.load_model(source)
    weights = planning.PolicyParams(params, stats[task])
    found = {"teacher": (settings.make_planner(config, model, task), weights)}
    for name in config.distill.students:
        found[f"{name}, 1 step"] = load_student(config, workdir, name)
        if name == "chain":
            found["chain, 2 steps"] = load_student(config, workdir, name, 2)
    for name, changes in config.distill.variants.items():
        found[name] = (settings.make_planner(with_planner(config, changes), model, task), weights)
    anchors = ("random", "expert")
    return found | {name: (settings.rule_policy(task, env, name), {}) for name in anchors}


def non_inferiority(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Every policy against "teacher" on the same instances, in units of the random-expert span.

    `lower_bound` is the one-sided 95 % bound of the paired difference; a policy is not inferior when it lies above
    -MARGIN.
    """
    span = scores["expert"].mean - scores["random"].mean
    rows = {}
    for name, s in scores.items():
        difference, error = paired_difference(s.reward, scores["teacher"].reward)
        bound = (difference - ONE_SIDED_95 * error) / span
        rows[name] = {
            "reward": s.mean,
            "sem": s.sem,
            "return_delta": difference / span,
            "return_delta_sem": error / span,
            "lower_bound": bound,
            "non_inferior": bool(bound > -MARGIN),
            "instances": len(s.reward),
        }
    return rows


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the configured students and evaluates them; returns the content of the result file."""
    if config.distill.model not in ("adapt", "scratch"):
        raise ValueError(f"distill.model must be 'adapt' or 'scratch', got {config.distill.model!r}")
    if unknown := set(config.distill.students) - set(STUDENTS):
        raise ValueError(f"distill.students must be among {STUDENTS}, got {sorted(unknown)}")
    for name in config.distill.students:
        train_student(config, workdir, name)
    task, protocol = config.held_out, settings.protocol(config, config.held_out)
    env = settings.environment(config, task)
    evaluator = Evaluator(env, protocol, config.evaluate.split, config.evaluate.num_parallel)
    candidates, scores = policies(config, workdir), {}
    with runtime.progress(f"evaluate on {task}", len(candidates) * protocol.num_instances) as advance:
        for name, (policy, policy_params) in candidates.items():
            scores[name] = evaluator(policy, policy_params, advance)
    rows = non_inferiority(scores)
    result = {
        "held_out": task,
        "model": config.distill.model,
        "steps": protocol.num_steps,
        "policies": rows,
        "margin": MARGIN,
        "seed": config.seed,
        **runtime.provenance(),
    }
    write_atomically(Path(workdir) / f"distillation_{task}.json", json.dumps(result, indent=1).encode())
    table = [
        (name, f"{r['reward']:.3f} ± {r['sem']:.3f}", f"{r['return_delta']:+.3f}", f"{r['lower_bound']:+.3f}")
        for name, r in rows.items()
    ]
    header = ("policy", "reward ± s.e.", "against teacher / span", "95 % bound")
    print_table(runtime.console, f"{task}: {protocol.num_instances} instances x {protocol.num_steps}", header, table)
    return result


def return_deltas(workdir: Path, task: str, baseline: str = "teacher") -> dict[str, float]:
    """Closed-loop return of planners against one of them, in units of the random-expert span, out of the newest
    `experiments.distill` result; empty where there is none with that baseline."""
    for path in (Path(workdir) / f"distillation_{task}.json", Path("results/distillation.json")):
        if path.exists():
            result = json.loads(path.read_text())
            deltas = {name: r["return_delta"] for name, r in result["policies"].items()}
            if result["held_out"] == task and baseline in deltas:
                return {name: delta - deltas[baseline] for name, delta in deltas.items()}
    return {}


def publish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """results/distillation.json."""
    content = (Path(workdir) / f"distillation_{config.held_out}.json").read_bytes()
    write_atomically(Path("results/distillation.json"), content)


if __name__ == "__main__":
    runtime.main(run, publish)
