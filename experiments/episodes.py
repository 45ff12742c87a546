"""One played episode, for pictures and figures."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.instances import instance_keys
from networld_envs.types import Environment, Policy, TimeStep
from networld_jax.evaluation import charge_messages
from networld_jax.rollout import advance, start


class Episode(NamedTuple):
    """NumPy arrays of one instance."""

    obs: np.ndarray  # [L+1, N, O] before every step, and after the last
    steps: TimeStep  # leading L
    states: Any  # the environment's states before every step, leading L
    last_state: Any
    adjacency: np.ndarray  # [N, N]
    agent_mask: np.ndarray  # [N]


def play(
    env: Environment, policy: Policy, policy_params: Any, num_steps: int, split: str = "validation", instance: int = 0
) -> Episode:
    """`num_steps` steps of one instance of a split; messages are charged where they take air time."""
    key = instance_keys(env.spec.name, split, 1, instance)[0]
    params = charge_messages(env.default_params, policy)

    @jax.jit
    def run(key, policy_params):
        loop = start(key, env, params, policy)

        def body(loop, t):
            after, (step, _) = advance(key, t, loop, env, params, policy, policy_params)
            return after, (step, loop[0])

        last, (steps, states) = jax.lax.scan(body, loop, jnp.arange(num_steps))
        obs = jnp.concatenate([loop[1][None], steps.obs])
        return Episode(obs, steps, states, last[0], env.adjacency(loop[0], params), env.agent_mask(loop[0], params))

    return jax.tree.map(np.asarray, run(key, policy_params))
