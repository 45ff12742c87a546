"""One decision of lookahead in the true simulator: a ceiling for planners that have to learn their model.

The rollout algorithm (Tesauro & Galperin 1996; Bertsekas 2020) over a base policy, for many agents at once: candidate
joint actions are the base policy's, perturbed at random agents; each is tried on the same imagined futures, with the
base policy acting from the next step on. Agent i is credited with the return of its closed neighbourhood and takes the
action of its best candidate. What the agents chose one by one is then compared as a whole, on fresh futures, with the
base policy's action; the better one is executed. So up to sampling error it is never worse than the base policy.

It reads the simulator's full state and law (not the futures that come), hence no agent could follow it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from networld_envs.types import Environment, Policy


@dataclasses.dataclass(frozen=True)
class LookaheadConfig:
    """Effort of the search. Env steps per decision: (num_candidates + 1) num_futures num_steps + 2 num_futures
    num_steps."""

    num_candidates: int = 16  # P perturbed joint actions
    num_futures: int = 4  # S common random futures
    num_steps: int = 8  # H steps of each
    perturbed_share: float = 0.5  # probability that an agent's action is perturbed in a candidate
    discount: float = 0.95

    def __post_init__(self):
        for name in ("num_candidates", "num_futures", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


PerturbFn = Callable[[jax.Array, jax.Array], jax.Array]  # (key, action [N, A]) -> [N, A]


def perturbation(env: Environment, size: float = 0.1) -> PerturbFn:
    """Integer actions move by -2..2; box actions by Gaussian noise of `size` times the component's range."""
    low, high = (jnp.asarray(bound, jnp.float32) for bound in (env.spec.action_low, env.spec.action_high))

    def perturb(key, action):
        if env.spec.action_kind == "integer":
            return action + jax.random.randint(key, action.shape, -2, 3).astype(action.dtype)
        return action + size * (high - low)[None, :] * jax.random.normal(key, action.shape)

    return perturb


def make_lookahead(
    env: Environment, base: Policy, perturb_fn: PerturbFn | None = None, config: LookaheadConfig | None = None
) -> Policy:
    """The lookahead over `base` in `env` with its default parameters; `params` of the policy go to `base`."""
    config = config or LookaheadConfig()
    perturb_fn = perturb_fn or perturbation(env)
    env_params = env.default_params
    weights = config.discount ** jnp.arange(config.num_steps)

    def returns(key, params, state, carry, action):
        """[N] discounted return of an action, then `base`, in the future `key`."""

        def body(loop, t):
            state, carry, action = loop
            step_key, act_key = jax.random.split(jax.random.fold_in(key, t))
            state, time_step = env.step(step_key, state, action, env_params)
            carry = base.observe_reward(carry, time_step.reward)
            adjacency, seen = env.adjacency(state, env_params), (state if base.reads_state else None)
            action, carry = base.act(act_key, params, carry, time_step.obs, adjacency, seen)
            return (state, carry, action), time_step.reward

        _, reward = jax.lax.scan(body, (state, carry, action), jnp.arange(config.num_steps))
        return weights @ reward

    def expected(key, params, state, carry, actions):
        """[P, N] mean return of joint actions [P, N, A] over the same futures."""
        futures = jax.random.split(key, config.num_futures)
        over_futures = jax.vmap(returns, in_axes=(0, None, None, None, None))
        over_actions = jax.vmap(over_futures, in_axes=(None, None, None, None, 0))
        return over_actions(futures, params, state, carry, actions).mean(1)

    def act(key, params, carry, obs, adjacency, env_state):
        base_key, coin_key, noise_key, search_key, check_key = jax.random.split(key, 5)
        seen = env_state if base.reads_state else None
        proposal, next_carry = base.act(base_key, params, carry, obs, adjacency, seen)
        keys = jax.random.split(noise_key, config.num_candidates)
        moved = jax.vmap(lambda k: perturb_fn(k, proposal))(keys)
        coins = jax.random.bernoulli(coin_key, config.perturbed_share, moved.shape[:2])
        candidates = jnp.concatenate([proposal[None], jnp.where(coins[..., None], moved, proposal[None])])
        candidates = jax.vmap(lambda a: env.project_action(a, env_params))(candidates)

        own = expected(search_key, params, env_state, next_carry, candidates)  # [P + 1, N]
        credit = own + own @ adjacency.T
        best = jnp.argmax(credit, 0)
        chosen = jnp.take_along_axis(candidates, best[None, :, None], 0)[0]
        whole = expected(check_key, params, env_state, next_carry, jnp.stack([candidates[0], chosen])).sum(-1)
        return jnp.where(whole[1] > whole[0], chosen, candidates[0]), next_carry

    def init(key: jax.Array, num_agents: int) -> Any:
        return base.init(key, num_agents)

    return Policy(init, act, base.observe_reward, information="global", reads_state=True)
