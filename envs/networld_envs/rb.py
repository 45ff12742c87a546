"""`rb`: 8 or 9 radios of a clustered ad-hoc network share the resource blocks of an MF-TDMA frame.

Every frame each node asks for a number of RBs. A conflict-free reservation (no RB is shared within two hops, reuse
beyond) grants them, but every requested RB costs signalling at the head of the frame: over-asking hurts all neighbours.

    action        request a_i, whole number 0 .. 9 (max_request_rbs)
    observation   14 small whole numbers, see `observation_names`
    reward        0.5 [ beta S_i - sum_{c, d >= 1} w_c (d / D_c) q_icd - omega sum_c w_c (late_ic + over_ic)
                        - eps (granted_i - successes_i) ]                     (local; S_i packets delivered)

Order of a frame: request; reservation (`rb_mac`); block fading, an RB of link i decodes when
snr_i h >= theta (1 + sum_j snr_j h_j) over the nodes j on the same RB; the S_i most urgent packets leave; heads
forward a share of what members delivered; packets past their deadline are lost, the others age; holding cost;
traffic mode; arrivals, overflow (`rb_traffic`).

The grid, the number of nodes, value ranges and the sign of the reward follow the NetWorld paper (arXiv 2602.00558). Its
simulator is closed: topology, traffic, MAC, PHY and reward weights are this project's, with the load chosen so that
coordination pays.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs import prng, rb_mac, rb_traffic
from networld_envs.rb_network import Network, draw_network, link_mean_snr
from networld_envs.rb_params import NUM_CLASSES, RBParams, check_params
from networld_envs.types import Environment, Information, TaskSpec, TimeStep, make_step
from networld_envs.units import linear_to_db


@struct.dataclass
class RBState:
    network: Network
    queue: jax.Array  # [N, 2, D] int32 packets of each class and age (frames)
    mode: jax.Array  # [N] bool, True = data traffic ON; hidden from the agents
    generated: jax.Array  # [N, history, 2] int32 arrivals (own and forwarded) of the last frames, newest first
    forwarded: jax.Array  # [N] int32 of the newest data arrivals, those handed over by members to be forwarded
    requests: jax.Array  # [N] int32 a_i of the last frame
    granted: jax.Array  # [N] int32 RBs claimed in the last frame
    lost_rbs: jax.Array  # [N] int32 RBs used without success in the last frame
    t: jax.Array  # [] int32 frames since reset


@struct.dataclass
class RBDraws:
    """All randomness of one frame. None of it depends on actions: two policies with one key see the same traffic."""

    fading: jax.Array  # [N, N, F] Exp(1) power gain at receiver i from transmitter j on a channel
    relay: jax.Array  # [N, max packets delivered] uniform: packet k of node i is forwarded when below relay_probability
    arrivals: jax.Array  # [N, 2] uniform
    mode: jax.Array  # [N] uniform
    cluster: jax.Array  # [num_clusters] uniform


def observation_names(params: RBParams) -> tuple[str, ...]:
    """Names of the observation entries: packets generated, queued, head-of-line age (frames), RBs, CQI, nodes."""
    generated = tuple(f"generated_{c}_{lag}" for lag in range(params.history_frames) for c in ("urgent", "data"))
    names = generated + ("queue_urgent", "queue_data", "oldest_urgent", "oldest_data")
    names += ("granted_rbs", "lost_rbs", "link_cqi", "two_hop_nodes")
    names += ("requested_rbs",) if params.observation_request else ()
    return names + (("heard_requests",) if params.observation_requests else ())


def _information(params: RBParams) -> tuple[Information, ...]:
    names = observation_names(params)
    two_hop = ("two_hop_nodes", "heard_requests")
    last_frame = ("granted_rbs", "lost_rbs", "link_cqi", "requested_rbs")
    local = tuple(n for n in names if n not in two_hop + last_frame)
    blocks = [
        Information(local, "own", 0, 0, "own buffer"),
        Information(
            tuple(n for n in names if n in last_frame), "own", 1, 0, "outcome of the last frame on the own link"
        ),
        # The reservation relays every request (one byte) over two hops and pays for it in mini-slots.
        Information(
            tuple(n for n in names if n in two_hop),
            "two_hop",
            1,
            params.max_agents - 1,
            "requests relayed by the reservation",
        ),
    ]
    return tuple(blocks)


def task_spec(params: RBParams) -> TaskSpec:
    """The task that these parameters define."""
    names = observation_names(params)
    return TaskSpec(
        name="rb",
        max_agents=params.max_agents,
        obs_dim=len(names),
        action_dim=1,
        action_kind="integer",
        action_low=(0.0,),
        action_high=(float(params.max_request_rbs),),
        obs_names=names,
        information=_information(params),
    )


def reset(key: chex.PRNGKey, params: RBParams) -> tuple[RBState, jax.Array]:
    """A new network with empty queues, ON with the stationary probability: (state, obs [N, O])."""
    network_key, mode_key = jax.random.split(key)
    network = draw_network(network_key, params)
    n = params.max_agents
    zeros = jnp.zeros(n, jnp.int32)
    state = RBState(
        network=network,
        queue=jnp.zeros((n, NUM_CLASSES, params.max_age_frames), jnp.int32),
        mode=(jax.random.uniform(mode_key, (n,)) < params.on_share) & network.alive,
        generated=jnp.zeros((n, params.history_frames, NUM_CLASSES), jnp.int32),
        forwarded=zeros,
        requests=zeros,
        granted=zeros,
        lost_rbs=zeros,
        t=jnp.int32(0),
    )
    return state, observe(state, params)


def draw(key: chex.PRNGKey, state: RBState, params: RBParams) -> RBDraws:
    """The randomness of one frame."""
    del state
    fading_key, relay_key, traffic_key = jax.random.split(key, 3)
    n = params.max_agents
    # One block: every separate draw costs half a second of compilation on a CPU.
    traffic = prng.uniform(traffic_key, (3 * n + params.num_clusters,))
    return RBDraws(
        fading=prng.exponential(fading_key, (n, n, params.num_channels)),
        relay=prng.uniform(relay_key, (n, params.max_request_rbs * params.max_rate)),
        arrivals=traffic[: 2 * n].reshape(n, NUM_CLASSES),
        mode=traffic[2 * n : 3 * n],
        cluster=traffic[3 * n :],
    )


def project_action(action: jax.Array, params: RBParams) -> jax.Array:
    """[N, 1] -> [N, 1]: rounded to the nearest whole number and clipped to 0 .. max_request_rbs."""
    return jnp.clip(jnp.round(action), 0.0, float(params.max_request_rbs))


def successes(used: jax.Array, fading: jax.Array, network: Network, params: RBParams) -> jax.Array:
    """[N, R] bool: the used RBs that decode, snr_i h_i >= theta_i (1 + sum_{j != i, on the same RB} snr_ji h_ji)."""
    n = params.max_agents
    on_grid = used.reshape(n, params.num_slots, params.num_channels)
    power = network.mean_snr[network.receiver][:, :, None] * fading[network.receiver]  # [N link, N transmitter, F]
    own = jnp.eye(n, dtype=bool)[:, :, None]
    signal = jnp.sum(jnp.where(own, power, 0.0), axis=1)
    others = jnp.where(own, 0.0, power)
    interference = jnp.sum(others[:, :, None, :] * on_grid[None].astype(power.dtype), axis=1)
    needed = network.link_threshold[:, None, None] * (1.0 + interference)
    return (on_grid & (signal[:, None, :] >= needed)).reshape(n, params.num_rbs)


def forwarded_packets(delivered: jax.Array, relay: jax.Array, params: RBParams) -> jax.Array:
    """[N] int32 packets that each head takes over from its members: Binomial(S_i, relay_probability) of each member."""
    is_packet = jnp.arange(relay.shape[1])[None, :] < delivered[:, None]
    is_member = np.arange(params.max_agents) >= params.num_clusters
    forwarded = jnp.sum(((relay < params.relay_probability) & is_packet).astype(jnp.int32), axis=1)
    head = np.arange(params.max_agents) % params.num_clusters
    return jnp.zeros_like(delivered).at[head].add(jnp.where(is_member, forwarded, 0))


def transition(state: RBState, action: jax.Array, draws: RBDraws, params: RBParams) -> tuple[RBState, TimeStep]:
    """One frame; see the module's docstring for the order of events. action [N, 1] -> (state, TimeStep)."""
    chex.assert_shape(action, (params.max_agents, 1))
    network = state.network
    executed = jnp.where(network.alive[:, None], project_action(action.astype(jnp.float32), params), 0.0)
    requests = executed[:, 0].astype(jnp.int32)

    head = rb_mac.signalling_head(requests, network.two_hop, params)
    claims = rb_mac.reserve(requests, head, network.two_hop, network.receiver, network.alive, state.t, params)
    granted = rb_mac.count_bits(claims)
    backlog = jnp.sum(state.queue, axis=(1, 2))
    used = rb_mac.first_bits(claims, -(-backlog // network.link_rate))  # in time order, as many as the backlog fills
    used_rbs = rb_mac.count_bits(used)
    decoded = successes(rb_mac.unpack(used, params.num_rbs), draws.fading, network, params)
    num_decoded = jnp.sum(decoded.astype(jnp.int32), axis=1)
    delivered = jnp.minimum(num_decoded * network.link_rate, backlog)

    queue, served = rb_traffic.serve(state.queue, delivered, params)
    forwarded = forwarded_packets(delivered, draws.relay, params)
    queue, late = rb_traffic.age(queue, params)
    holding = rb_traffic.holding_cost(queue, params)
    mode = rb_traffic.step_mode(state.mode, draws.mode, draws.cluster, params) & network.alive
    rates = rb_traffic.arrival_rate_per_class(mode, network.load, params)
    own = rb_traffic.clipped_poisson(draws.arrivals, rates, params.max_arrivals)
    arrivals = own.at[:, 1].add(forwarded)
    queue, overflow = rb_traffic.admit(queue, arrivals, params)

    next_state = state.replace(
        queue=queue,
        mode=mode,
        generated=jnp.concatenate([arrivals[:, None], state.generated[:, :-1]], axis=1),
        forwarded=forwarded,
        requests=requests,
        granted=granted,
        lost_rbs=used_rbs - num_decoded,
        t=state.t + 1,
    )
    reward = local_reward(delivered, holding, late + overflow, granted - num_decoded, params)
    truncated = next_state.t >= params.episode_steps
    metrics = frame_metrics(served, late, overflow, arrivals, head, next_state)
    obs = observe(next_state, params)
    return next_state, TimeStep(obs, reward, executed, jnp.bool_(False), truncated, metrics)


def local_reward(
    delivered: jax.Array, holding: jax.Array, lost_packets: jax.Array, wasted_rbs: jax.Array, params: RBParams
) -> jax.Array:
    """[N]: scale [ beta S - holding - omega sum_c w_c lost_c - eps wasted ]; lost_packets [N, 2], the others [N]."""
    urgent, data = params.class_weights
    loss = urgent * lost_packets[:, 0] + data * lost_packets[:, 1]
    value = params.reward_beta * delivered - holding - params.loss_weight * loss - params.waste_cost * wasted_rbs
    return params.reward_scale * value


def frame_metrics(
    served: jax.Array, late: jax.Array, overflow: jax.Array, arrivals: jax.Array, head: jax.Array, state: RBState
) -> dict[str, jax.Array]:
    """Counts per node and frame, float32 [N], 0 for absent nodes. Ratios are of sums: mean delay = delay_frames /
    delivered, loss share of a class = (late + overflow) / arrived."""
    delay_frames = jnp.arange(1, served.shape[-1] + 1).reshape(1, 1, -1)
    counts = {
        "delivered": jnp.sum(served, axis=(1, 2)),
        "delay_frames": jnp.sum(served * delay_frames, axis=(1, 2)),
        "arrived_urgent": arrivals[:, 0],
        "arrived_data": arrivals[:, 1],
        "late_urgent": late[:, 0],
        "late_data": late[:, 1],
        "overflow_urgent": overflow[:, 0],
        "overflow_data": overflow[:, 1],
        "requested_rbs": state.requests,
        "granted_rbs": state.granted,
        "denied_rbs": state.requests - state.granted,
        "lost_rbs": state.lost_rbs,
        "signalling_rbs": jnp.where(state.network.alive, head, 0),
        "queue_packets": jnp.sum(state.queue, axis=(1, 2)),
    }
    return {name: value.astype(jnp.float32) for name, value in counts.items()}


def observe(state: RBState, params: RBParams) -> jax.Array:
    """[N, O] float32 whole numbers, in the order of `observation_names`; zero rows for absent nodes."""
    network = state.network
    n = params.max_agents
    cqi = jnp.clip(jnp.round(linear_to_db(link_mean_snr(network)) / 5.0), 0, 9).astype(jnp.int32)
    columns = [
        state.generated.reshape(n, -1),
        jnp.sum(state.queue, axis=-1),
        rb_traffic.head_of_line_age(state.queue),
        state.granted[:, None],
        state.lost_rbs[:, None],
        cqi[:, None],
        jnp.sum(network.two_hop.astype(jnp.int32), axis=1)[:, None],
    ]
    if params.observation_request:
        columns.append(state.requests[:, None])
    if params.observation_requests:
        columns.append(jnp.sum(jnp.where(network.two_hop, state.requests[None, :], 0), axis=1)[:, None])
    entries = jnp.where(network.alive[:, None], jnp.concatenate(columns, axis=1), 0)
    return entries.astype(jnp.float32)


def adjacency(state: RBState, params: RBParams) -> jax.Array:
    """[N, N] float32: nodes in communication range, zero diagonal."""
    del params
    return state.network.one_hop.astype(jnp.float32)


def agent_mask(state: RBState, params: RBParams) -> jax.Array:
    """[N] float32, 1 = present."""
    del params
    return state.network.alive.astype(jnp.float32)


def make_rb(**param_overrides) -> Environment:
    """The `rb` environment with fields of `RBParams` changed, e.g. make_rb(mini_slots_per_rb=4, rho=1.15).

    Raises ValueError for an unknown parameter or a value outside its range.
    """
    unknown = sorted(set(param_overrides) - set(RBParams.__dataclass_fields__))
    if unknown:
        raise ValueError(f"rb: unknown parameters {unknown}; choose from {sorted(RBParams.__dataclass_fields__)}")
    params = RBParams(**param_overrides)
    check_params(params)
    spec = task_spec(params)
    return Environment(
        spec=spec,
        default_params=params,
        reset=reset,
        step=make_step(draw, transition, spec),
        transition=transition,
        observe=observe,
        adjacency=adjacency,
        agent_mask=agent_mask,
        project_action=project_action,
        draw=draw,
    )
