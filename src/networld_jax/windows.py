"""Windows of trajectories: drawn inside the training scan, uniform over trajectories and starts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from networld_jax.types import Segments, Trajectories


def windows(trajectories: Trajectories, where: jax.Array, horizon: int, message_delay: int) -> Segments:
    """Segments at given places. `where` [B, 2] int: (trajectory, start). Windows never cross trajectories.

    Messages at step t carry observations of step max(t - message_delay, 0). NumPy arrays in, NumPy arrays out: the same
    windows on the host.
    """
    run, begin = where[:, 0], where[:, 1]
    t = begin[:, None] + np.arange(horizon + 1)[None]
    late = (t - message_delay).clip(0)
    agent_major = lambda x: x.swapaxes(1, 2)  # noqa: E731

    obs = agent_major(trajectories.obs[run[:, None], t])
    message_obs = obs if message_delay == 0 else agent_major(trajectories.obs[run[:, None], late])
    return Segments(
        obs=obs,
        message_obs=message_obs,
        action=agent_major(trajectories.action[run[:, None], t[:, :-1]]),
        reward=agent_major(trajectories.reward[run[:, None], t[:, :-1]]),
        is_demonstration=trajectories.is_demonstration[run[:, None], t[:, :-1]],
        start=begin,
        adjacency=trajectories.adjacency[run],
        agent_mask=trajectories.agent_mask[run],
    )


def sample_segments(
    key: jax.Array,
    trajectories: Trajectories,
    batch_size: int,
    horizon: int,
    message_delay: int = 0,
    *,
    num_trajectories: int | None = None,
    windows_fn: Callable[[Trajectories, jax.Array, int, int], Segments] = windows,
) -> Segments:
    """`batch_size` windows, uniform over trajectories and starts. Pure: runs inside the training scan.

    Args:
      num_trajectories: draw among the first so many (default: all); a dataset split over devices is padded.
      windows_fn: how windows are cut, see `sharding.make_windows`.

    Raises ValueError when the trajectories are shorter than the horizon.
    """
    runs, length = trajectories.reward.shape[:2]
    where = sample_places(key, num_trajectories or runs, num_starts(length, horizon), batch_size)
    return windows_fn(trajectories, where, horizon, message_delay)


def num_starts(length: int, horizon: int) -> int:
    """Windows that a trajectory holds. Raises ValueError when there is none."""
    if length < horizon:
        raise ValueError(f"trajectories of {length} steps hold no window of horizon {horizon}; use a smaller horizon")
    return length - horizon + 1


def sample_places(key: jax.Array, num_runs: int, num_starts: int, batch_size: int) -> jax.Array:
    """[B, 2] int32 (trajectory, start), each uniform."""
    run_key, start_key = jax.random.split(key)
    run = jax.random.randint(run_key, (batch_size,), 0, num_runs)
    begin = jax.random.randint(start_key, (batch_size,), 0, num_starts)
    return jnp.stack([run, begin], -1)
