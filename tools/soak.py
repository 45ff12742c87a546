"""Runs the simulators for a long time under wild actions and holds every step to the laws of the network.

python -m tools.soak [--steps=1000000] [--windows=5000] [--tasks=cbf,rb,ns] [--copies=100] [--publish]

Actions are uniform in a box twice as wide as the allowed one, so that every projection is at work. Each step of each
network must keep the laws: everything is finite;

cbf: transmit power at most P_max, rates not negative;
rb: packets waiting = before + arrived - overflowed - late - delivered, no more RBs granted than asked for, absent nodes
    silent;
ns: packets waiting = before + arrived - judged - left behind by sessions that ended, in every slice; allocations add up
    to the band, satisfaction ratios in [0, 1].
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import networld_envs
from networld_envs import ns_traffic
from networld_envs.types import Environment, TimeStep
from tools import reliability

Laws = Callable[[Any, Any, TimeStep, Any], dict[str, jax.Array]]
"""(state before, state after, TimeStep, params) -> {law: [] bool, True = kept}."""


def cbf_laws(before: Any, after: Any, step: TimeStep, params: Any) -> dict[str, jax.Array]:
    """Power and rates."""
    return {
        "power at most P_max": (step.metrics["power_mw"] <= params.p_max_mw * (1 + 1e-4)).all(),
        "rates not negative": (step.metrics["rate"] >= 0).all(),
    }


def rb_laws(before: Any, after: Any, step: TimeStep, params: Any) -> dict[str, jax.Array]:
    """Packets are conserved, grants within requests, absent nodes silent."""
    m = step.metrics
    arrived = m["arrived_urgent"] + m["arrived_data"] - m["overflow_urgent"] - m["overflow_data"]
    left = m["delivered"] + m["late_urgent"] + m["late_data"]
    absent = ~after.network.alive
    return {
        "packets conserved": (jnp.sum(before.queue, (1, 2)) + arrived - left == jnp.sum(after.queue, (1, 2))).all(),
        "no negative queue": (after.queue >= 0).all(),
        "grants within requests": (after.granted <= after.requests).all(),
        "requests within range": ((after.requests >= 0) & (after.requests <= params.max_request_rbs)).all(),
        "absent nodes silent": jnp.where(absent, after.requests + jnp.sum(after.queue, (1, 2)), 0).sum() == 0,
    }


def ns_laws(before: Any, after: Any, step: TimeStep, params: Any) -> dict[str, jax.Array]:
    """Packets are conserved per slice (users move between cells), the band is shared out, ratios are ratios."""
    gone = jnp.stack([
        sum(step.metrics[f"{what}_{name}"].sum() for what in ("judged", "abandoned")) for name in ns_traffic.SLICES
    ])  # fmt: skip
    waiting = before.backlog.sum(0) + after.arrivals_last.sum(0) - gone
    total_hz = after.alloc_hz.sum(-1)
    return {
        "packets conserved": (waiting == after.backlog.sum(0)).all(),
        "band shared out": (jnp.abs(total_hz - params.bandwidth_hz) <= 1e-4 * params.bandwidth_hz).all(),
        "no negative allocation": (after.alloc_hz >= -1.0).all(),
        "ratios in [0, 1]": ((after.ssr >= 0) & (after.ssr <= 1)).all(),
    }


LAWS: dict[str, Laws] = {"cbf": cbf_laws, "rb": rb_laws, "ns": ns_laws}


def is_finite(tree: Any) -> jax.Array:
    """[] bool: no float of a pytree is nan or infinite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def wild_action(key: jax.Array, env: Environment) -> jax.Array:
    """[N, A] uniform over twice the action box."""
    low, high = jnp.asarray(env.spec.action_low), jnp.asarray(env.spec.action_high)
    uniform = jax.random.uniform(key, (env.spec.max_agents, env.spec.action_dim), minval=-0.5, maxval=1.5)
    return low[None] + (high - low)[None] * uniform


def make_soak(env: Environment, laws: Laws, num_steps: int) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """keys [E] -> {law: number of steps in which it was broken}, for a new network and `num_steps` steps per key."""
    params = env.default_params

    def one(key):
        reset_key, action_key, step_key = jax.random.split(key, 3)
        state, _ = env.reset(reset_key, params)

        def body(state, t):
            action = wild_action(jax.random.fold_in(action_key, t), env)
            after, step = env.step(jax.random.fold_in(step_key, t), state, action, params)
            kept = laws(state, after, step, params) | {"finite": is_finite((after, step))}
            kept["every law"] = jnp.stack(list(kept.values())).all()
            return after, kept

        _, kept = jax.lax.scan(body, state, jnp.arange(num_steps))
        return jax.tree.map(lambda x: (~x).sum(), kept)

    return jax.jit(lambda keys: jax.tree.map(lambda x: x.sum(), jax.vmap(one)(keys)))


def soak(
    task: str, total_steps: int, copies: int, episode_steps: int, seed: int = 0, **parameters: Any
) -> tuple[int, dict[str, int]]:
    """(environment steps run, {law: steps that broke it}), in episodes of `episode_steps` on `copies` networks."""
    env = networld_envs.make(task, **parameters)
    run = make_soak(env, LAWS[task], episode_steps)
    done, broken = 0, {}
    while done < total_steps:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), done), copies)
        for law, count in run(keys).items():
            broken[law] = broken.get(law, 0) + int(count)
        done += copies * episode_steps
    return done, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of cbf and of rb")
    parser.add_argument("--windows", type=int, default=5000, help="windows of ns, 200 slots each")
    parser.add_argument("--tasks", default="cbf,rb,ns")
    parser.add_argument("--copies", type=int, default=100, help="networks side by side (ns: a tenth)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help="write results/reliability.json and its table")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rows = []
    for task in options.tasks.split(","):
        is_slow = task == "ns"
        copies = max(1, options.copies // 10) if is_slow else options.copies
        total = options.windows if is_slow else options.steps
        episode = min(100 if is_slow else 1000, max(1, total // copies))
        started = time.monotonic()
        done, broken = soak(task, total, copies, episode, options.seed)
        seconds = time.monotonic() - started
        print(f"{task}: {done} steps in {seconds:.0f} s ({done / seconds:.0f} per s), broken: {broken}", flush=True)
        unit = "windows of 200 slots" if is_slow else "steps"
        fault = f"{unit} under wild actions, laws held"
        rows.append(reliability.row(f"environment {task}", fault, done, done - broken["every law"]))
    return reliability.finish(rows, options.publish)


if __name__ == "__main__":
    sys.exit(main())
