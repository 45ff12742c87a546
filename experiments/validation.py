"""A configuration is right in every field, and as a whole, before any work starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

import networld_envs
from experiments import baselines, pretrain, rules, settings, train_loop
from experiments.configs import benchmark, calibrate, default, evidence
from experiments.runtime import UserError, flat
from networld_envs import experts


def validate(config: Any) -> None:
    """Raises UserError, one line naming field, value and what is allowed, for the first thing that is wrong."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"get_config() must return an ml_collections.ConfigDict, got {type(config).__name__}")
    values = flat(config)
    for path in ("tasks", "held_out"):  # which fields there must be depends on them
        if path not in values:
            raise UserError(f"the configuration lacks {path!r}, see experiments/configs/default.py")
        check(path, values[path], rules.rule_of(path, None))
    for task in config.tasks:
        check("tasks", task, rules.one_of(sorted(networld_envs.ENVIRONMENTS)))
    defaults = expected(tuple(config.tasks), sections=tuple(config))
    check_names(config, values, defaults)
    for path, value in values.items():
        if not path.startswith("environment."):  # made, and so checked, in check_together
            check(path, value, rules.rule_of(path, defaults.get(path)))
    check_together(config)


def check(path: str, value: Any, rule: rules.Rule) -> None:
    """Raises UserError unless the rule accepts the value."""
    if not rule.accepts(value):
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        raise UserError(f"{path} must be {rule.allowed}, got {shown}")


STAGE_SECTIONS = {"calibrate": calibrate, "queue": evidence, "groups": evidence, "benchmark": benchmark}
"""Sections that one stage reads -> the configuration file that has them."""

FREE = ("environment", "calibrate.variants", "distill.variants", "groups", "gates", "queue.settings")
"""Sections whose fields are names that a user chooses; the environments and the stages check what is in them."""


def expected(tasks: tuple[str, ...], sections: tuple[str, ...]) -> dict[str, Any]:
    """Path -> default of every field that a configuration over these tasks with these sections has."""
    config = default.get_config()
    for section in set(STAGE_SECTIONS) & set(sections):
        config[section] = STAGE_SECTIONS[section].get_config()[section]
    result = {}
    for path, value in flat(config).items():
        head, _, last = path.rpartition(".")
        if path.startswith(tuple(f"{section}." for section in FREE)):
            continue
        if last in default.TASKS:  # one value per task
            result |= {f"{head}.{task}": value for task in tasks}
        else:
            result[path] = value
    return result


def check_names(config: ml_collections.ConfigDict, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises UserError for a field that nothing reads, or one that is missing."""
    tasks = (*config.tasks, *default.TASKS)
    for path in values:
        head, _, last = path.rpartition(".")
        is_per_task = last in tasks and any(known.rpartition(".")[0] == head for known in defaults)
        if path not in defaults and not is_per_task and not path.startswith(tuple(f"{name}." for name in FREE)):
            raise UserError(f"unknown configuration field {path!r}{rules.did_you_mean(path, defaults)}")
    for task in config.environment:
        if task not in tasks:
            raise UserError(f"unknown task {task!r} in environment{rules.did_you_mean(task, tasks)}")
    for path in defaults:
        if path not in values:
            raise UserError(f"the configuration lacks {path!r} (default {defaults[path]!r})")


@contextlib.contextmanager
def named(section: str) -> Iterator[None]:
    """Puts the section in front of what an object says about its own fields."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"{section}: {' '.join(str(error).split())}") from error


def check_parameters(task: str, parameters: Mapping[str, Any]) -> None:
    """Numbers are given where an environment's parameter is one; the environment itself checks names and ranges."""
    if not parameters:
        return
    defaults = networld_envs.make(task).default_params
    for name, value in parameters.items():
        if isinstance(getattr(defaults, name, None), int | float) and value is not None:
            kind = rules.like(getattr(defaults, name))
            is_number = kind is not rules.FLAG and rules.FINITE.accepts(value)
            if not (is_number or kind.accepts(value)):
                rule = rules.FLAG if kind is rules.FLAG else rules.FINITE
                raise UserError(f"environment.{task}.{name} must be {rule.allowed}, got {value!r}")


def check_together(config: ml_collections.ConfigDict) -> None:
    """Fields that must suit each other: the objects that are made of them say so."""
    envs = {}
    for task in config.tasks:
        check_parameters(task, config.environment.get(task, {}))
        with named(f"environment.{task}"):
            envs[task] = settings.environment(config, task)
    settings.environments(config)
    pretrain.source_tasks(config)
    for field, choices in (("tasks", config.tasks), ("float64", (*config.tasks, *default.TASKS))):
        for name in config.collect[field]:
            check(f"collect.{field}", name, rules.one_of(choices))
    for task in config.collect.tasks or config.tasks:
        tiers = experts.tiers(task, envs[task].default_params)
        check("collect.tier", config.collect.tier, rules.one_of(sorted(tiers)))
    with named("model"):
        settings.world_model(config, envs)
    with named("loss"):
        settings.loss_config(config)
    with named("planner"):
        settings.planner_config(config)
    for section in ("pretrain", "adapt", "baselines"):
        train_loop.check_updates(config[section], section)
    for method in config.baselines.methods:
        with named("baselines.methods"):
            baselines.base_name(method)
    for method in baselines.DEFAULTS:
        with named(f"baselines.{method}"):
            baselines.baseline_config(config, method)
    rules_of_target = experts.policies(config.held_out, envs[config.held_out].default_params)
    learned = ("networld", "networld_scratch")
    for name in config.evaluate.policies:
        if not baselines.is_baseline(name):
            choices = (*learned, *baselines.BASELINES, *sorted(rules_of_target))
            check("evaluate.policies", name, rules.one_of(choices))
    check_variants(config)
    if "queue" in config:
        check_settings(config)
    check_lengths(config)


def check_variants(config: ml_collections.ConfigDict) -> None:
    """Planner settings that the distill stage compares: fields of the planner, each by its rule."""
    for name, changes in config.distill.variants.items():
        check_changes(f"distill.variants.{name}", changes, "planner")


def check_settings(config: ml_collections.ConfigDict) -> None:
    """What the queue sets by tier and task: fields of any section of default.py, each by its rule."""
    by_tier = config.queue.settings
    check("queue.settings", "mixed", rules.one_of(sorted(by_tier)))  # what other tiers fall back to
    for tier, by_task in by_tier.items():
        for task, changes in by_task.items():
            check(f"queue.settings.{tier}", task, rules.one_of((*config.tasks, *default.TASKS)))
            check_changes(f"queue.settings.{tier}.{task}", changes)


def check_changes(path: str, changes: Any, section: str = "") -> None:
    """Raises UserError unless `changes` are fields of a section of default.py (or of all of it), each by its rule."""
    if not isinstance(changes, ml_collections.ConfigDict):
        raise UserError(f"{path} must be a section with fields of {section or 'default.py'}, got {changes!r}")
    prefix, defaults = f"{section}." if section else "", flat(default.get_config())
    for field, value in flat(changes).items():
        full = f"{path}.{field}"
        if prefix + field not in defaults:
            known = [f"{path}.{name.removeprefix(prefix)}" for name in defaults if name.startswith(prefix)]
            raise UserError(f"unknown configuration field {full!r}{rules.did_you_mean(full, known)}")
        check(full, value, rules.rule_of(prefix + field, defaults[prefix + field]))


def check_lengths(config: ml_collections.ConfigDict) -> None:
    """Trajectories hold at least one window, and as many are collected as adaptation wants."""
    collect, adapt, target = config.collect, config.adapt, config.held_out
    for task in config.tasks:
        if collect.num_steps[task] < settings.window_steps(config):
            raise UserError(
                f"collect.num_steps.{task} must be at least {settings.window_steps(config)}, the larger of "
                f"model.horizon and loss.label_horizon, got {collect.num_steps[task]}"
            )
    if adapt.num_trajectories > collect.num_trajectories[target]:
        raise UserError(
            f"adapt.num_trajectories must be at most collect.num_trajectories.{target}="
            f"{collect.num_trajectories[target]}, got {adapt.num_trajectories}"
        )
    available = (adapt.num_trajectories or collect.num_trajectories[target]) * collect.num_steps[target]
    if adapt.num_steps > available:
        raise UserError(f"adapt.num_steps must be in 0..{available} (what there is), got {adapt.num_steps}")
