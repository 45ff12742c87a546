"""The row `hindsight_constant` of `ns`: every BS keeps the constant split that suits its whole episode best.

It is no policy, since it knows the future. Candidates are the best split by expected reward over the episode's true
users and interference (`experts.ns.hindsight_shares`) and the fitted constant; both are simulated like every other row,
with the same randomness, and each BS counts with its better one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs.experts import ns
from networld_envs.instances import instance_keys
from networld_envs.types import Environment
from networld_jax.evaluation import Protocol, Scores, concatenate_scores, make_evaluator


def hindsight_constant(
    env: Environment, protocol: Protocol, split: str, advance: Callable[..., None] | None = None
) -> Scores:
    """Scores of the best constant split per BS and episode on the instances of a range."""
    params = env.default_params
    steps = {"num_steps": protocol.num_steps, "burn_in_steps": protocol.burn_in_steps}
    choose = jax.jit(lambda key: ns.hindsight_shares(key, params, **steps))
    run = make_evaluator(env, ns.given_split(params), protocol)
    parts = []
    for i in range(protocol.num_instances):
        keys = instance_keys("ns", split, 1, i)
        chosen = choose(keys[0])
        common = jnp.broadcast_to(jnp.asarray(ns.CONSTANT_SHARES, chosen.dtype), chosen.shape)
        parts.append(_better(*(run(keys, shares, params) for shares in (chosen, common))))
        if advance:
            advance(1, reward=parts[-1].mean)
    return concatenate_scores(parts)


def _better(a: Scores, b: Scores) -> Scores:
    """Per instance and BS what had the higher reward; metrics that are no BS's own are those of `a`."""
    is_a = a.per_agent["reward"] >= b.per_agent["reward"]
    per_agent = {name: np.where(is_a, a.per_agent[name], b.per_agent[name]) for name in a.per_agent}
    own = {name: values.mean(axis=-1) for name, values in per_agent.items()}
    reward = own.pop("reward")
    return Scores(reward, a.metrics | own, per_agent)
