"""A learned simulator of a whole network of agents, out of logged data alone.

    p(o'_i | o, a, graph) = prod_e categorical over the M bins of entry e,      E[r_i | o, a, graph]

for every agent i, where o and a are what *all* agents observe and do. It is for training: at execution nobody knows
them. Entries are drawn, not averaged: a Gaussian around the mean, clipped to the data's range, lets counts that are
mostly zero (losses, urgent packets) creep upwards, and rollouts drift off within ten steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.types import TaskSpec
from networld_jax import networks
from networld_jax.losses import masked_mean
from networld_jax.normalisation import (
    normalise_obs,
    present_rows,
    standardise_action,
    standardise_reward,
    thinned,
    two_hot_histogram,
)
from networld_jax.transforms import component_cross_entropy, component_draws, component_means, straight_through
from networld_jax.types import Params, Segments, TaskStats, Trajectories


def _entry_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
    """[M] ascending bins of one entry in its own units: the integers from its smallest value on where they suffice,
    else quantiles, the widest gaps split until there are M."""
    low, high = values.min(), values.max()
    if np.array_equal(values, np.round(values)) and high - low < num_bins:
        return low + np.arange(num_bins, dtype=np.float64)
    bins = np.unique(np.quantile(values, np.linspace(0.0, 1.0, num_bins)))
    if len(bins) == 1:
        return bins[0] + np.arange(num_bins, dtype=np.float64)
    while len(bins) < num_bins:
        widest = np.argmax(np.diff(bins))
        bins = np.insert(bins, widest + 1, (bins[widest] + bins[widest + 1]) / 2)
    return bins


def with_observation_bins(trajectories: Trajectories, stats: TaskStats, num_bins: int) -> TaskStats:
    """Stats whose `extra` has what a simulator needs, measured on the present agents' observations, on the host:
    "obs_bins" [O, M], ascending bins of every entry in standardised symlog units, and "obs_log_histogram" [O, M], how
    often the data fall into them (two-hot, smoothed).

    Raises ValueError for fewer than two bins.
    """
    if num_bins < 2:
        raise ValueError(f"num_obs_bins must be at least 2, got {num_bins}; 24 do for the three tasks")
    rows = present_rows(trajectories, "obs")
    rows = np.concatenate([rows.min(0)[None], rows.max(0)[None], thinned(rows)])  # the range is the whole data's
    raw = np.stack([_entry_bins(rows[:, e].astype(np.float64), num_bins) for e in range(rows.shape[1])])
    bins = normalise_obs(jnp.asarray(raw.T, jnp.float32), stats).T
    histogram = two_hot_histogram(normalise_obs(jnp.asarray(rows), stats), bins)
    return stats.replace(extra=stats.extra | {"obs_bins": bins, "obs_log_histogram": jnp.log(histogram + 1e-4)})


class Simulator(NamedTuple):
    """The learned network of agents as pure functions of stats from `with_observation_bins`; any leading axes before
    [N]."""

    init: Callable[..., Params]  # (key) -> params
    loss: Callable[..., tuple[jax.Array, dict]]  # (params, stats, segments of horizon >= 1) -> (loss [], metrics)
    step: Callable[..., tuple[jax.Array, jax.Array]]
    # (key, params, stats, obs [..., N, O], action [..., N, A], adjacency) -> (next obs, reward [..., N])


def make_simulator(spec: TaskSpec, num_bins: int, hidden: int = 128, num_rounds: int = 2) -> Simulator:
    """Observations go in and come out in standardised symlog units, actions in their own, rewards standardised."""
    net = networks.GraphDynamics(num_bins, hidden, num_rounds)

    def predict(params, stats, obs, action, adjacency):
        logits, reward = net.apply({"params": params}, obs, standardise_action(action, stats), adjacency)
        prior = jnp.expand_dims(stats.extra["obs_log_histogram"], tuple(range(logits.ndim - 2)))
        return logits + prior, reward

    def init(key) -> Params:
        agents = spec.max_agents
        obs, action = jnp.zeros((agents, spec.obs_dim)), jnp.zeros((agents, spec.action_dim))
        return net.init(key, obs, action, jnp.zeros((agents, agents)))["params"]

    def loss(params, stats, segments: Segments):
        obs = normalise_obs(jnp.swapaxes(segments.obs, 1, 2), stats)  # [B, H+1, N, O]
        logits, reward = predict(params, stats, obs[:, 0], segments.action[:, :, 0], segments.adjacency)
        nats = component_cross_entropy(logits, obs[:, 1], stats.extra["obs_bins"]).mean(-1)
        surprise = masked_mean(nats, segments.agent_mask)
        target = standardise_reward(segments.reward[:, :, 0], stats)
        error = masked_mean((reward - target) ** 2, segments.agent_mask)
        return surprise + error, {"obs_nats": surprise, "reward_error": error}

    def step(key, params, stats, obs, action, adjacency):
        logits, reward = predict(params, stats, obs, action, adjacency)
        bins = stats.extra["obs_bins"]
        return straight_through(component_draws(key, logits, bins), component_means(logits, bins)), reward

    return Simulator(init, loss, step)


def choose_member(key: jax.Array, members: Params) -> Params:
    """One of several parameter sets stacked along a first axis."""
    count = jax.tree.leaves(members)[0].shape[0]
    chosen = jax.random.randint(key, (), 0, count)
    return jax.tree.map(lambda leaf: leaf[chosen], members)

