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
from flax import struct

from networld_envs.types import TaskSpec
from networld_jax import networks
from networld_jax.losses import masked_mean
from networld_jax.normalisation import action_std, normalise_obs, present_rows
from networld_jax.transforms import two_hot, two_hot_cross_entropy
from networld_jax.types import Params, Segments, TaskStats, Trajectories

MAX_ROWS = 50_000  # observations that quantiles and histograms are measured on


@struct.dataclass
class ObsBins:
    """Bins of every observation entry, in standardised symlog units, and how often the data fall into them."""

    centres: jax.Array  # [O, M] ascending
    log_histogram: jax.Array  # [O, M] of the smoothed two-hot histogram


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


def observation_bins(trajectories: Trajectories, stats: TaskStats, num_bins: int) -> ObsBins:
    """Bins of the present agents' observations, on the host.

    Raises ValueError for fewer than two bins.
    """
    if num_bins < 2:
        raise ValueError(f"num_obs_bins must be at least 2, got {num_bins}; 24 do for the three tasks")
    rows = present_rows(trajectories, "obs")
    ends = np.stack([rows.min(0), rows.max(0)])
    rows = np.concatenate([ends, rows[:: max(1, len(rows) // MAX_ROWS)]])  # the range is the whole data's
    raw = np.stack([_entry_bins(rows[:, e].astype(np.float64), num_bins) for e in range(rows.shape[1])])
    centres = normalise_obs(jnp.asarray(raw.T, jnp.float32), stats).T
    normal = normalise_obs(jnp.asarray(rows), stats)
    histogram = jax.vmap(two_hot, in_axes=(1, 0))(normal, centres).mean(1)
    return ObsBins(centres, jnp.log(histogram + 1e-4))


def standardise_action(action: jax.Array, stats: TaskStats) -> jax.Array:
    """Actions [..., A] with the data's mean 0 and standard deviation 1."""
    mean = (jax.nn.softmax(stats.action_log_histogram, -1) * stats.action_bins).sum(-1)
    leading = tuple(range(action.ndim - 1))
    return (action - jnp.expand_dims(mean, leading)) / jnp.expand_dims(action_std(stats), leading)


def straight_through(exact: jax.Array, smooth: jax.Array) -> jax.Array:
    """The value of `exact` with the gradient of `smooth`."""
    return smooth + jax.lax.stop_gradient(exact - smooth)


class Simulator(NamedTuple):
    """The learned network of agents as pure functions; any leading axes before [N]."""

    init: Callable[..., Params]  # (key) -> params
    loss: Callable[..., tuple[jax.Array, dict]]  # (params, bins, stats, segments of horizon >= 1) -> (loss [], metrics)
    step: Callable[..., tuple[jax.Array, jax.Array]]
    # (key, params, bins, stats, obs [..., N, O], action [..., N, A], adjacency) -> (next obs, reward [..., N])


def make_simulator(spec: TaskSpec, num_bins: int, hidden: int = 128, num_rounds: int = 2) -> Simulator:
    """Observations go in and come out in standardised symlog units, actions in their own, rewards standardised."""
    net = networks.GraphDynamics(num_bins, hidden, num_rounds)

    def predict(params, bins: ObsBins, stats, obs, action, adjacency):
        logits, reward = net.apply({"params": params}, obs, standardise_action(action, stats), adjacency)
        return logits + jnp.expand_dims(bins.log_histogram, tuple(range(logits.ndim - 2))), reward

    def init(key) -> Params:
        agents = spec.max_agents
        obs, action = jnp.zeros((agents, spec.obs_dim)), jnp.zeros((agents, spec.action_dim))
        return net.init(key, obs, action, jnp.zeros((agents, agents)))["params"]

    def loss(params, bins: ObsBins, stats, segments: Segments):
        obs = normalise_obs(jnp.swapaxes(segments.obs, 1, 2), stats)  # [B, H+1, N, O]
        logits, reward = predict(params, bins, stats, obs[:, 0], segments.action[:, :, 0], segments.adjacency)
        per_entry = jax.vmap(two_hot_cross_entropy, in_axes=(-2, -1, 0), out_axes=-1)
        surprise = masked_mean(per_entry(logits, obs[:, 1], bins.centres).mean(-1), segments.agent_mask)
        target = (segments.reward[:, :, 0] - stats.reward_mean) / stats.reward_std
        error = masked_mean((reward - target) ** 2, segments.agent_mask)
        return surprise + error, {"obs_nats": surprise, "reward_error": error}

    def step(key, params, bins: ObsBins, stats, obs, action, adjacency):
        logits, reward = predict(params, bins, stats, obs, action, adjacency)
        leading = tuple(range(logits.ndim - 2))
        centres = jnp.broadcast_to(jnp.expand_dims(bins.centres, leading), logits.shape)
        drawn = jax.random.categorical(key, logits)[..., None]
        drawn = jnp.take_along_axis(centres, drawn, -1)[..., 0]
        return straight_through(drawn, (jax.nn.softmax(logits) * centres).sum(-1)), reward

    return Simulator(init, loss, step)


def choose_member(key: jax.Array, members: Params) -> Params:
    """One of several parameter sets stacked along a first axis."""
    count = jax.tree.leaves(members)[0].shape[0]
    chosen = jax.random.randint(key, (), 0, count)
    return jax.tree.map(lambda leaf: leaf[chosen], members)

