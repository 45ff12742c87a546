"""Planning in the loop: environment steps per second with the planner in one compiled scan, and who takes the time.

The shares are differences between runs with parts left out: without guidance, without the denoiser (the present
repeated as the plan), without a planner. Also one agent's decision by itself: encode, message, plan, inverse dynamics.
Weights are untrained; no branch depends on them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import distill, measure, settings, train_loop
from experiments.benchmark import Row, row
from experiments.suites.train import logged_data
from networld_envs.instances import instance_keys
from networld_envs.types import Environment, Policy
from networld_jax import distillation, normalisation, planning
from networld_jax.costs import matmul_flops, num_parameters
from networld_jax.evaluation import Protocol, charge_messages, episode_means
from networld_jax.mean_field import mean_field, quantise
from networld_jax.schedules import cosine_schedule
from networld_jax.world_model import WorldModel

POLICY_OF = {"chain student": "chain, 1 step", "row student": "row, 1 step"}
"""Row -> its planner in `experiments.distill`, where the names differ."""


def still_policy(env: Environment) -> Policy:
    """The same legal action at every step: the environment by itself."""
    action = jnp.broadcast_to(
        (jnp.array(env.spec.action_low) + jnp.array(env.spec.action_high)) / 2,
        (env.spec.max_agents, env.spec.action_dim),
    )
    action = action + 0.25 * (jnp.array(env.spec.action_high) - jnp.array(env.spec.action_low))
    return Policy(lambda key, num_agents: (), lambda key, params, carry, obs, graph, state: (action, carry))


def planned_weights(config: ml_collections.ConfigDict, env: Environment, model: WorldModel) -> planning.PolicyParams:
    """Untrained weights, and constants out of a little random play."""
    data = logged_data(config, env.spec.name, 2, max(24, 2 * model.config.horizon))
    stats = normalisation.task_stats(data, env.spec, model.config)
    return planning.PolicyParams(train_loop.make_init(model)(jax.random.key(0)), stats)


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Row]:
    """All rows of the suite."""
    rows = []
    for task in config.benchmark.closed_loop.tasks:
        env = settings.environment(config, task)
        model = settings.world_model(config, {task: env})
        weights = planned_weights(config, env, model)
        deltas = distill.return_deltas(workdir, task)
        rows += loop_rows(config, env, model, weights, deltas)
        if task == config.held_out:
            rows += decision_rows(config, env, model, weights, deltas)
    return rows


def loop_rows(
    config: ml_collections.ConfigDict,
    env: Environment,
    model: WorldModel,
    weights: planning.PolicyParams,
    deltas: dict[str, float],
) -> list[Row]:
    """Whole episodes with and without parts of the planner."""
    c, task = config.benchmark.closed_loop, env.spec.name
    schedule, planner = cosine_schedule(model.config.diffusion_steps), settings.planner_config(config)
    unguided = dataclasses.replace(planner, guide_scale=0.0)
    policies = {
        "guided planner": planning.make_planner(model, schedule, task, planner),
        "without classifier": planning.make_planner(model, schedule, task, unguided),
        "without denoiser": planning.make_planner(
            model, schedule, task, planner, imagine_fn=planning.repeat_present(model)
        ),
        "environment alone": still_policy(env),
    }
    parameters = dict.fromkeys(policies, weights)
    student = distill.make_student(config, model, "row", task=task)
    student_weights = jax.jit(student.init)(jax.random.key(0), weights.params)
    policies["row student"] = planning.make_planner(model, schedule, task, planner, imagine_fn=student.imagine)
    parameters["row student"] = distillation.with_student(weights, student_weights)
    keys = instance_keys(task, "validation", c.num_envs[task])
    protocol = Protocol(len(keys), c.num_steps[task])
    programs = {}
    for name, policy in policies.items():

        def episodes(keys, weights, policy=policy):
            params = charge_messages(env.default_params, policy)
            return jax.vmap(lambda key: episode_means(key, env, params, policy, weights, protocol)[0])(keys)

        programs[name] = measure.compiled(episodes, keys, parameters[name])
    calls = {name: functools.partial(p.call, keys, parameters[name]) for name, p in programs.items()}
    times = measure.interleaved(calls, c.seconds_per_comparison, min_rounds=3)
    seconds = {name: timing.median for name, timing in times.items()}
    full = seconds["guided planner"]
    shares = {
        "environment": seconds["environment alone"] / full,
        "encoder, messages, inverse dynamics": (seconds["without denoiser"] - seconds["environment alone"]) / full,
        "denoiser": (seconds["without classifier"] - seconds["without denoiser"]) / full,
        "classifier and its gradient": (full - seconds["without classifier"]) / full,
    }
    steps = len(keys) * protocol.num_steps
    sizes = dict(
        agents=env.spec.max_agents,
        environments=len(keys),
        steps=protocol.num_steps,
        preset=config.preset,
        horizon=model.config.horizon,
        evaluations=planner.num_steps,
        obs_dim=env.spec.obs_dim,
        action_dim=env.spec.action_dim,
    )
    broadcast = planning.message_bytes(model, task, planner.message_bits)
    planned = {"message_bytes_per_decision": broadcast}
    return [
        row(
            f"{task}, {name}",
            steps / seconds[name],
            "env steps/s",
            baseline=None if name == "guided planner" else f"{task}, guided planner",
            ratio=None if name == "guided planner" else full / seconds[name],
            return_delta=deltas.get(POLICY_OF.get(name, name)),
            sizes=sizes,
            plans_per_s=steps * env.spec.max_agents / seconds[name],
            p95_s_per_call=times[name].p95,
            share_of_time=shares if name == "guided planner" else None,
            trace_s=programs[name].trace_s,
            compile_s=programs[name].compile_s,
            memory_bytes=programs[name].memory_bytes,
            **(planned if name == "guided planner" or "student" in name else {}),
        )
        for name in policies
    ]


def decision(
    model: WorldModel, task: str, imagine: planning.ImagineFn, num_bits: int, limit: float
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(weights, key, obs [O], received messages [degree, D]) -> (action [A], message [D]): what one agent computes."""

    def decide(weights, key, obs, received):
        z = model.encode(weights.params, weights.stats, task, obs)
        star = jnp.zeros((len(received) + 1,) * 2).at[0, 1:].set(1.0)
        heard = mean_field(jnp.concatenate([z[None], received]), star)[0]
        x = imagine(weights, key[None], z[None], heard[None])
        action = planning.decode_plans(model, task, weights, x)[0]
        return action, quantise(z, num_bits, limit)

    return decide


def decision_rows(
    config: ml_collections.ConfigDict,
    env: Environment,
    model: WorldModel,
    weights: planning.PolicyParams,
    deltas: dict[str, float],
) -> list[Row]:
    """Latency of one decision of one agent: the guided planner, its other settings, its distilled students, the inverse
    model alone."""
    c, task = config.benchmark.closed_loop, env.spec.name
    schedule, planner = cosine_schedule(model.config.diffusion_steps), settings.planner_config(config)
    students = {name: distill.make_student(config, model, name) for name in ("chain", "row")}
    guided = planning.diffusion_imagination(model, schedule, task, planner, settings.sampler(config))
    imagines: dict[str, tuple[planning.ImagineFn, Any]] = {
        "guided planner": (guided, weights),
        "without plan": (planning.repeat_present(model), weights),
    }
    for name in c.variants:
        changed = distill.with_planner(config, config.distill.variants[name])
        imagine = planning.diffusion_imagination(
            model, schedule, task, settings.planner_config(changed), settings.sampler(changed)
        )
        imagines[name] = (imagine, weights)
    for name, student in students.items():
        student_weights = jax.jit(student.init)(jax.random.key(0), weights.params)
        imagines[f"{name} student"] = (student.imagine, distillation.with_student(weights, student_weights))
    obs = jnp.ones(env.spec.obs_dim)
    received = jnp.zeros((c.num_neighbours, model.config.latent_dim))
    calls, programs, flops, sizes = {}, {}, {}, {}
    for name, (imagine, params) in imagines.items():
        decide = decision(model, task, imagine, planner.message_bits, planner.message_range)
        arguments = (params, jax.random.key(1), obs, received)
        programs[name] = measure.compiled(decide, *arguments)
        calls[name] = functools.partial(programs[name].call, *arguments)
        flops[name] = matmul_flops(decide, *arguments)
        sizes[name] = num_parameters(params.params)
    times = measure.interleaved(calls, c.seconds_per_comparison, min_rounds=20)
    peak = measure.measure_peaks().matmul_flops_per_s  # apart: it would leave a decision of a millisecond cold caches
    full = times["guided planner"].median
    return [
        row(
            f"one decision on {task}, {name}",
            1e3 * times[name].median,
            "ms",
            baseline=None if name == "guided planner" else f"one decision on {task}, guided planner",
            ratio=None if name == "guided planner" else full / times[name].median,
            share_of_peak=flops[name] / times[name].median / peak,
            return_delta=deltas.get(POLICY_OF.get(name, name)),
            sizes=dict(agents=1, preset=config.preset, neighbours=c.num_neighbours, horizon=model.config.horizon),
            p95_ms=1e3 * times[name].p95,
            mflops=flops[name] / 1e6,
            num_parameters=sizes[name],
            message_bytes=planning.message_bytes(model, task, planner.message_bits),
            compile_s=programs[name].compile_s,
            memory_bytes=programs[name].memory_bytes,
        )
        for name in imagines
    ]
