"""The row `hindsight_constant` of `ns`: every BS keeps the constant split that suits its whole episode best.

It is no policy, since it knows the future. The choice is made on the expected rewards of all splits over the episode's
true users and interference (`experts.ns.hindsight_shares`), then simulated like every other row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

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
        parts.append(run(keys, choose(keys[0]), params))
        if advance:
            advance(1, reward=parts[-1].mean)
    return concatenate_scores(parts)
