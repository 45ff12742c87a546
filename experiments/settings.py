"""A configuration turned into the library's own objects, so that every mistake shows before any work starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

import networld_envs
from experiments import train_loop
from experiments.memo import Memo
from networld_envs import experts
from networld_envs.types import Environment, Policy, TaskSpec
from networld_jax import normalisation, planning, sharding
from networld_jax.evaluation import Protocol
from networld_jax.presets import SAMPLERS
from networld_jax.schedules import cosine_schedule
from networld_jax.types import LossConfig, Params, PlannerConfig, TaskStats, Trajectories, WorldModelConfig
from networld_jax.world_model import WorldModel, make_world_model


def fingerprint(config: ml_collections.ConfigDict, *sections: str) -> str:
    """The values of some sections as one string: the key of what depends on them alone."""
    values = json.loads(config.to_json_best_effort())
    return json.dumps({name: values[name] for name in sections}, sort_keys=True)


def from_config(cls: type, config: ml_collections.ConfigDict, **changes: Any) -> Any:
    """A frozen dataclass out of the fields of a config that it knows.

    Raises ValueError from the class's own checks.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    return cls(**(fields | changes))


def environment(config: ml_collections.ConfigDict, task: str, **changes: Any) -> Environment:
    """The environment of a task with the configuration's overrides, and `changes` on top."""
    return networld_envs.make(task, **dict(config.environment.get(task, {})) | changes)


def environments(config: ml_collections.ConfigDict) -> dict[str, Environment]:
    """All tasks, in the order of the task embedding. Raises ValueError when the held-out task is not among them."""
    if config.held_out not in config.tasks:
        raise ValueError(f"held_out must be one of tasks {tuple(config.tasks)}, got {config.held_out!r}")
    return {task: environment(config, task) for task in config.tasks}


def tier_policy(task: str, env: Environment, tier: str) -> Policy:
    """The policy that collects a tier. Raises ValueError naming the tiers of the task."""
    tiers = experts.tiers(task, env.default_params)
    if tier not in tiers:
        raise ValueError(f"tier must be one of {sorted(tiers)} for {task}, got {tier!r}")
    return tiers[tier]


def rule_policy(task: str, env: Environment, name: str) -> Policy:
    """A rule or expert by its name in the tables. Raises ValueError naming the policies of the task."""
    rules = experts.policies(task, env.default_params)
    if name not in rules:
        raise ValueError(f"policy must be one of {sorted(rules)} for {task}, got {name!r}")
    return rules[name]


def world_model(config: ml_collections.ConfigDict, envs: dict[str, Environment]) -> WorldModel:
    """The world model over all configured tasks."""
    return make_world_model(from_config(WorldModelConfig, config.model), [env.spec for env in envs.values()])


def shared_world_model(config: ml_collections.ConfigDict, memo: Memo) -> tuple[WorldModel, Callable[..., Params]]:
    """(world model, its compiled init), the same objects for every run with these tasks and sizes."""

    def make():
        model = world_model(config, environments(config))
        return model, train_loop.make_init(model)

    return memo(("world model", fingerprint(config, "tasks", "environment", "model")), make)


def loss_config(config: ml_collections.ConfigDict) -> LossConfig:
    """The joint loss."""
    return from_config(LossConfig, config.loss)


def planner_config(config: ml_collections.ConfigDict) -> PlannerConfig:
    """The planner; a delay of -1 means what the task declares."""
    delay = config.planner.message_delay_steps
    return from_config(PlannerConfig, config.planner, message_delay_steps=None if delay < 0 else delay)


def sampler(config: ml_collections.ConfigDict) -> Callable[..., jax.Array]:
    """The sampling function. Raises ValueError naming the choices."""
    return _choose(SAMPLERS, config.planner.sampler, "planner.sampler")


def make_planner(config: ml_collections.ConfigDict, model: WorldModel, task: str, **changes: Any) -> Policy:
    """NetWorld's policy as configured; `changes` go to `planning.make_planner`."""
    schedule = cosine_schedule(model.config.diffusion_steps)
    functions = planner_functions(config, model, task)
    return planning.make_planner(model, schedule, task, planner_config(config), **(functions | changes))


def planner_functions(config: ml_collections.ConfigDict, model: WorldModel, task: str) -> dict[str, Callable]:
    """Sampler, ranking and imagination as configured: the functions that a planner is made of."""
    ranks = {"return": planning.rank_by_return, "action_value": planning.rank_by_action_value}
    rank_fn = _choose(ranks, config.planner.rank, "planner.rank")(model, task)
    return {"sampler": sampler(config), "rank_fn": rank_fn, "imagine_fn": imagination(config, model, task)}


def imagination(config: ml_collections.ConfigDict, model: WorldModel, task: str) -> planning.ImagineFn:
    """What fills the plan: guided diffusion, or a control."""

    def diffusion():
        ascent = planning.return_gradient(model, task)
        ascents = {
            "return": lambda: None,  # the planner's own way to the same gradient, in one pass with the prediction
            "flipped": lambda: planning.flipped(ascent),
            "random": lambda: planning.random_direction(ascent, model.channel_mask(task)),
            "value": lambda: planning.value_gradient(model, task, ascent),
        }
        guidance = _choose(ascents, config.planner.guidance, "planner.guidance")()
        schedule = cosine_schedule(model.config.diffusion_steps)
        return planning.diffusion_imagination(model, schedule, task, planner_config(config), sampler(config), guidance)

    ways = {
        "diffusion": diffusion,
        "present": lambda: planning.repeat_present(model),
        "noise": lambda: planning.random_imagination(model, task),
    }
    return _choose(ways, config.planner.imagine, "planner.imagine")()


def message_delay(config: ml_collections.ConfigDict, spec: TaskSpec) -> int:
    """Age of messages in steps, in training as in execution: what the planner is configured for, or the task's."""
    return spec.message_delay_steps if config.planner.message_delay_steps < 0 else config.planner.message_delay_steps


def window_steps(config: ml_collections.ConfigDict) -> int:
    """Length of training windows: the plan's horizon, or the label's where that reaches further."""
    return max(config.model.horizon, config.loss.label_horizon)


def task_stats(config: ml_collections.ConfigDict, data: Trajectories, spec: TaskSpec) -> TaskStats:
    """Normalisation constants, the return's over the steps that labels count."""
    model = from_config(WorldModelConfig, config.model)
    counted = config.loss.label_horizon or model.horizon
    return normalisation.task_stats(data, spec, dataclasses.replace(model, horizon=counted), config.loss.discount)


def _choose(choices: Mapping[str, Any], name: str, field: str) -> Any:
    if name not in choices:
        raise ValueError(f"{field} must be one of {sorted(choices)}, got {name!r}")
    return choices[name]


def mesh(config: ml_collections.ConfigDict) -> Mesh | None:
    """The devices of the run; None for a single one."""
    return sharding.make_mesh(config.mesh.data, config.mesh.model)


def protocol(config: ml_collections.ConfigDict, task: str) -> Protocol:
    """How the task is scored."""
    e = config.evaluate
    return Protocol(e.num_instances[task], e.num_steps[task], e.burn_in_steps[task])
