"""Combinators over `Policy`: how offline data tiers are mixed out of experts and rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from networld_envs.types import Policy


def stateless(act_fn: Callable[..., jax.Array], **fields: Any) -> Policy:
    """A policy without memory out of act_fn(key, obs [N,O], adjacency [N,N], env_state) -> action [N,A]."""

    def act(key, params, carry, obs, adjacency, env_state):
        del params
        return act_fn(key, obs, adjacency, env_state), carry

    return Policy(init=lambda key, num_agents: (), act=act, **fields)


@struct.dataclass
class MixtureCarry:
    members: tuple[Any, ...]  # carry of each member
    choice: jax.Array  # [N] int32 member that each agent follows in this segment
    t: jax.Array  # [] int32


def mixture(
    members: Sequence[Policy],
    segment_steps: int,
    perturb_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    perturb_probability: float = 0.0,
) -> Policy:
    """Every agent follows a member drawn uniformly, redrawn every `segment_steps`; with `perturb_probability` per agent
    and step its action a becomes perturb_fn(key, a [N,A])."""

    def init(key, num_agents):
        keys = jax.random.split(key, len(members))
        carries = tuple(member.init(k, num_agents) for member, k in zip(members, keys, strict=True))
        return MixtureCarry(carries, jnp.zeros(num_agents, jnp.int32), jnp.int32(0))

    def act(key, params, carry, obs, adjacency, env_state):
        choice_key, noise_key, coin_key, members_key = jax.random.split(key, 4)
        num_agents = obs.shape[0]
        redraw = carry.t % segment_steps == 0
        drawn = jax.random.randint(choice_key, (num_agents,), 0, len(members), jnp.int32)
        choice = jnp.where(redraw, drawn, carry.choice)
        keys = jax.random.split(members_key, len(members))
        results = [
            member.act(k, params, c, obs, adjacency, env_state)
            for member, k, c in zip(members, keys, carry.members, strict=True)
        ]
        actions = jnp.stack([action for action, _ in results])  # [members, N, A]
        action = jnp.take_along_axis(actions, choice[None, :, None], axis=0)[0]
        if perturb_fn is not None:
            coin = jax.random.bernoulli(coin_key, perturb_probability, (num_agents, 1))
            action = jnp.where(coin, perturb_fn(noise_key, action), action)
        return action, MixtureCarry(tuple(c for _, c in results), choice, carry.t + 1)

    def observe_reward(carry, reward):
        members_carry = tuple(m.observe_reward(c, reward) for m, c in zip(members, carry.members, strict=True))
        return carry.replace(members=members_carry)

    return Policy(init, act, observe_reward, information="global")


@struct.dataclass
class DisturbedCarry:
    inner: Any
    t: jax.Array  # [] int32
    num_random: jax.Array  # [] int32 random steps at the start of the running period
    is_random: jax.Array  # [] bool: the last action was drawn to disturb the state


def disturbed(policy: Policy, random_policy: Policy, period_steps: int = 50, max_random_steps: int = 5) -> Policy:
    """The expert in states it would not reach: every `period_steps` the first 1..`max_random_steps` actions are random.

    `is_demonstration(carry)` is False for those: neither clones nor the inverse dynamics imitate them.
    """

    def init(key, num_agents):
        return DisturbedCarry(policy.init(key, num_agents), jnp.int32(0), jnp.int32(0), jnp.bool_(False))

    def act(key, params, carry, obs, adjacency, env_state):
        count_key, random_key, inner_key = jax.random.split(key, 3)
        phase = carry.t % period_steps
        drawn = jax.random.randint(count_key, (), 1, max_random_steps + 1, jnp.int32)
        num_random = jnp.where(phase == 0, drawn, carry.num_random)
        is_random = phase < num_random
        wanted, inner = policy.act(inner_key, params, carry.inner, obs, adjacency, env_state)
        noise, _ = random_policy.act(random_key, params, (), obs, adjacency, env_state)
        action = jnp.where(is_random, noise, wanted)
        return action, DisturbedCarry(inner, carry.t + 1, num_random, is_random)

    return Policy(
        init,
        act,
        observe_reward=lambda carry, reward: carry.replace(inner=policy.observe_reward(carry.inner, reward)),
        information=policy.information,
        message_bytes=policy.message_bytes,
        is_demonstration=lambda carry: jnp.logical_not(carry.is_random),
    )
