"""Scores on fixed instances: paired means, intervals, anchored scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from networld_envs import instances
from networld_envs.types import Environment, Policy
from networld_jax import sharding
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
    """Result per instance; everything is a mean over the counted steps."""

    reward: np.ndarray  # [I] mean over present agents
    metrics: dict[str, np.ndarray]  # name -> [I], per-agent metrics averaged over present agents
    per_agent: dict[str, np.ndarray]  # name -> [I, N] ("reward" included), nan for absent agents

    @property
    def mean(self) -> float:
        return float(self.reward.mean())

    @property
    def sem(self) -> float:
        """Standard error over instances."""
        return standard_error(self.reward)

    def percentile(self, name: str, q: float) -> float:
        """Percentile over all agents of all instances of an agent's time average, e.g. the 10th-percentile user
        rate."""
        return float(np.nanpercentile(self.per_agent[name], q))


def first_instances(scores: Scores, count: int) -> Scores:
    """The scores of the first `count` instances."""
    cut = lambda values: {k: v[:count] for k, v in values.items()}  # noqa: E731
    return Scores(scores.reward[:count], cut(scores.metrics), cut(scores.per_agent))


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def episode_means(
    key: jax.Array,
    env: Environment,
    env_params: Any,
    policy: Policy,
    policy_params: Params,
    protocol: Protocol,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """({name: [] or [N] time average}, agent mask [N]) of one instance; "reward" and "reward_p10" (the 10th percentile
    over present agents, per step) are among the names. Pure; vmap over keys."""
    loop = start(key, env, env_params, policy)
    mask = env.agent_mask(loop[0], env_params)

    def counted(loop, t):
        loop, (time_step, _) = advance(key, t, loop, env, env_params, policy, policy_params)
        worst = jnp.nanpercentile(jnp.where(mask > 0, time_step.reward, jnp.nan), 10)
        values = time_step.metrics | {"reward": time_step.reward, "reward_p10": worst}
        return loop, {name: value.astype(jnp.float32) for name, value in values.items()}

    loop, _ = jax.lax.scan(lambda l, t: (counted(l, t)[0], None), loop, jnp.arange(protocol.burn_in_steps))
    steps = protocol.burn_in_steps + jnp.arange(protocol.num_steps)
    _, values = jax.lax.scan(counted, loop, steps)
    return jax.tree.map(lambda x: x.mean(0), values), mask


def make_evaluator(env: Environment, policy: Policy, protocol: Protocol, mesh: Mesh | None = None):
    """(keys [I], policy_params, env_params) -> Scores; one compiled program for any weights.

    With a mesh (see `sharding.make_mesh`) its devices share the instances; I must be a multiple of their number.
    """

    def batch(keys, policy_params, env_params):
        return jax.vmap(lambda key: episode_means(key, env, env_params, policy, policy_params, protocol))(keys)

    run = jax.jit(sharding.over_rows(batch, mesh, (True, False, False)))

    def scores(keys, policy_params, env_params) -> Scores:
        values, mask = sharding.to_host(run(sharding.split_rows(mesh, keys), policy_params, env_params))
        per_agent = {k: np.where(mask > 0, v, np.nan) for k, v in values.items() if v.ndim == 2}
        metrics = {k: np.nanmean(per_agent[k], -1) if k in per_agent else v for k, v in values.items()}
        return Scores(metrics.pop("reward"), metrics, per_agent)

    return scores


def concatenate_scores(parts: Sequence[Scores]) -> Scores:
    """One Scores over all instances."""
    join = lambda dicts: {k: np.concatenate([d[k] for d in dicts]) for k in dicts[0]}  # noqa: E731
    return Scores(
        np.concatenate([p.reward for p in parts]), join([p.metrics for p in parts]), join([p.per_agent for p in parts])
    )


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

    `env_params` are taken as they are; None = the default ones, with the policy's messages charged. `batch_size`
    instances run side by side (None = all); the result does not depend on it beyond rounding.
    """
    env_params = charge_messages(env.default_params, policy) if env_params is None else env_params
    run = make_evaluator(env, policy, protocol)
    return score_instances(
        lambda keys: run(keys, policy_params, env_params), env.spec.name, split, protocol.num_instances, batch_size
    )


def charge_messages(env_params: Any, policy: Policy) -> Any:
    """Environment parameters with the policy's message size, where messages take air time (`rb`); else unchanged."""
    if not hasattr(env_params, "message_bytes"):
        return env_params
    return env_params.replace(message_bytes=policy.message_bytes)


def score_instances(
    run: Callable[[jax.Array], Scores],
    task: str,
    split: str,
    num_instances: int,
    batch_size: int | None = None,
    report_fn: Callable[[Scores], None] = lambda scores: None,
) -> Scores:
    """run(keys) -> Scores over the first instances of a split, `batch_size` at a time (None = all), as one Scores;
    `report_fn` hears of every part."""
    size, parts = batch_size or num_instances, []
    for first in range(0, num_instances, size):
        parts.append(run(instances.instance_keys(task, split, min(size, num_instances - first), first)))
        report_fn(parts[-1])
    return concatenate_scores(parts)


def anchored(reward: np.ndarray | float, low: float, high: float) -> np.ndarray | float:
    """Score (reward - low) / (high - low): 0 at the low anchor (random), 1 at the high one (best realisable rule or
    expert).

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
