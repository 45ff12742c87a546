"""Who is where, who hears whom, and how much traffic each node gets: everything that is static in an episode."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from networld_envs.rb_params import RBParams
from networld_envs.topology import within_two_hops
from networld_envs.units import db_to_linear, linear_to_db

MIN_DISTANCE = 0.05  # in communication ranges
HEAD_RADIUS_SHARE = 0.1  # heads sit near the middle of their cluster


@struct.dataclass
class Network:
    """One drawn network. Nodes 0 .. num_alive - 1 exist; the first `num_clusters` of them are cluster heads."""

    alive: jax.Array  # [N] bool
    position: jax.Array  # [N, 2] in communication ranges
    mean_snr: jax.Array  # [N, N] mean SNR between two nodes, linear, symmetric
    one_hop: jax.Array  # [N, N] bool, distance <= 1, zero diagonal
    two_hop: jax.Array  # [N, N] bool, one hop or a common neighbour, zero diagonal
    receiver: jax.Array  # [N] int32 member -> its head; head k -> head k - 1; head 0 -> head 1
    load: jax.Array  # [N] traffic multiplier m_i (0 for absent nodes)
    link_threshold: jax.Array  # [N] SINR that decodes an RB of the link i -> receiver[i], linear
    link_rate: jax.Array  # [N] int32 packets in an RB of that link


def receivers(params: RBParams) -> jax.Array:
    """[N] int32, the same in every network."""
    node = jnp.arange(params.max_agents)
    head = node % params.num_clusters
    next_head = jnp.where(node == 0, 1, node - 1)
    return jnp.where(node < params.num_clusters, next_head, head).astype(jnp.int32)


def link_mean_snr(network: Network) -> jax.Array:
    """[N] mean SNR of node i at its receiver, linear."""
    return jnp.take_along_axis(network.mean_snr, network.receiver[:, None], axis=1)[:, 0]


def arrival_rates(network: Network, params: RBParams, on_share: jax.Array) -> jax.Array:
    """[N] packets per frame at each node: own traffic when ON with probability `on_share` [N], and what it forwards.

    lambda_i = m_i (lambda_urgent + lambda_off + on_share (lambda_on - lambda_off)) + relay_probability sum of its
    members'
    """
    data = params.data_rate_off + on_share * (params.data_rate_on - params.data_rate_off)
    own = network.load * (params.urgent_rate + data)
    is_member = jnp.arange(params.max_agents) >= params.num_clusters
    forwarded = jnp.where(is_member, own, 0.0) * params.relay_probability
    return own + jnp.zeros_like(own).at[network.receiver].add(forwarded)


def draw_positions(key: chex.PRNGKey, params: RBParams) -> jax.Array:
    """[N, 2]: cluster k around (k spacing, 0) at radius r sqrt(U(0.05, 1)), a tenth of it for heads."""
    node = jnp.arange(params.max_agents)
    uniform = jax.random.uniform(key, (2, params.max_agents))
    radius = params.cluster_radius * jnp.sqrt(0.05 + 0.95 * uniform[0])
    radius = radius * jnp.where(node < params.num_clusters, HEAD_RADIUS_SHARE, 1.0)
    angle = 2.0 * jnp.pi * uniform[1]
    centre_x = params.cluster_spacing * (node % params.num_clusters)
    return jnp.stack([centre_x + radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1)


def distances(position: jax.Array) -> jax.Array:
    """[N, N] in communication ranges, at least MIN_DISTANCE; differentiable on the diagonal too."""
    difference = position[:, None] - position[None, :]
    return jnp.maximum(jnp.sqrt(jnp.sum(difference**2, axis=-1) + 1e-12), MIN_DISTANCE)


def draw_mean_snr(key: chex.PRNGKey, distance: jax.Array, params: RBParams) -> jax.Array:
    """[N, N]: 10^((snr_at_range + s_ij) / 10) d_ij^-exponent with symmetric shadowing s_ij ~ N(0, shadowing_db^2)."""
    shadow_db = params.shadowing_db * jax.random.normal(key, distance.shape)
    upper = jnp.triu(shadow_db)
    symmetric_db = upper + jnp.triu(shadow_db, 1).T
    return db_to_linear(params.snr_at_range_db + symmetric_db) * distance ** (-params.path_loss_exponent)


def scale_load(network: Network, params: RBParams) -> Network:
    """Multiplies the load by one factor so that the busiest closed two-hop neighbourhood carries rho times the pool:

        max_i  sum_{j in {i} u E2(i)}  lambda_j e^{theta_j / snr_j} / rate_j  =  rho R M / (M + 1),

    e^{theta / snr} being the mean number of attempts per packet under Rayleigh fading.
    """
    rate = arrival_rates(network, params, jnp.full_like(network.load, params.on_share))
    attempts = jnp.exp(network.link_threshold / link_mean_snr(network))
    wanted_rbs = rate * attempts / network.link_rate
    neighbourhood_rbs = wanted_rbs + jnp.sum(jnp.where(network.two_hop, wanted_rbs[None, :], 0.0), axis=1)
    busiest_rbs = jnp.max(jnp.where(network.alive, neighbourhood_rbs, 0.0))
    return network.replace(load=network.load * (params.rho * params.pool_rbs / busiest_rbs))


def draw_network(key: chex.PRNGKey, params: RBParams) -> Network:
    """Number of nodes, positions, links and load of one episode."""
    alive_key, position_key, shadow_key, load_key = jax.random.split(key, 4)
    choice = jax.random.randint(alive_key, (), 0, len(params.alive_choices))
    num_alive = jnp.array(params.alive_choices, jnp.int32)[choice]
    alive = jnp.arange(params.max_agents) < num_alive
    position = draw_positions(position_key, params)
    distance = distances(position)
    mean_snr = draw_mean_snr(shadow_key, distance, params)
    present = (alive[:, None] & alive[None, :]) & ~jnp.eye(params.max_agents, dtype=bool)
    one_hop = (distance <= 1.0) & present
    log_load = params.load_std * jax.random.normal(load_key, alive.shape) - 0.5 * params.load_std**2
    network = Network(
        alive=alive,
        position=position,
        mean_snr=mean_snr,
        one_hop=one_hop,
        two_hop=within_two_hops(one_hop.astype(jnp.float32)) > 0,
        receiver=receivers(params),
        load=jnp.where(alive, jnp.exp(log_load), 0.0),
        link_threshold=jnp.full(alive.shape, params.threshold, mean_snr.dtype),
        link_rate=jnp.ones(alive.shape, jnp.int32),
    )
    return scale_load(choose_rates(network, params), params)


def choose_rates(network: Network, params: RBParams) -> Network:
    """Two packets per RB on links whose mean SNR exceeds the rate-2 threshold by the margin; off with margin None."""
    if params.rate2_margin_db is None:
        return network
    fast = linear_to_db(link_mean_snr(network)) >= params.rate2_threshold_db + params.rate2_margin_db
    return network.replace(
        link_threshold=jnp.where(fast, params.rate2_threshold, network.link_threshold),
        link_rate=jnp.where(fast, 2, 1).astype(jnp.int32),
    )
