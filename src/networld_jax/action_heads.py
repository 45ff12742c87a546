"""Two-hot heads of actions, as the inverse dynamics and the baselines' clones share them.

Every component of an action [A] is a distribution over its bins, `stats.action_bins` [A, M], in raw units:
symexp-spaced for boxes, the integers themselves otherwise. Components are independent given the inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from networld_envs.types import TaskSpec
from networld_jax import networks
from networld_jax.transforms import component_cross_entropy, component_means
from networld_jax.types import Params, TaskStats


def network(spec: TaskSpec, stats: TaskStats, hidden: tuple[int, ...]) -> networks.InverseDynamics:
    """Features [..., F] -> logits [..., A, M]: the net of the inverse dynamics and of every clone."""
    return networks.InverseDynamics(spec.action_dim, stats.action_bins.shape[-1], hidden)


def add_prior(logits: jax.Array, stats: TaskStats) -> jax.Array:
    """Logits [..., A, M] plus the data's log-histogram: a head that outputs zeros answers with the data's mean."""
    return logits + jnp.expand_dims(stats.action_log_histogram, tuple(range(logits.ndim - 2)))


def predict(
    spec: TaskSpec, stats: TaskStats, hidden: tuple[int, ...], params: Params, features: jax.Array
) -> jax.Array:
    """Logits [..., A, M] of a clone with weights `params` of `network`, the prior included, at features [..., F]."""
    return add_prior(network(spec, stats, hidden).apply({"params": params}, features), stats)


def losses(logits: jax.Array, action: jax.Array, stats: TaskStats) -> jax.Array:
    """Two-hot cross-entropy, mean over components: logits [..., A, M], action [..., A] -> [...]."""
    return component_cross_entropy(logits, action, stats.action_bins).mean(-1)


def decode_mean(logits: jax.Array, stats: TaskStats) -> jax.Array:
    """Probability-weighted mean of the bins, [..., A, M] -> [..., A]."""
    return component_means(logits, stats.action_bins)


def decode_quantile(logits: jax.Array, stats: TaskStats, quantile: float) -> jax.Array:
    """Quantile of the histogram whose cells are centred on the bins (edges halfway between bins, the outer ones at the
    first and last bin), [..., A, M] -> [..., A].

    Rounded, it is the exact quantile of a distribution over integers.
    """

    def one(probabilities, bins):
        edges = jnp.concatenate([bins[:1], (bins[1:] + bins[:-1]) / 2, bins[-1:]])
        below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(probabilities)])
        cell = jnp.clip(jnp.searchsorted(below, quantile, side="left") - 1, 0, bins.shape[0] - 1)
        inside = (quantile - below[cell]) / jnp.maximum(probabilities[cell], 1e-12)
        return edges[cell] + jnp.clip(inside, 0.0, 1.0) * (edges[cell + 1] - edges[cell])

    probabilities = jax.nn.softmax(logits, -1)
    flat = probabilities.reshape((-1, *probabilities.shape[-2:]))
    per_row = jax.vmap(jax.vmap(one), in_axes=(0, None))
    return per_row(flat, stats.action_bins).reshape(logits.shape[:-1])
