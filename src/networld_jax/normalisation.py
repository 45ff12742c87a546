"""What is measured on the training data before training: normalisation, action bins, moments of labels, surprise."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.types import TaskSpec
from networld_jax.labels import LABELS
from networld_jax.transforms import data_bins, host_symlog, symexp, symlog, two_hot
from networld_jax.types import Segments, TaskStats, Trajectories, WorldModelConfig
from networld_jax.windows import windows


def normalise_obs(obs: jax.Array, stats: TaskStats) -> jax.Array:
    """Standardised symlog of raw observations [..., O]."""
    leading = tuple(range(obs.ndim - 1))
    return (symlog(obs) - jnp.expand_dims(stats.obs_mean, leading)) / jnp.expand_dims(stats.obs_std, leading)


def raw_obs(normalised: jax.Array, stats: TaskStats) -> jax.Array:
    """The inverse of `normalise_obs`, [..., O]."""
    leading = tuple(range(normalised.ndim - 1))
    return symexp(normalised * jnp.expand_dims(stats.obs_std, leading) + jnp.expand_dims(stats.obs_mean, leading))


def present_rows(trajectories: Trajectories, field: str) -> np.ndarray:
    """`obs`, `action` or `reward` of present agents at all steps, [rows, ...]."""
    values = np.asarray(getattr(trajectories, field), np.float32)
    present = np.asarray(trajectories.agent_mask)[:, None, :] > 0
    return values[np.broadcast_to(present, values.shape[:3])]


def thinned(rows: np.ndarray) -> np.ndarray:
    """Every k-th of many rows: enough for a histogram or quantiles."""
    return rows[:: max(1, len(rows) // 50_000)]


def two_hot_histogram(rows: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Mean two-hot weights [C, M] of rows [R, C] over bins [C, M]."""
    return np.asarray(jax.vmap(two_hot, in_axes=(1, 0))(jnp.asarray(rows), jnp.asarray(bins))).mean(1)


def action_bins(trajectories: Trajectories, spec: TaskSpec, num_bins: int) -> np.ndarray:
    """Two-hot bin centres [A, M] per action component.

    Integer actions: one bin per integer of the task's range. Box actions: `transforms.data_bins` over the range of the
    present agents' data only.
    """
    if spec.action_kind == "integer":
        grid = np.arange(min(spec.action_low), max(spec.action_high) + 1)
        return np.tile(grid[None], (spec.action_dim, 1)).astype(np.float32)
    flat = present_rows(trajectories, "action")
    return np.asarray(data_bins(flat.min(0), flat.max(0), num_bins))


def task_stats(
    trajectories: Trajectories,
    spec: TaskSpec,
    model: WorldModelConfig | None = None,
    discount: float = 0.95,
    min_std: float = 1e-2,
) -> TaskStats:
    """Normalisation constants from training data only.

    Args:
      model: horizon, latent size and number of action bins (default: WorldModelConfig()).
      discount: of the return labels; windows of the model's horizon at every half horizon are labelled.
      min_std: floor of the observation std in symlog units, so that a nearly constant entry is not blown up.
    """
    model = model or WorldModelConfig()
    rows = present_rows(trajectories, "obs")
    squashed = host_symlog(rows)
    rewards = present_rows(trajectories, "reward")
    bins = action_bins(trajectories, spec, model.num_action_bins)
    histogram = two_hot_histogram(thinned(present_rows(trajectories, "action")), bins)
    mean, std = {}, {}
    for name, label_fn in LABELS.items():
        values = _all_labels(trajectories, lambda segments, f=label_fn: f(segments, discount), model.horizon)
        mean[name], std[name] = np.float32(values.mean()), np.float32(max(values.std(), 1e-6))
    obs_mean = squashed.mean(0, dtype=np.float64).astype(np.float32)
    obs_std = np.maximum(squashed.std(0, dtype=np.float64), min_std).astype(np.float32)
    stats = TaskStats(
        obs_mean=obs_mean,
        obs_std=obs_std,
        latent_mean=np.zeros(model.latent_dim, np.float32),
        latent_std=np.ones(model.latent_dim, np.float32),
        surprise=_latent_surprise(trajectories, model, obs_mean, obs_std),
        return_mean=mean,
        return_std=std,
        reward_mean=np.float32(rewards.mean()),
        reward_std=np.float32(max(rewards.std(), 1e-6)),
        action_bins=bins,
        action_log_histogram=np.log(histogram + 1e-3).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, stats)


def surprise(z: np.ndarray, adjacency: np.ndarray, agent_mask: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """How much of every channel one step leaves open: rms residual of the ridge regression of z_{t+1} on (z_t, m_t, 1).

    A copied channel has 0, white noise its standard deviation. It is the scale on which plans differ, so the noise of
    the inverse dynamics and the steps of guidance are counted in it.

    Args: z [R, L+1, N, D] latents; adjacency [R, N, N]; agent_mask [R, N]. Returns [D].
    """
    z = np.asarray(z, np.float64)
    weights = adjacency / np.maximum(adjacency.sum(-1, keepdims=True), 1.0)
    m = np.einsum("rij,rtjd->rtid", weights, z)
    present = np.broadcast_to(np.asarray(agent_mask)[:, None, :] > 0, z[:, 1:].shape[:3])
    inputs = np.concatenate([z[:, :-1], m[:, :-1], np.ones_like(z[:, :-1, :, :1])], -1)[present]
    targets = z[:, 1:][present]
    gram = inputs.T @ inputs + ridge * len(inputs) * np.eye(inputs.shape[1])
    errors = targets - inputs @ np.linalg.solve(gram, inputs.T @ targets)
    return np.sqrt(np.mean(errors**2, 0))


MIN_SURPRISE = 0.1  # a sampled plan is off by about this much even where the data repeat themselves


def _latent_surprise(
    trajectories: Trajectories, model: WorldModelConfig, obs_mean: np.ndarray, obs_std: np.ndarray
) -> np.ndarray:
    """`surprise` of the identity encoder's latents, at least MIN_SURPRISE; ones for latents that are yet to be
    learned."""
    known = np.ones(model.latent_dim, np.float32)
    if model.encoder == "identity":
        z = (host_symlog(np.asarray(trajectories.obs, np.float64)) - obs_mean) / obs_std
        rms = surprise(z, np.asarray(trajectories.adjacency), np.asarray(trajectories.agent_mask))
        known[: z.shape[-1]] = np.maximum(rms, MIN_SURPRISE)[: model.latent_dim]
    return known


def _all_labels(trajectories: Trajectories, label_fn: Callable[[Segments], jax.Array], horizon: int) -> np.ndarray:
    """Labels of present agents over windows every horizon / 2 steps, flattened."""
    values = []
    for r in range(trajectories.reward.shape[0]):
        starts = np.arange(0, trajectories.reward.shape[1] - horizon + 1, max(1, horizon // 2))
        where = np.stack([np.full_like(starts, r), starts], -1)
        segments = windows(trajectories, where, horizon, message_delay=0)
        label = np.asarray(label_fn(segments))
        values.append(label[np.asarray(segments.agent_mask) > 0])
    return np.concatenate(values)


def action_moments(stats: TaskStats) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [A] of the data's actions, out of their two-hot histogram."""
    probabilities = jax.nn.softmax(stats.action_log_histogram, -1)
    mean = jnp.sum(probabilities * stats.action_bins, -1, keepdims=True)
    return mean[:, 0], jnp.sqrt(jnp.sum(probabilities * (stats.action_bins - mean) ** 2, -1))


def action_std(stats: TaskStats) -> jax.Array:
    """Standard deviation [A] of the data's actions."""
    return action_moments(stats)[1]


def standardise_action(action: jax.Array, stats: TaskStats) -> jax.Array:
    """Actions [..., A] with the data's mean 0 and standard deviation 1."""
    mean, std = (jnp.expand_dims(moment, tuple(range(action.ndim - 1))) for moment in action_moments(stats))
    return (action - mean) / std


def standardise_reward(reward: jax.Array, stats: TaskStats) -> jax.Array:
    """Rewards with the data's mean 0 and standard deviation 1."""
    return (reward - stats.reward_mean) / stats.reward_std


def raw_reward(standardised: jax.Array, stats: TaskStats) -> jax.Array:
    """The inverse of `standardise_reward`."""
    return standardised * stats.reward_std + stats.reward_mean
