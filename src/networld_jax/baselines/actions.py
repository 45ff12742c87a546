"""Actions as networks see them beside two-hot heads: boxes scaled to [-1, 1], integers as indices, their densities."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from networld_envs.types import TaskSpec
from networld_jax.transforms import straight_through
from networld_jax.types import TaskStats

EDGE = 1.0 - 1e-5  # scaled actions stay inside +-EDGE, where atanh is finite in float32
ILLEGAL = -1e7  # logit and value of integers outside a component's range

# ------------------------------------------------------------------------------------------------ scaled boxes


def action_range(spec: TaskSpec, stats: TaskStats) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest action [A] of the data. `transforms.data_bins` puts one spare bin beyond each end of a
    box."""
    spare = 0 if spec.action_kind == "integer" else 1
    return stats.action_bins[:, spare], stats.action_bins[:, -1 - spare]


def scale_action(action: jax.Array, spec: TaskSpec, stats: TaskStats) -> jax.Array:
    """The data's range onto [-1, 1], then clipped to +-EDGE, [..., A]."""
    low, high = (jnp.expand_dims(end, tuple(range(action.ndim - 1))) for end in action_range(spec, stats))
    return jnp.clip(2.0 * (action - low) / (high - low) - 1.0, -EDGE, EDGE)


def unscale_action(scaled: jax.Array, spec: TaskSpec, stats: TaskStats) -> jax.Array:
    """[-1, 1] back onto the data's range; clips first."""
    low, high = (jnp.expand_dims(end, tuple(range(scaled.ndim - 1))) for end in action_range(spec, stats))
    return low + (jnp.clip(scaled, -1.0, 1.0) + 1.0) / 2.0 * (high - low)


def gaussian_log_prob(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """log N(x; mean, diag std^2), summed over the last axis."""
    terms = -0.5 * ((x - mean) * jnp.exp(-log_std)) ** 2 - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    return terms.sum(-1)


def tanh_gaussian_log_prob(u: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log density at the *given* u = tanh(x), x ~ N(mean, std^2): log N(atanh u) - sum log(1 - u^2).

    |u| must be below 1; `scale_action` keeps it there.
    """
    return gaussian_log_prob(jnp.arctanh(u), mean, log_std) - jnp.log1p(-(u**2)).sum(-1)


def tanh_gaussian_sample(key: jax.Array, mean: jax.Array, log_std: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(u [..., A], its log density [...]), differentiable in mean and log_std. log(1 - u^2) is taken from x, where it
    does not cancel."""
    x = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    log_jacobian = 2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))
    return jnp.tanh(x), gaussian_log_prob(x, mean, log_std) - log_jacobian.sum(-1)


def executed(action: jax.Array, spec: TaskSpec) -> jax.Array:
    """What an environment makes of an action [..., A]: integers are rounded into their range. Gradients pass straight
    through."""
    if spec.action_kind != "integer":
        return action
    leading = tuple(range(action.ndim - 1))
    low, high = (jnp.expand_dims(jnp.asarray(end), leading) for end in (spec.action_low, spec.action_high))
    return straight_through(jnp.clip(jnp.round(action), low, high), action)


# ------------------------------------------------------------------------------------------------ factored integers
#
# An integer action has A components of M values each. Joint values and log-probabilities are sums over components
# (for A = 1, as on rb, no restriction), so that the maximum and the log-sum-exp over all M^A joint actions are sums
# of the components' own.


def action_index(action: jax.Array, stats: TaskStats) -> jax.Array:
    """Bin index of integer actions, [..., A] int32."""
    first = jnp.expand_dims(stats.action_bins[:, 0], tuple(range(action.ndim - 1)))
    return jnp.clip(jnp.round(action - first), 0, stats.action_bins.shape[-1] - 1).astype(jnp.int32)


def index_action(index: jax.Array, stats: TaskStats) -> jax.Array:
    """The integer at a bin index, [..., A] float32."""
    first = jnp.expand_dims(stats.action_bins[:, 0], tuple(range(index.ndim - 1)))
    return first + index


def mask_illegal(table: jax.Array, spec: TaskSpec, stats: TaskStats) -> jax.Array:
    """[..., A, M] with `ILLEGAL` at integers outside each component's own range (bins span the widest range)."""
    low, high = (jnp.asarray(ends)[:, None] for ends in (spec.action_low, spec.action_high))
    legal = (stats.action_bins >= low) & (stats.action_bins <= high)
    return jnp.where(jnp.expand_dims(legal, tuple(range(table.ndim - 2))), table, ILLEGAL)


def take(table: jax.Array, index: jax.Array) -> jax.Array:
    """Sum over components of table [..., A, M] at index [..., A] -> [...]."""
    return jnp.take_along_axis(table, index[..., None], axis=-1)[..., 0].sum(-1)
