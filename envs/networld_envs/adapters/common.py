"""What the adapters share: the actions of a task as other libraries write them, metrics as one number per agent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.types import TaskSpec

MAX_DISCRETE = 4096  # joint values of an integer action; a network with more outputs than this learns nothing


def component_sizes(spec: TaskSpec) -> tuple[int, ...]:
    """Number of whole numbers each component of an integer action may take."""
    return tuple(int(high - low) + 1 for low, high in zip(spec.action_low, spec.action_high, strict=True))


def num_discrete_actions(spec: TaskSpec) -> int:
    """Number of values of an integer action with its components flattened into one index.

    Raises ValueError for a box action, and for more than 4096 joint values.
    """
    if spec.action_kind != "integer":
        raise ValueError(f"{spec.name}: only integer actions are discrete, got action_kind={spec.action_kind!r}")
    total = math.prod(component_sizes(spec))
    if total > MAX_DISCRETE:
        raise ValueError(
            f"{spec.name}: {spec.action_dim} integer components have {total} joint values, at most {MAX_DISCRETE} are "
            "flattened into one discrete action; use fewer components"
        )
    return total


def from_index(index: jax.Array, spec: TaskSpec) -> jax.Array:
    """Index of a joint value [...] -> action [..., A]; the last component varies fastest."""
    components = jnp.unravel_index(index, component_sizes(spec))
    return jnp.stack(components, axis=-1) + expand(spec.action_low, index.ndim + 1)


def from_unit_box(scaled: jax.Array, spec: TaskSpec) -> jax.Array:
    """Action [..., A] from [-1, 1]^A, clipped: -1 is `action_low`, 1 is `action_high`."""
    low, high = expand(spec.action_low, scaled.ndim), expand(spec.action_high, scaled.ndim)
    return low + (high - low) * (jnp.clip(scaled, -1.0, 1.0) + 1.0) / 2.0


def expand(values: tuple[float, ...], num_dims: int) -> jax.Array:
    """[A] bounds with leading axes of size 1, `num_dims` axes in all."""
    return jnp.asarray(np.array(values, np.float32).reshape((1,) * (num_dims - 1) + (-1,)))


def per_agent(metrics: Mapping[str, jax.Array], num_agents: int) -> dict[str, jax.Array]:
    """Metrics as one float32 per agent [N]: a number of the whole network is repeated, anything larger left out."""
    kept = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items() if jnp.ndim(value) <= 1}
    return {name: jnp.broadcast_to(value, (num_agents,)) for name, value in kept.items()}
