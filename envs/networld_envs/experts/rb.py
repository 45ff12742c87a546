"""Policies of the `rb` task: rules of thumb, planners, and the mixtures that collect offline data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from networld_envs.experts import rb_planner
from networld_envs.policies import disturbed, mixture, stateless
from networld_envs.rb import RBState, observation_names
from networld_envs.rb_params import RBParams
from networld_envs.rb_traffic import arrival_rate_per_class
from networld_envs.types import Policy

MF_FACTOR = (
    1.15  # how far above the pool the mean-field rule lets a neighbourhood ask: reuse beyond two hops, unused need
)
SEGMENT_FRAMES = 25  # the mixed tier redraws each agent's policy this often
PERTURB_PROBABILITY = 0.2


def _as_action(requests: jax.Array, params: RBParams) -> jax.Array:
    """[N] -> [N, 1] float32 within the action range."""
    return jnp.clip(requests, 0, params.max_request_rbs).astype(jnp.float32)[:, None]


def _column(obs: jax.Array, name: str, params: RBParams) -> jax.Array:
    return obs[:, observation_names(params).index(name)]


def observed_backlog(obs: jax.Array, params: RBParams) -> jax.Array:
    """[N] packets queued, out of the observation."""
    return _column(obs, "queue_urgent", params) + _column(obs, "queue_data", params)


def fair_share(obs: jax.Array, params: RBParams) -> jax.Array:
    """[N] floor(pool / nodes of the closed two-hop neighbourhood), out of the observation."""
    return jnp.floor(params.pool_rbs / (1.0 + _column(obs, "two_hop_nodes", params)))


def random_requests(params: RBParams) -> Policy:
    """Uniform over 0 .. max_request_rbs."""

    def act(key, obs, adjacency, env_state):
        del adjacency, env_state
        return _as_action(jax.random.randint(key, obs.shape[:1], 0, params.max_request_rbs + 1), params)

    return stateless(act)


def local_rule(rule_fn: Callable[[jax.Array, RBParams], jax.Array], params: RBParams) -> Policy:
    """A policy out of rule_fn(obs [N, O], params) -> requests [N] that looks at one row at a time."""
    return stateless(lambda key, obs, adjacency, env_state: _as_action(rule_fn(obs, params), params))


def greedy(obs: jax.Array, params: RBParams) -> jax.Array:
    """Always the maximum."""
    return jnp.full(obs.shape[:1], params.max_request_rbs)


def queue_share(factor: float) -> Callable[[jax.Array, RBParams], jax.Array]:
    """round(factor x backlog)."""
    return lambda obs, params: jnp.round(factor * observed_backlog(obs, params))


def capped_queue(extra_rbs: int) -> Callable[[jax.Array, RBParams], jax.Array]:
    """min(backlog, fair share + extra)."""
    return lambda obs, params: jnp.minimum(observed_backlog(obs, params), fair_share(obs, params) + extra_rbs)


def mean_field_rule(params: RBParams, factor: float = MF_FACTOR) -> Policy:
    """Proportional sharing with the 1-hop mean need standing for everybody within two hops.

    need = min(backlog, max_request);  expected demand D_i = need_i + |E2(i)| mean_{j in E1(i)} need_j;
    a_i = min(need_i, round(factor pool need_i / D_i)). Each node broadcasts one whole number, its need.
    """

    def act(key, obs, adjacency, env_state):
        del key, env_state
        need = jnp.minimum(observed_backlog(obs, params), params.max_request_rbs)
        degree = jnp.maximum(jnp.sum(adjacency, axis=1), 1.0)
        mean_need = jnp.sum(adjacency * need[None, :], axis=1) / degree
        demand = need + _column(obs, "two_hop_nodes", params) * mean_need
        share = factor * params.pool_rbs * need / jnp.maximum(demand, 1.0)
        return _as_action(jnp.minimum(need, jnp.round(share)), params)

    return stateless(act, information="one_hop", message_bytes=1)


def filter_mode(belief: jax.Array, state: RBState, params: RBParams) -> jax.Array:
    """[N] probability that a node's data traffic is ON given its own arrivals so far: one step of the HMM forward
    filter.

    Predict with the node's marginal transition law (a cluster's common trigger is not shared between filters), then
    weigh by the likelihood of the newest own data arrivals, Poisson clipped at max_arrivals. Before the first frame:
    the belief as is.
    """
    predicted = belief * (1.0 - params.turn_off_probability) + (1.0 - belief) * params.turn_on_any
    own_arrivals = state.generated[:, 0, 1] - state.forwarded
    load = state.network.load
    on = arrival_rate_per_class(jnp.ones_like(state.mode), load, params)[:, 1]
    off = arrival_rate_per_class(jnp.zeros_like(state.mode), load, params)[:, 1]
    log_odds = _log_likelihood(own_arrivals, on, params) - _log_likelihood(own_arrivals, off, params)
    prior = jnp.log(predicted) - jnp.log1p(-predicted)
    return jnp.where(state.t > 0, jax.nn.sigmoid(prior + log_odds), belief)


def _log_likelihood(count: jax.Array, rate: jax.Array, params: RBParams) -> jax.Array:
    """[N] log P(min(Poisson(rate), maximum) = count) up to a term that does not depend on the rate, below the maximum;
    for absent nodes (rate 0) that of rate 1, equal in both modes."""
    rate = jnp.where(rate > 0, rate, 1.0)
    inside = count * jnp.log(rate) - rate
    tail = jax.scipy.special.gammainc(float(params.max_arrivals), rate)  # P(Poisson >= maximum)
    at_maximum = jnp.log(jnp.maximum(tail, 1e-30)) + jax.scipy.special.gammaln(count + 1.0)
    return jnp.where(count >= params.max_arrivals, at_maximum, inside)


def expert(params: RBParams) -> Policy:
    """Coordinate ascent over all requests; the hidden traffic mode is replaced by its filtered estimate."""
    return _filtered_ascent(rb_planner.plan, params, information="global")


def _filtered_ascent(plan_fn: Callable[..., jax.Array], params: RBParams, **fields: Any) -> Policy:
    """A policy that plans with the expert's utility; the carry is the filtered traffic mode."""

    def init(key, num_agents):
        del key
        return jnp.full(num_agents, params.on_share)

    def act(key, _params, belief, obs, adjacency, env_state):
        del key, _params, obs, adjacency
        belief = filter_mode(belief, env_state, params)
        utility = rb_planner.expert_utility(env_state, belief, params)
        return _as_action(plan_fn(env_state, utility, params), params), belief

    return Policy(init, act, **fields)


def expert_true_mode(params: RBParams) -> Policy:
    """The same ascent told the hidden traffic mode: an upper row, not realisable."""

    def act(key, obs, adjacency, env_state):
        del key, obs, adjacency
        utility = rb_planner.expert_utility(env_state, env_state.mode.astype(jnp.float32), params)
        return _as_action(rb_planner.plan(env_state, utility, params), params)

    return stateless(act, information="global")


def maxweight(params: RBParams) -> Policy:
    """The ascent on weighted backlog times expected successes; needs no traffic model."""

    def act(key, obs, adjacency, env_state):
        del key, obs, adjacency
        return _as_action(rb_planner.plan(env_state, rb_planner.maxweight_utility(env_state, params), params), params)

    return stateless(act, information="global")


def realisable_anchor(params: RBParams) -> Policy:
    """The expert's ascent by each node for itself, with own + 1-hop state and the requests overheard over two hops.

    The views differ from node to node, so the plans do not quite fit together: it does not beat the mean-field rule on
    every network. The anchor of a normalised score is the better one of the two.

    A neighbour's message holds its buffer (one byte per class and age), its filtered mode, load and link quality.
    """
    message_bytes = sum(params.deadlines_frames) + 3
    return _filtered_ascent(rb_planner.plan_locally, params, information="two_hop", message_bytes=message_bytes)


def policies(params: RBParams) -> dict[str, Policy]:
    """Every hand-written policy of the task, from no information to all of it."""
    rules = {f"share_plus_{extra}": local_rule(capped_queue(extra), params) for extra in range(1, 6)}
    return {
        "random": random_requests(params),
        "greedy": local_rule(greedy, params),
        "share": local_rule(fair_share, params),
        "queue": local_rule(queue_share(1.0), params),
        "queue_07": local_rule(queue_share(0.7), params),
        **rules,
        "mf_rule": mean_field_rule(params),
        "realisable_anchor": realisable_anchor(params),
        "maxweight": maxweight(params),
        "expert": expert(params),
        "expert_true_mode": expert_true_mode(params),
    }


def shift_requests(params: RBParams) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(key, action [N, 1]) -> action moved by -2, -1, +1 or +2 RBs."""

    def perturb(key, action):
        shift = jax.random.choice(key, jnp.array([-2.0, -1.0, 1.0, 2.0]), action.shape)
        return jnp.clip(action + shift, 0.0, float(params.max_request_rbs))

    return perturb


def tiers(params: RBParams) -> dict[str, Policy]:
    """Who collects the offline data: expert, medium, mixed, noisy_expert."""
    named = policies(params)
    members = [named[name] for name in ("random", "share", "queue", "share_plus_3", "mf_rule", "expert")]
    return {
        "expert": named["expert"],
        "medium": named["share_plus_3"],
        "mixed": mixture(members, SEGMENT_FRAMES, shift_requests(params), PERTURB_PROBABILITY),
        "noisy_expert": disturbed(named["expert"], named["random"]),
    }
