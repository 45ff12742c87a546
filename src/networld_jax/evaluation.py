"""Scores on fixed instances: paired means, intervals, anchored scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs import instances
from networld_envs.types import Environment, Policy
from networld_jax.rollout import advance, start
from networld_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a task is scored: the first `burn_in_steps` of every episode are run but not counted."""

    num_instances: int = 16
    num_steps: int = 200
    burn_in_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Scores:
    """Result per instance; everything is a mean over counted steps and present agents."""

    reward: np.ndarray  # [instances]
    metrics: dict[str, np.ndarray]  # name -> [instances]

    @property
    def mean(self) -> float:
        return float(self.reward.mean())

    @property
    def sem(self) -> float:
        """Standard error over instances."""
        return standard_error(self.reward)


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def agent_mean(values: jax.Array, agent_mask: jax.Array) -> jax.Array:
    """Mean over present agents of [..., N] with mask [N]."""
    mask = jnp.broadcast_to(agent_mask, values.shape)
    return jnp.sum(jnp.where(mask > 0, values, 0.0), axis=-1) / jnp.maximum(mask.sum(-1), 1.0)


def episode_scores(
    key: jax.Array,
    env: Environment,
    env_params: Any,
    policy: Policy,
    policy_params: Params,
    protocol: Protocol,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(mean reward [], metrics {name: []}) of one instance. Pure; vmap over keys."""
    loop = start(key, env, env_params, policy)
    mask = env.agent_mask(loop[0], env_params)

    def counted(loop, t):
        loop, (time_step, _) = advance(key, t, loop, env, env_params, policy, policy_params)
        metrics = {k: agent_mean(v, mask) if v.ndim else v for k, v in time_step.metrics.items()}
        return loop, (agent_mean(time_step.reward, mask), metrics)

    loop, _ = jax.lax.scan(lambda l, t: (counted(l, t)[0], None), loop, jnp.arange(protocol.burn_in_steps))
    steps = protocol.burn_in_steps + jnp.arange(protocol.num_steps)
    _, (reward, metrics) = jax.lax.scan(counted, loop, steps)
    return reward.mean(), {k: v.astype(jnp.float32).mean() for k, v in metrics.items()}


def make_evaluator(env: Environment, policy: Policy, protocol: Protocol):
    """Compiled (keys [I], policy_params, env_params) -> (reward [I], metrics {name: [I]}); reuse it for many parameters."""

    @jax.jit
    def run(keys, policy_params, env_params):
        def one(key):
            return episode_scores(key, env, env_params, policy, policy_params, protocol)

        return jax.vmap(one)(keys)

    return run


def evaluate(
    env: Environment,
    policy: Policy,
    policy_params: Params,
    protocol: Protocol,
    split: str = "test",
    env_params: Any = None,
    batch_size: int | None = None,
) -> Scores:
    """Scores of a policy on the first `protocol.num_instances` instances of a split (see `networld_envs.instances`).

    `batch_size` instances run side by side (None = all); the result does not depend on it beyond rounding.
    """
    env_params = env.default_params if env_params is None else env_params
    keys = instances.instance_keys(env.spec.name, split, protocol.num_instances)
    run = make_evaluator(env, policy, protocol)
    size = batch_size or protocol.num_instances
    parts = [run(keys[i : i + size], policy_params, env_params) for i in range(0, protocol.num_instances, size)]
    reward = np.concatenate([np.asarray(reward) for reward, _ in parts])
    metrics = {k: np.concatenate([np.asarray(m[k]) for _, m in parts]) for k in parts[0][1]}
    return Scores(reward, metrics)


def anchored(reward: np.ndarray | float, low: float, high: float) -> np.ndarray | float:
    """Score (reward - low) / (high - low): 0 at the low anchor (random), 1 at the high one (best realisable rule or expert).

    Raises ValueError when the anchors coincide.
    """
    if np.isclose(low, high):
        raise ValueError(f"anchors must differ, got low={low} and high={high}")
    return (reward - low) / (high - low)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(mean, standard error) of a - b over the same instances."""
    if a.shape != b.shape:
        raise ValueError(f"paired results need equal shapes, got {a.shape} and {b.shape}")
    return float(np.mean(a - b)), standard_error(a - b)
