"""Trajectories broken on purpose: what pre-training on them gains is not knowledge of the dynamics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from networld_jax.datasets import FIELDS
from networld_jax.transforms import symexp, symlog
from networld_jax.types import Trajectories


def shuffle_time(key: jax.Array, trajectories: Trajectories) -> Trajectories:
    """Control: every trajectory's steps in random order, all agents alike. Observation, action and reward of a step
    stay together, so every marginal survives; what follows what does not."""
    runs, length = trajectories.reward.shape[:2]
    order = np.asarray(jax.vmap(lambda k: jax.random.permutation(k, length))(jax.random.split(key, runs)))
    fields = {}
    for name in FIELDS:
        values = np.array(getattr(trajectories, name))
        if name not in ("adjacency", "agent_mask"):
            values[:, :length] = np.stack([values[r, order[r]] for r in range(runs)])
        fields[name] = values
    return Trajectories(**fields)


def autoregressive(key: jax.Array, trajectories: Trajectories) -> Trajectories:
    """Control: observations replaced by noise that is merely smooth. In symlog units every entry follows

        x' = mu + rho (x - mu) + sqrt(1 - rho^2) sigma noise

    with its mean mu, std sigma and lag-1 correlation rho from the data, independent between agents and entries. Actions
    and rewards stay and have nothing to do with it.
    """
    present = np.asarray(trajectories.agent_mask)[:, None, :, None] > 0
    obs = np.asarray(symlog(jnp.asarray(trajectories.obs)), np.float64)
    count = np.broadcast_to(present, obs.shape).sum((0, 1, 2))
    mean = np.where(present, obs, 0.0).sum((0, 1, 2)) / count
    centred = np.where(present, obs - mean, 0.0)
    variance = (centred**2).sum((0, 1, 2)) / count
    num_pairs = np.broadcast_to(present, obs[:, 1:].shape).sum((0, 1, 2))
    lagged = (centred[:, 1:] * centred[:, :-1]).sum((0, 1, 2)) / num_pairs
    rho = np.clip(np.where(variance > 0, lagged / np.where(variance > 0, variance, 1.0), 0.0), 0.0, 1.0)
    noise = np.asarray(jax.random.normal(key, obs.shape), np.float64)
    x = np.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, x.shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    squashed = jnp.asarray(mean + np.sqrt(variance) * x, jnp.float32)
    synthetic = np.where(present, np.asarray(symexp(squashed), np.float32), 0.0)
    return trajectories.replace(obs=synthetic.astype(np.float32))
