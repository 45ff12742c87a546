"""Environments: steps per second against the per-agent loops, against the number of environments, memory of each.

For figures of one thread pin the process: `taskset -c 0 python -m experiments.benchmark --suite=env ...`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import measure, runtime, settings
from experiments.benchmark import Row, row
from networld_envs.instances import instance_keys
from networld_envs.types import Environment


def make_steps(env: Environment, num_steps: int) -> Callable[..., tuple[Any, jax.Array]]:
    """(key, states [E], actions [E, N, A]) -> (states, mean reward [num_steps]): a scan over vmapped steps."""

    def steps(key, states, actions):
        num_envs = actions.shape[0]

        def one(states, t):
            keys = jax.random.split(jax.random.fold_in(key, t), num_envs)
            states, step = jax.vmap(env.step, (0, 0, 0, None))(keys, states, actions, env.default_params)
            # Everything a learner reads has to be computed.
            used = jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32)), (step.obs, step.reward, step.metrics))
            return states, sum(jax.tree.leaves(used))

        return jax.lax.scan(one, states, jnp.arange(num_steps))

    return steps


def stepper(env: Environment, num_envs: int, num_steps: int) -> tuple[measure.Program, Callable[[], Any], int]:
    """(program, call that goes on where the last one stopped, bytes of one environment's state)."""
    keys = instance_keys(env.spec.name, "validation", num_envs)
    states, _ = jax.jit(jax.vmap(env.reset, (0, None)))(keys, env.default_params)
    low, high = jnp.array(env.spec.action_low), jnp.array(env.spec.action_high)
    uniform = jax.random.uniform(jax.random.key(1), (num_envs, env.spec.max_agents, env.spec.action_dim))
    actions = low + (high - low) * uniform
    if env.spec.action_kind == "integer":
        actions = jnp.round(actions)
    steps = make_steps(env, num_steps)
    program = measure.compiled(steps, jax.random.key(2), states, actions, donate_argnums=1)
    holder = [states]
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) // num_envs

    def call():
        holder[0], total = program.call(jax.random.key(2), holder[0], actions)
        return total

    return program, call, state_bytes


def numpy_forms(task: str) -> dict[str, Any]:
    """{"per-agent loop", "vectorised NumPy": benchmarks.loops.Loop} as far as there are any; empty (with a line that
    says so) outside the repository."""
    try:
        from benchmarks import loops
    except ImportError as error:
        runtime.console.print(f"no per-agent loops ({error}): they are part of the repository, not of the package")
        return {}
    forms = {"per-agent loop": loops.LOOPS, "vectorised NumPy": loops.ARRAYS}
    return {name: made[task]() for name, made in forms.items() if task in made}


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Row]:
    """All rows of the suite."""
    del workdir
    rows = []
    for task in config.benchmark.env.tasks:
        rows += task_rows(config, task)
    return rows


def task_rows(config: ml_collections.ConfigDict, task: str) -> list[Row]:
    """One environment: NumPy forms, then the library at every number of environments."""
    c, env = config.benchmark.env, settings.environment(config, task)
    forms = numpy_forms(task)
    steppers = {count: stepper(env, count, c.steps_per_call[task]) for count in c.num_envs[task]}
    calls = {name: form.call for name, form in forms.items()}
    work = {name: form.env_steps_per_call for name, form in forms.items()}
    for count, (_, call, _) in steppers.items():
        calls[f"{count} at once"], work[f"{count} at once"] = call, count * c.steps_per_call[task]
    times = measure.interleaved(calls, c.seconds_per_comparison, min_rounds=3)
    rate = {name: work[name] / times[name].median for name in calls}
    baseline = next(iter(calls))
    rows = []
    for name, timing in times.items():
        count = 1 if name in forms else int(name.split()[0])
        program, _, state_bytes = (None, None, None) if name in forms else steppers[count]
        rows.append(
            row(
                f"{task}, {name}",
                rate[name],
                "env steps/s",
                baseline=None if name == baseline else f"{task}, {baseline}",
                ratio=None if name == baseline else rate[name] / rate[baseline],
                dtype="float64" if name in forms else "float32",
                sizes=dict(
                    agents=env.spec.max_agents,
                    environments=count,
                    slots_per_step=getattr(env.default_params, "window_slots", 1),
                ),
                us_per_step=1e6 / rate[name],
                p95_us_per_step=1e6 * timing.p95 / work[name],
                trace_s=program and program.trace_s,
                compile_s=program and program.compile_s,
                memory_bytes=program and program.memory_bytes,
                state_bytes_per_env=state_bytes,
                memory_bytes_per_env=program and program.memory_bytes // count,
            )
        )
    return rows
