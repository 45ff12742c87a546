"""Offline problems with a known optimum, and a baseline trained on them in one scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.types import Information, TaskSpec
from networld_jax import datasets, normalisation, planning
from networld_jax.baselines import Baseline
from networld_jax.types import TaskStats, TrainState, Trajectories, WorldModelConfig

MODEL = WorldModelConfig(horizon=1, num_action_bins=21)


def spec(obs_dim: int = 1, low: tuple = (-1.0,), high: tuple = (1.0,), kind: str = "box", agents: int = 1) -> TaskSpec:
    names = tuple(f"obs_{i}" for i in range(obs_dim))
    information = (Information(names, "own", 0, 0, "test"),)
    return TaskSpec("problem", agents, obs_dim, len(low), kind, low, high, names, information)


def bandit(
    context: np.ndarray, action: np.ndarray, reward: np.ndarray, task: TaskSpec
) -> tuple[Trajectories, TaskStats]:
    """One agent; row t of context [T, O], action [T, A], reward [T] is step t of a single trajectory."""
    obs = np.concatenate([context, context[:1]])[None, :, None]
    data = datasets.from_arrays(obs, action[None, :, None], reward[None, :, None], np.zeros((1, 1), np.float32))
    return data, normalisation.task_stats(data, task, MODEL)


def unit_rewards(stats: TaskStats) -> TaskStats:
    """Stats that leave rewards as they are, so that values are in the reward's unit."""
    return stats.replace(reward_mean=jnp.float32(0.0), reward_std=jnp.float32(1.0))


def train(
    baseline: Baseline,
    data: Any,
    stats: TaskStats,
    num_updates: int,
    prepare: bool = True,
    change: Callable[[TaskStats], TaskStats] = lambda stats: stats,
) -> tuple[TrainState, TaskStats, dict[str, jax.Array]]:
    """(state, stats, metrics of every update) after `num_updates` in one compiled scan."""
    if prepare:
        data, stats = baseline.prepare(data, stats)
    stats = change(stats)
    data = jax.tree.map(jnp.asarray, data)

    @jax.jit
    def run(state, data, stats):
        def body(state, _):
            sample_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(1), state.step))
            return baseline.update(update_key, state, baseline.sample(sample_key, data, stats), stats)

        return jax.lax.scan(body, state, None, length=num_updates)

    state, metrics = run(baseline.init(jax.random.key(0), stats), data, stats)
    return state, stats, metrics


def act(baseline: Baseline, params: Any, stats: TaskStats, obs: np.ndarray) -> np.ndarray:
    """Actions [B, A] of one memoryless agent at observations [B, O]."""
    policy_params = planning.PolicyParams(params, stats)
    carry = baseline.policy.init(jax.random.key(0), 1)

    def one(i, row):
        key = jax.random.fold_in(jax.random.key(3), i)
        return baseline.policy.act(key, policy_params, carry, row[None], jnp.zeros((1, 1)), None)[0][0]

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(len(obs)), jnp.asarray(obs, jnp.float32)))
