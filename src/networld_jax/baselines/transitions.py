"""Agent transitions with messages, the rows that the baselines learn from."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from networld_jax.mean_field import mean_field
from networld_jax.normalisation import normalise_obs
from networld_jax.types import Segments, TaskStats, Trajectories, Transitions
from networld_jax.windows import sample_segments


def sample_transitions(
    key: jax.Array, trajectories: Trajectories, stats: TaskStats, batch_size: int, message_delay: int = 0
) -> Transitions:
    """About `batch_size` agent transitions: batch_size / N joint steps with the agent axis folded. Pure."""
    return transitions(sample_joint_steps(key, trajectories, batch_size, message_delay), stats)


def sample_joint_steps(
    key: jax.Array, trajectories: Trajectories, batch_size: int, message_delay: int = 0
) -> Segments:
    """Windows of one step of all agents, about `batch_size` agent transitions together. Pure."""
    return sample_segments(key, trajectories, num_joint(batch_size, trajectories.reward.shape[-1]), 1, message_delay)


def num_joint(batch_size: int, num_agents: int) -> int:
    """Windows of all agents that hold about `batch_size` windows of one agent, at least one."""
    return max(1, batch_size // num_agents)


def transitions(segments: Segments, stats: TaskStats) -> Transitions:
    """Agent transitions of windows of horizon 1, [B * N] rows."""
    obs = normalise_obs(segments.obs, stats)
    heard = normalise_obs(segments.message_obs, stats)
    mean = mean_field(jnp.swapaxes(heard, 1, 2), segments.adjacency[:, None])  # [B, 2, N, O]
    weight = segments.agent_mask * segments.is_demonstration  # [B, N] * [B, 1]
    fold = lambda x: x.reshape((-1,) + x.shape[2:])  # noqa: E731
    return Transitions(
        obs=fold(obs[:, :, 0]),
        next_obs=fold(obs[:, :, 1]),
        neighbour_mean=fold(mean[:, 0]),
        next_neighbour_mean=fold(mean[:, 1]),
        action=fold(segments.action[:, :, 0]),
        reward=fold(segments.reward[:, :, 0]),
        terminated=jnp.zeros(weight.size, bool),  # continuing tasks: a cut is a truncation, bootstrapping goes on
        agent_mask=segments.agent_mask.reshape(-1),
        weight=weight.reshape(-1),
    )
