"""Closed loop: policy and environment in one compiled scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from networld_envs.types import Environment, Policy
from networld_jax.types import Params, Trajectories


def start(key: jax.Array, env: Environment, env_params: Any, policy: Policy) -> tuple[Any, jax.Array, Any]:
    """(state, obs [N, O], policy carry) of the instance `key`."""
    reset_key, policy_key = jax.random.split(jax.random.fold_in(key, 0))
    state, obs = env.reset(reset_key, env_params)
    return state, obs, policy.init(policy_key, env.spec.max_agents)


def advance(
    key: jax.Array,
    t: jax.Array,
    loop: tuple[Any, jax.Array, Any],
    env: Environment,
    env_params: Any,
    policy: Policy,
    policy_params: Params,
) -> tuple[tuple[Any, jax.Array, Any], tuple[Any, jax.Array]]:
    """One decision and one environment step. The environment's draws at step t depend on (key, t) only, so every policy
    meets the same randomness. Returns the new loop and (TimeStep, is_demonstration [])."""
    state, obs, carry = loop
    act_key, step_key = jax.random.split(jax.random.fold_in(key, 1 + t))
    adjacency = env.adjacency(state, env_params)
    visible_state = state if policy.reads_state else None
    action, carry = policy.act(act_key, policy_params, carry, obs, adjacency, visible_state)
    state, time_step = env.step(step_key, state, action, env_params)
    carry = policy.observe_reward(carry, time_step.reward)
    demonstrated = policy.is_demonstration(carry) if policy.is_demonstration else jnp.bool_(True)
    return (state, time_step.obs, carry), (time_step, demonstrated)


def rollout(
    key: jax.Array, env: Environment, env_params: Any, policy: Policy, policy_params: Params, num_steps: int
) -> Trajectories:
    """One trajectory of `num_steps` steps (without the leading R) of the instance `key`; vmap over keys for many."""
    loop = start(key, env, env_params, policy)
    first_obs, state = loop[1], loop[0]

    def body(loop, t):
        return advance(key, t, loop, env, env_params, policy, policy_params)

    _, (steps, demonstrated) = jax.lax.scan(body, loop, jnp.arange(num_steps))
    return Trajectories(
        obs=jnp.concatenate([first_obs[None], steps.obs]),
        action=steps.action,
        reward=steps.reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
        adjacency=env.adjacency(state, env_params),
        agent_mask=env.agent_mask(state, env_params),
        is_demonstration=demonstrated,
    )
