"""Several policies trained alike from seeds of their own, acting as one: what a single one overfitted weighs less.

    a = 1/E sum_e a_e(o, messages),   a_e with member e's weights, memory and random key

Works for every policy that acts with means: planners (each member imagines its own plan, so the luck of the sampler is
averaged as well) and clones alike. Whole numbers are rounded by the environment, after the mean. Source: deep ensembles
(Lakshminarayanan et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from networld_envs.types import Policy


def stack(members: Sequence[Any]) -> Any:
    """Parameters of E policies of one kind -> the ensemble's, every leaf [E, ...].

    Raises ValueError for no members, and for members of unlike shapes.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member, got none")
    shapes = [jax.tree.map(jnp.shape, member) for member in members]
    if unlike := [number for number, shape in enumerate(shapes) if shape != shapes[0]]:
        raise ValueError(
            f"members of an ensemble must have parameters of one shape, got others for members {unlike} than for "
            "member 0; train them with one configuration"
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def mean_action(policy: Policy, num_members: int, shared_message: bool = True) -> Policy:
    """The policy whose `params` are a `stack` of `num_members` and whose action is the mean of theirs.

    Args:
      shared_message: one message serves all members, as where it is the standardised observation. A learned encoder
        gives every member another one, and an agent sends `num_members` of them.

    Raises ValueError for fewer than one member.
    """
    if num_members < 1:
        raise ValueError(f"num_members must be at least 1, got {num_members}")

    def init(key, num_agents):
        return jax.vmap(lambda k: policy.init(k, num_agents))(jax.random.split(key, num_members))

    def act(key, params, carry, obs, adjacency, env_state):
        def one(k, member, memory):
            return policy.act(k, member, memory, obs, adjacency, env_state)

        actions, carry = jax.vmap(one)(jax.random.split(key, num_members), params, carry)
        return actions.mean(0), carry

    return policy._replace(
        init=init,
        act=act,
        observe_reward=lambda carry, reward: jax.vmap(lambda memory: policy.observe_reward(memory, reward))(carry),
        message_bytes=policy.message_bytes * (1 if shared_message else num_members),
    )
