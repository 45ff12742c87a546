"""What every baseline sees and hears: the own observation, and the neighbours' mean if it listens.

The message is the planner's: the standardised observation, quantised, as late as the task declares, charged by its
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from networld_envs.types import Policy, TaskSpec
from networld_jax.baselines.types import BaselineConfig
from networld_jax.mean_field import mean_field, quantise
from networld_jax.normalisation import normalise_obs
from networld_jax.planning import PolicyParams, exchange, init_messages
from networld_jax.types import Segments, TaskStats, Transitions


def input_dim(spec: TaskSpec, config: BaselineConfig) -> int:
    """F: O, or 2 O with the mean field."""
    return spec.obs_dim * (2 if config.use_mean_field else 1)


def features(config: BaselineConfig, obs: jax.Array, neighbour_mean: jax.Array) -> jax.Array:
    """Normalised observation [..., O] (++ mean field [..., O]) -> [..., F]."""
    return jnp.concatenate([obs, neighbour_mean], -1) if config.use_mean_field else obs


def row_features(config: BaselineConfig, rows: Transitions) -> tuple[jax.Array, jax.Array]:
    """Features [B, F] of a transition's two ends."""
    now = features(config, rows.obs, rows.neighbour_mean)
    return now, features(config, rows.next_obs, rows.next_neighbour_mean)


def window_features(config: BaselineConfig, segments: Segments, stats: TaskStats) -> jax.Array:
    """Features [B, N, H+1, F] of windows."""
    obs = normalise_obs(segments.obs, stats)
    if not config.use_mean_field:
        return obs
    heard = jnp.swapaxes(normalise_obs(segments.message_obs, stats), 1, 2)  # [B, H+1, N, O]
    return features(config, obs, jnp.swapaxes(mean_field(heard, segments.adjacency[:, None]), 1, 2))


def init_hearing(spec: TaskSpec, config: BaselineConfig, num_agents: int) -> Any:
    """The messages on their way; nothing for a method that does not listen."""
    return init_messages(num_agents, spec.obs_dim, spec.message_delay_steps) if config.use_mean_field else ()


def hear(
    config: BaselineConfig, stats: TaskStats, carry: Any, obs: jax.Array, adjacency: jax.Array
) -> tuple[jax.Array, Any]:
    """Raw observations [N, O] -> features [N, F], and the messages now on their way."""
    normal = normalise_obs(obs, stats)
    if not config.use_mean_field:
        return normal, carry
    heard, carry = exchange(carry, quantise(normal, config.message_bits, config.message_range))
    return features(config, normal, mean_field(heard, adjacency)), carry


def message_bytes(spec: TaskSpec, config: BaselineConfig) -> int:
    """Bytes an agent broadcasts per step."""
    return -(-spec.obs_dim * (config.message_bits or 32) // 8) if config.use_mean_field else 0


def memoryless_policy(
    spec: TaskSpec,
    config: BaselineConfig,
    decide: Callable[[jax.Array, PolicyParams, jax.Array], jax.Array],
) -> Policy:
    """A Policy out of decide(key, policy_params, features [N, F]) -> action [N, A]."""

    def act(key, policy_params: PolicyParams, carry, obs, adjacency, env_state):
        del env_state
        inputs, carry = hear(config, policy_params.stats, carry, obs, adjacency)
        return decide(key, policy_params, inputs), carry

    return Policy(
        init=lambda key, num_agents: init_hearing(spec, config, num_agents),
        act=act,
        reads_state=False,
        information="one_hop" if config.use_mean_field else "own",
        message_bytes=message_bytes(spec, config),
    )


def agent_keys(key: jax.Array, num_agents: int) -> jax.Array:
    """[N] keys, fold_in(key, i): an exported agent draws what it drew in the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_agents))
