"""Coordinate ascent over requests with the exact reservation: the planner behind the `rb` experts.

Given a utility table u[i, g] = value of granting g RBs to node i, it looks for requests a that maximise

    sum_i u[i, grant_i(a)] - 1e-4 sum_i a_i,     grant(a) = the reservation of `rb_mac`, signalling included,

starting from conservative water-filling, in two passes over the nodes, largest backlog first, all requests of a node
tried. The reservation is exact, the channel enters by its mean: a granted RB that is used succeeds with probability
e^{-theta/snr}.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs import rb_mac, rb_traffic
from networld_envs.rb import RBState
from networld_envs.rb_network import Network, arrival_rates, link_mean_snr
from networld_envs.rb_params import RBParams

REQUEST_COST = 1e-4  # breaks ties towards asking less
DRIFT_WEIGHT = 0.02  # of the squared backlog expected DRIFT_FRAMES from now
DRIFT_FRAMES = 3.0
NUM_PASSES = 2


@struct.dataclass
class Problem:
    """What the ascent optimises, for N nodes and requests 0 .. G - 1."""

    utility: jax.Array  # [N, G] value of g granted RBs
    need: jax.Array  # [N] int32 largest request worth making
    backlog: jax.Array  # [N] int32 packets, for the order of the ascent
    free: jax.Array  # [N] bool nodes whose request is decided; the others keep their start
    two_hop: jax.Array  # [N, N] bool conflicts
    receiver: jax.Array  # [N] int32
    alive: jax.Array  # [N] bool
    t: jax.Array  # [] int32


def needs(backlog: jax.Array, link_rate: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32 RBs that the backlog fills, at most max_request_rbs."""
    return jnp.minimum(-(-backlog // link_rate), params.max_request_rbs)


def success_probability(network: Network) -> jax.Array:
    """[N] e^{-theta / snr}: an RB without interference decodes under Rayleigh fading."""
    return jnp.exp(-network.link_threshold / link_mean_snr(network))


def packet_values(params: RBParams) -> np.ndarray:
    """[2, D] value of delivering a packet of class c and age d now: w_c ((d + 1) / D_c + omega 2^{-(slack - 1)}) +
    beta.

    The holding cost of the next frame, and the loss halved for every frame of slack = D_c - d left.
    """
    d = jnp.arange(params.max_age_frames)[None, :]
    deadline = jnp.array(params.deadlines_frames)[:, None]
    weight = jnp.stack(list(map(jnp.asarray, params.class_weights)))[:, None]
    urgency = (d + 1) / deadline + params.loss_weight * 2.0 ** (1.0 - (deadline - d))
    return weight * urgency + params.reward_beta


def delivered_per_grant(need: jax.Array, network: Network, params: RBParams) -> jax.Array:
    """[N, G] expected packets out of g RBs: rate min(g, need) e^{-theta / snr}."""
    grants = jnp.arange(params.max_request_rbs + 1)[None, :]
    used = jnp.minimum(grants, need[:, None])
    return used * (network.link_rate * success_probability(network))[:, None]


def deadline_value(queue: jax.Array, delivered: jax.Array, params: RBParams) -> jax.Array:
    """[N, G] value of the `delivered` [N, G] (real) most urgent packets of each queue, linear between whole packets."""
    cells, before = rb_traffic.in_deadline_order(queue, params)
    value = packet_values(params).reshape(-1)[rb_traffic.deadline_order(params)]
    taken = jnp.clip(delivered[:, :, None] - before[:, None, :], 0.0, cells[:, None, :])
    return jnp.sum(taken * value.reshape(1, 1, -1), axis=-1)


def expert_utility(state: RBState, on_probability: jax.Array, params: RBParams) -> jax.Array:
    """[N, G]: value of the expected successes s, minus the expected backlog squared, minus wasted RBs.

    u(g) = V(s) - 0.02 (Q + 3 lambda - s)^2 - eps (g - s / rate), lambda at the given probability [N] of being ON.
    """
    network = state.network
    backlog = jnp.sum(state.queue, axis=(1, 2))
    delivered = delivered_per_grant(needs(backlog, network.link_rate, params), network, params)
    rate = arrival_rates(network, params, on_probability)
    future = (backlog + DRIFT_FRAMES * rate)[:, None] - delivered
    wasted = jnp.arange(params.max_request_rbs + 1)[None, :] - delivered / network.link_rate[:, None]
    value = deadline_value(state.queue, delivered, params)
    return value - DRIFT_WEIGHT * future**2 - params.waste_cost * wasted


def maxweight_utility(state: RBState, params: RBParams) -> jax.Array:
    """[N, G]: s sum_c w_c Q_c, the weighted backlog times the expected successes."""
    network = state.network
    per_class = jnp.sum(state.queue, axis=-1)
    urgent, data = params.class_weights
    weight = urgent * per_class[:, 0] + data * per_class[:, 1]
    need = needs(jnp.sum(per_class, axis=1), network.link_rate, params)
    return weight[:, None] * delivered_per_grant(need, network, params)


def water_filling(need: jax.Array, two_hop: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32 requests min(need_i, level_i), so that no closed two-hop neighbourhood asks for more than the pool.

    A neighbourhood's level is the largest L with sum min(need_j, L) <= pool; a node obeys the lowest one it belongs to.
    """
    n = need.shape[0]
    closed = two_hop | jnp.eye(n, dtype=bool)
    levels = jnp.arange(params.max_request_rbs + 1)
    filled = jnp.minimum(need[:, None], levels[None, :])  # [N, G]
    total = jnp.sum(jnp.where(closed[:, :, None], filled[None], 0), axis=1)
    level = jnp.sum((total <= params.pool_rbs).astype(jnp.int32), axis=1) - 1
    lowest = jnp.min(jnp.where(closed, level[None, :], params.max_request_rbs), axis=1)
    return jnp.minimum(need, jnp.maximum(lowest, 0))


def plan_value(requests: jax.Array, problem: Problem, params: RBParams) -> jax.Array:
    """[] objective of the requests [N]."""
    head = rb_mac.signalling_head(requests, problem.two_hop, params)
    claims = rb_mac.reserve(requests, head, problem.two_hop, problem.receiver, problem.alive, problem.t, params)
    granted = rb_mac.count_bits(claims)
    is_grant = granted[:, None] == jnp.arange(problem.utility.shape[1])[None, :]
    value = jnp.where(is_grant, problem.utility, 0.0)
    return jnp.sum(value) - REQUEST_COST * jnp.sum(requests)


def ascend(problem: Problem, start: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32 requests after NUM_PASSES of coordinate ascent from `start` [N]; requests above the need are left
    out."""
    chex.assert_rank([problem.utility, start], [2, 1])
    num_agents, num_requests = problem.utility.shape
    node = jnp.arange(num_agents)
    candidates = jnp.arange(num_requests)

    def improve(requests, i):
        tried = jnp.where((node == i)[None, :], candidates[:, None], requests[None, :])  # [G, N]
        value = jax.vmap(lambda r: plan_value(r, problem, params))(tried)
        best = jnp.argmax(jnp.where(candidates <= problem.need[i], value, -jnp.inf)).astype(jnp.int32)
        return requests.at[i].set(jnp.where(problem.free[i], best, requests[i])), None

    order = jnp.tile(jnp.argsort(-problem.backlog), NUM_PASSES)
    return jax.lax.scan(improve, start, order)[0]


def plan(state: RBState, utility: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32 requests that a planner which sees every node makes, from a utility table [N, G]."""
    network = state.network
    backlog = jnp.sum(state.queue, axis=(1, 2))
    need = needs(backlog, network.link_rate, params)
    problem = Problem(utility, need, backlog, network.alive, network.two_hop, network.receiver, network.alive, state.t)
    return ascend(problem, water_filling(need, network.two_hop, params), params)


def plan_locally(state: RBState, utility: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32: what each node asks for when it plans with what it hears, instead of with the whole network.

    Node i knows the queues of itself and its 1-hop neighbours (their utility rows), and of the other nodes within two
    hops what they asked for in the last frame, which the reservation relays. It plans for all of them and executes its
    own entry; nodes further away do not exist for it. An RB granted to a node that it only overhears is worth the
    average of a needed RB of the nodes that it sees, up to the request overheard.
    """
    return jax.vmap(lambda i: ascend(*_view(i, state, utility, params), params)[i])(jnp.arange(params.max_agents))


def _view(i: jax.Array, state: RBState, utility: jax.Array, params: RBParams) -> tuple[Problem, jax.Array]:
    """(problem, start) as node i sees them."""
    network = state.network
    backlog = jnp.sum(state.queue, axis=(1, 2))
    need = needs(backlog, network.link_rate, params)
    seen = network.one_hop[i] | (jnp.arange(params.max_agents) == i)
    heard = network.two_hop[i] & ~seen
    known = seen | heard
    gain = jnp.max(utility, axis=1) - utility[:, 0]
    value_per_rb = jnp.sum(jnp.where(seen, gain, 0.0)) / jnp.maximum(jnp.sum(jnp.where(seen, need, 0)), 1)
    grants = jnp.arange(utility.shape[1])
    assumed = value_per_rb * jnp.minimum(grants[None, :], jnp.where(heard, state.requests, 0)[:, None])
    wanted = jnp.where(seen, need, jnp.where(heard, state.requests, 0))
    problem = Problem(
        utility=jnp.where(seen[:, None], utility, assumed),
        need=wanted,
        backlog=jnp.where(seen, backlog, 0),
        free=known & network.alive,
        two_hop=network.two_hop & known[:, None] & known[None, :],
        receiver=network.receiver,
        alive=network.alive,
        t=state.t,
    )
    return problem, water_filling(wanted, problem.two_hop, params)
