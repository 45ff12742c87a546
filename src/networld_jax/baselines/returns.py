"""Rewards and returns of the baselines: whose reward counts, over how many steps, and batches that carry the label."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import struct

from networld_envs.types import TaskSpec
from networld_jax import normalisation
from networld_jax.baselines.transitions import num_joint, sample_transitions, transitions
from networld_jax.baselines.types import BaselineConfig
from networld_jax.labels import spread_over_neighbourhood
from networld_jax.types import TaskStats, Trajectories, Transitions
from networld_jax.windows import sample_places, windows


@struct.dataclass
class Labelled:
    """Trajectories with one number per agent and step."""

    trajectories: Trajectories
    label: jax.Array  # [R, L', N]; L' <= L, because a label needs the steps after it


def relabel(trajectories: Trajectories, stats: TaskStats, label: str) -> tuple[Trajectories, TaskStats]:
    """Rewards as `label` counts them, and stats with their mean and std over present agents.

    Labels are linear, so that sums of these rewards over any window are the window's label.
    """
    if label == "neighbourhood":
        shared = spread_over_neighbourhood(trajectories.reward, np.asarray(trajectories.adjacency)[:, None])
        trajectories = trajectories.replace(reward=np.asarray(shared, np.float32))
    rewards = normalisation.present_rows(trajectories, "reward")
    mean, std = np.float32(rewards.mean()), np.float32(max(rewards.std(), 1e-6))
    return trajectories, stats.replace(reward_mean=jax.numpy.asarray(mean), reward_std=jax.numpy.asarray(std))


def windowed_returns(reward: np.ndarray, discount: float, num_steps: int) -> np.ndarray:
    """sum_{h < num_steps} discount^h r(t + h), [R, L, N] -> [R, L - num_steps + 1, N].

    A fixed number of steps, not "to the end": these tasks go on where a trajectory was cut.
    """
    count = reward.shape[1] - num_steps + 1
    if count < 1:
        raise ValueError(f"trajectories of {reward.shape[1]} steps hold no return over {num_steps} steps")
    total = np.zeros((reward.shape[0], count, reward.shape[2]), np.float64)
    for h in range(num_steps):
        total += discount**h * reward[:, h : h + count]
    return total.astype(np.float32)


def label_steps(
    trajectories: Trajectories, stats: TaskStats, label: str, discount: float, num_steps: int
) -> tuple[Labelled, TaskStats]:
    """Trajectories whose label is the return over `num_steps`, standardised over present agents."""
    trajectories, stats = relabel(trajectories, stats, label)
    values = windowed_returns(np.asarray(trajectories.reward), discount, num_steps)
    present = np.broadcast_to(np.asarray(trajectories.agent_mask)[:, None, :] > 0, values.shape)
    values = (values - values[present].mean()) / max(float(values[present].std()), 1e-6)
    return Labelled(trajectories, values.astype(np.float32)), stats


def transition_sampler(spec: TaskSpec, config: BaselineConfig) -> Callable[..., Transitions]:
    """sample(key, trajectories, stats) -> about `batch_size` agent transitions."""

    def sample(key, trajectories, stats):
        return sample_transitions(key, trajectories, stats, config.batch_size, spec.message_delay_steps)

    return sample


def sample_labelled(key: jax.Array, labelled: Labelled, batch_size: int) -> jax.Array:
    """[B, 2] (trajectory, place of its label), so many that about `batch_size` agents' labels are drawn."""
    runs, places, num_agents = labelled.label.shape
    return sample_places(key, runs, places, num_joint(batch_size, num_agents))


def labelled_sampler(spec: TaskSpec, config: BaselineConfig) -> Callable[..., tuple[Transitions, jax.Array]]:
    """sample(key, labelled, stats) -> (about `batch_size` agent transitions, their labels [B])."""

    def sample(key, labelled: Labelled, stats):
        where = sample_labelled(key, labelled, config.batch_size)
        segments = windows(labelled.trajectories, where, 1, spec.message_delay_steps)
        return transitions(segments, stats), labelled.label[where[:, 0], where[:, 1]].reshape(-1)

    return sample
