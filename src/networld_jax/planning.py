"""Decentralised receding-horizon planning: encode, exchange one message, imagine, decode one action, repeat.

Agent i's action depends on its own observation, the messages of its 1-hop neighbours, and its own random key
(`fold_in(step key, i)`), so one exported agent reproduces the batched planner.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs.types import Policy
from networld_jax import action_heads, sampling
from networld_jax.diffusion import predict_x0
from networld_jax.mean_field import Neighbours, mean_field, quantise
from networld_jax.normalisation import action_std
from networld_jax.schedules import NoiseSchedule
from networld_jax.types import Params, Plan, PlannerConfig, TaskStats
from networld_jax.world_model import WorldModel


@struct.dataclass
class PolicyParams:
    """What a planner needs at run time: usually the EMA weights, and the task's constants."""

    params: Params
    stats: TaskStats


ImagineFn = Callable[..., jax.Array]
"""(policy_params, keys [S], z [S, D], m [S, D]) -> x [S, H, 2D]: the present in row 0, the imagined future below. With
`PlannerConfig.warm_start` also given previous= [S, H, 2D], the plan of the step before."""

GuidanceFn = Callable[[PolicyParams, jax.Array], sampling.PredictFn]
"""(policy_params, keys [S]) -> gradient function (x [S, H, 2D], k [S]) -> [S, H, 2D] that plans ascend."""

RankFn = Callable[[PolicyParams, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(policy_params, z [S, D], m [S, D], action [S, A], x [S, H, 2D]) -> [S]; the candidate with the largest value is
executed."""

DecodeFn = Callable[[PolicyParams, jax.Array], jax.Array]
"""(policy_params, x [S, H, 2D]) -> actions [S, A]."""


def return_gradient(world_model: WorldModel, task: str) -> GuidanceFn:
    """grad_x J(x_k, k) of the classifier's return: what plans ascend by default."""
    index = world_model.task_index(task)

    def guidance(policy_params, keys):
        del keys

        def total_return(x, k):
            task_index = jnp.full(x.shape[0], index, jnp.int32)
            return world_model.predict_return(policy_params.params, task_index, x, k).sum()

        return jax.grad(total_return)

    return guidance


def flipped(guidance: GuidanceFn) -> GuidanceFn:
    """Sham control: down the gradient."""

    def down(policy_params, keys):
        gradient = guidance(policy_params, keys)
        return lambda x, k: -gradient(x, k)

    return down


def random_direction(guidance: GuidanceFn, channel_mask: jax.Array) -> GuidanceFn:
    """Sham control: a random direction, new at every noise level, with the norm that the gradient has per plan."""
    tag = 2**31 - 1  # samplers fold small numbers into the same keys

    def sham(policy_params, keys):
        gradient = guidance(policy_params, keys)

        def direction(x, k):
            draw = lambda key, k: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, tag), k), x.shape[1:])  # noqa: E731
            noise = jax.vmap(draw)(keys, k) * channel_mask[None, None, :]
            return _with_norm_of(noise, gradient(x, k))

        return direction

    return sham


def value_gradient(world_model: WorldModel, task: str, guidance: GuidanceFn) -> GuidanceFn:
    """Sham control: up the gradient of the mean state value V(z_h, m_h) over the future rows, which knows nothing of
    plans, with the norm that `guidance` has per plan."""
    dim = world_model.config.latent_dim

    def sham(policy_params, keys):
        gradient = guidance(policy_params, keys)

        def total_value(x):
            return world_model.value(policy_params.params, task, x[:, 1:, :dim], x[:, 1:, dim:]).mean(-1).sum()

        return lambda x, k: _with_norm_of(jax.grad(total_value)(x), gradient(x, k))

    return sham


def _with_norm_of(direction: jax.Array, other: jax.Array) -> jax.Array:
    """`direction` [S, H, C] with the norm of `other`, plan by plan; 0 where it has no direction."""
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True))  # noqa: E731
    own = norm(direction)
    return direction * jnp.where(own > 0, norm(other) / jnp.where(own > 0, own, 1.0), 0.0)


def diffusion_imagination(
    world_model: WorldModel,
    schedule: NoiseSchedule,
    task: str,
    config: PlannerConfig,
    sampler: Callable[..., jax.Array] = sampling.sample_ddim,
    guidance: GuidanceFn | None = None,
) -> ImagineFn:
    """Guided sampling: x0 <- x0 + w sigma_k^2 grad_x J(x_k, k), first row clamped to the present after every step.

    With `warm_start` = s only the s K cleanest levels are denoised, from the previous plan a step on (Janner et al.
    2022): x = signal_k shift(previous) + sigma_k noise. With `guide_metric="surprise"` the gradient is multiplied by
    the channels' one-step variances, so that only what a step leaves open is moved. `guidance` replaces the gradient
    (None: that of the return, in one pass with the prediction). With `num_averaged` > 1 the plan is the mean of so many
    samples, drawn in one call.
    """
    index = world_model.task_index(task)
    mask = world_model.channel_mask(task)
    levels = planning_levels(schedule.num_steps, config)

    def draw(policy_params, keys, z, m, previous=None):
        params, present = policy_params.params, jnp.concatenate([z, m], -1)
        task_index = jnp.full(z.shape[0], index, jnp.int32)

        def as_x0(x, k, prediction):
            prediction = prediction * mask[None, None, :]
            return predict_x0(x, k, prediction, schedule) if world_model.config.prediction == "noise" else prediction

        def predict(x, k):
            return as_x0(x, k, world_model.predict(params, task_index, x, k))

        def predict_and_score(x, k):
            prediction, score = world_model.predict_both(params, task_index, x, k)
            return as_x0(x, k, prediction), score

        if config.guide_scale:
            factor_fn = sampling.sigma_squared(schedule, config.guide_scale)
            if guidance is None:
                both = sampling.value_and_gradient(predict_and_score)
            else:
                gradient, unguided = guidance(policy_params, keys), predict
                both = lambda x, k: (unguided(x, k), gradient(x, k))  # noqa: E731
            if config.guide_metric == "surprise":
                variance = jnp.square(policy_params.stats.surprise)
                both = sampling.preconditioned(both, jnp.concatenate([variance, variance]))
            predict = sampling.guided_jointly(both, factor_fn)
        return sampler(
            keys,
            predict,
            schedule,
            (world_model.config.horizon, present.shape[-1]),
            condition_fn=lambda x: (x * mask[None, None, :]).at[:, 0].set(present),
            levels=levels,
            initial_noise_scale=config.initial_noise_scale,
            initial_x0=None if previous is None else shift_plan(previous).at[:, 0].set(present),
            clip=config.latent_clip,
        )

    def imagine(policy_params, keys, z, m, previous=None):
        rows = (z, m) if previous is None else (z, m, previous)
        return sampling.averaged(functools.partial(draw, policy_params), config.num_averaged)(keys, *rows)

    return imagine


def planning_levels(num_levels: int, config: PlannerConfig) -> np.ndarray:
    """Levels a planner's sampler visits: from the noisiest, or with `warm_start` from the cleaner ones."""
    if not config.warm_start:
        return sampling.sampling_levels(num_levels, config.num_steps)
    used = max(1, round(config.warm_start * num_levels))
    return sampling.sampling_levels(used, min(config.num_steps, used))


def shift_plan(x: jax.Array) -> jax.Array:
    """The plan [..., H, 2D] as seen one step later: rows 1..H-1, the last one twice."""
    return jnp.concatenate([x[..., 1:, :], x[..., -1:, :]], axis=-2)


def repeat_present(world_model: WorldModel) -> ImagineFn:
    """Control without a world model: the future equals the present, so the inverse dynamics acts alone."""

    def imagine(policy_params, keys, z, m, previous=None):
        del policy_params, keys, previous
        return jnp.tile(jnp.concatenate([z, m], -1)[:, None], (1, world_model.config.horizon, 1))

    return imagine


def random_imagination(world_model: WorldModel, task: str) -> ImagineFn:
    """Control without a world model: the future is standard normal noise."""
    mask = world_model.channel_mask(task)

    def imagine(policy_params, keys, z, m, previous=None):
        del policy_params, previous
        present = jnp.concatenate([z, m], -1)
        shape = (world_model.config.horizon, present.shape[-1])
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return (noise * mask[None, None, :]).at[:, 0].set(present)

    return imagine


def rank_by_action_value(world_model: WorldModel, task: str) -> RankFn:
    """Q(z_0, m_0, a): averages out the luck in a plan."""

    def rank(policy_params, z, m, action, x):
        del x
        return world_model.action_value(policy_params.params, policy_params.stats, task, z, m, action)

    return rank


def rank_by_return(world_model: WorldModel, task: str) -> RankFn:
    """The classifier's return of the finished plan, J(x, 0)."""
    index = world_model.task_index(task)

    def rank(policy_params, z, m, action, x):
        del z, m, action
        levels = jnp.zeros(x.shape[0], jnp.int32)
        return world_model.predict_return(policy_params.params, jnp.full_like(levels, index), x, levels)

    return rank


def decode_plans(
    world_model: WorldModel,
    task: str,
    policy_params: PolicyParams,
    x: jax.Array,
    noise: float = PlannerConfig.inverse_dynamics_noise,
    shift_std: float = 0.0,
) -> jax.Array:
    """Actions [S, A] of plans [S, H, 2D] from rows 0 and 1: the inverse model's mean + shift_std std(a) over the data.

    `noise` is what a noise-aware inverse model is told. Where asking for too little costs more than asking for too
    much, a shift above 0 is nearer to the Bayes decision than the mean.
    """
    dim, stats = world_model.config.latent_dim, policy_params.stats
    z, m, z_next = x[:, 0, :dim], x[:, 0, dim:], x[:, 1, :dim]
    logits = world_model.action_logits(policy_params.params, stats, task, z, m, z_next, noise)
    action = action_heads.decode_mean(logits, stats)
    return action + shift_std * action_std(stats)[None, :] if shift_std else action


def decoder(world_model: WorldModel, task: str, config: PlannerConfig) -> DecodeFn:
    """`decode_plans` as a planner's configuration asks for it."""
    noise, shift = config.inverse_dynamics_noise, config.action_shift_std
    return functools.partial(decode_plans, world_model, task, noise=noise, shift_std=shift)


MapFn = Callable[[Callable[..., Plan]], Callable[..., Plan]]
"""What turns plan_agents(policy_params, keys [N], z [N, D], m [N, D]) into a function that does the same elsewhere:
`in_chunks`, `sharding.over_agents`."""


def in_chunks(size: int) -> MapFn:
    """Plans for `size` agents at a time: memory of one chunk however many agents there are, and a batch shape (so the
    rounding) that depends neither on their number, once it exceeds `size`, nor on the number of devices."""
    if size < 1:
        raise ValueError(f"a chunk needs at least 1 agent, got {size}")

    def transform(plan_agents):
        def chunked(policy_params, *rows):
            num_agents = rows[0].shape[0]
            if num_agents <= size:
                return plan_agents(policy_params, *rows)
            chunks = -(-num_agents // size)
            padded = jnp.minimum(jnp.arange(chunks * size), num_agents - 1).reshape(chunks, size)
            parts = jax.lax.map(lambda part: plan_agents(policy_params, *part), tuple(row[padded] for row in rows))
            return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:]))[:num_agents], parts)

        return chunked

    return transform


def make_agent_plans(
    world_model: WorldModel,
    task: str,
    imagine_fn: ImagineFn,
    num_candidates: int = 1,
    rank_fn: RankFn | None = None,
    decode_fn: DecodeFn | None = None,
) -> Callable[..., Plan]:
    """plans(policy_params, keys [S], z [S, D], m [S, D]) -> Plan of S agents, each with a key of its own: an agent
    alone plans what it would plan among others. `previous` [S, H, 2D], the plans of the step before, is passed on to
    `imagine_fn`."""
    score = rank_by_return(world_model, task)
    rank_fn = rank_fn or score
    decode = decode_fn or functools.partial(decode_plans, world_model, task)

    def plans(policy_params, keys, z, m, previous=None):
        num_agents = z.shape[0]
        earlier = {} if previous is None else {"previous": jnp.repeat(previous, num_candidates, axis=0)}
        if num_candidates == 1:
            x = imagine_fn(policy_params, keys, z, m, **earlier)
            return Plan(x, score(policy_params, z, m, None, x), decode(policy_params, x))
        keys, z, m = sampling.several(num_candidates, keys, z, m)
        x = imagine_fn(policy_params, keys, z, m, **earlier)
        action = decode(policy_params, x)
        ranked = rank_fn(policy_params, z, m, action, x).reshape(num_agents, num_candidates)
        best = jnp.argmax(ranked, -1) + num_candidates * jnp.arange(num_agents)
        x = x[best]
        return Plan(x, score(policy_params, z[best], m[best], None, x), action[best])

    return plans


def make_plan(
    world_model: WorldModel,
    task: str,
    imagine_fn: ImagineFn,
    num_candidates: int = 1,
    rank_fn: RankFn | None = None,
    map_fn: MapFn | None = None,
    decode_fn: DecodeFn | None = None,
) -> Callable[..., Plan]:
    """plan(policy_params, key, z [N, D], m [N, D]) -> Plan: all agents (and candidates) in one batched call, or as
    `map_fn` spreads them; agent i with fold_in(key, i)."""
    plans = make_agent_plans(world_model, task, imagine_fn, num_candidates, rank_fn, decode_fn)
    if map_fn is not None:
        plans = map_fn(plans)

    def plan(policy_params, key, z, m, previous=None):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(z.shape[0]))
        return plans(policy_params, keys, z, m, *(() if previous is None else (previous,)))

    return plan


# ---------------------------------------------------------------------------------------------------- messages


@struct.dataclass
class MessageBuffer:
    """Messages on their way: entry 0 is what neighbours hear now."""

    in_flight: jax.Array  # [delay, N, D]
    t: jax.Array  # [] int32


def init_messages(num_agents: int, latent_dim: int, delay: int) -> MessageBuffer:
    """Nothing sent yet; the first step's own message fills the buffer, as in the training windows."""
    return MessageBuffer(jnp.zeros((delay, num_agents, latent_dim)), jnp.int32(0))


def exchange(buffer: MessageBuffer, message: jax.Array) -> tuple[jax.Array, MessageBuffer]:
    """Sends [N, D] messages; returns what is heard now (sent `delay` steps ago) and the buffer."""
    if buffer.in_flight.shape[0] == 0:
        return message, buffer.replace(t=buffer.t + 1)
    in_flight = jnp.where(buffer.t == 0, jnp.broadcast_to(message, buffer.in_flight.shape), buffer.in_flight)
    return in_flight[0], MessageBuffer(jnp.concatenate([in_flight[1:], message[None]]), buffer.t + 1)


@struct.dataclass
class WarmCarry:
    """What a planner that starts from its last plan remembers."""

    messages: MessageBuffer
    x: jax.Array  # [N, H, 2D] last plan; before the first one, overwritten by the present


def message_bytes(world_model: WorldModel, task: str, num_bits: int) -> int:
    """Bytes an agent broadcasts per step: its latent's used channels at `num_bits` (0 = 32) each."""
    used = int(world_model.channel_mask(task).sum()) // 2
    return -(-used * (num_bits or 32) // 8)


def make_planner(
    world_model: WorldModel,
    schedule: NoiseSchedule,
    task: str,
    config: PlannerConfig | None = None,
    *,
    sampler: Callable[..., jax.Array] = sampling.sample_ddim,
    imagine_fn: ImagineFn | None = None,
    rank_fn: RankFn | None = None,
    map_fn: MapFn | None = None,
) -> Policy:
    """NetWorld as a Policy; its `params` argument is a PolicyParams.

    Args:
      imagine_fn: what fills the plan (None: `diffusion_imagination` with `sampler`); the controls `repeat_present` and
        `random_imagination` leave the inverse dynamics alone.
      rank_fn: how candidates compare when config.num_candidates > 1 (None: `rank_by_return`).
      map_fn: how many agents are spread over calls and devices (None: one batch).

    `act` takes the graph as a matrix or as `mean_field.Neighbours`.
    """
    config = config or PlannerConfig()
    spec = world_model.specs[task]
    delay = spec.message_delay_steps if config.message_delay_steps is None else config.message_delay_steps
    imagine_fn = imagine_fn or diffusion_imagination(world_model, schedule, task, config, sampler)
    decode_fn = decoder(world_model, task, config)
    plan = make_plan(world_model, task, imagine_fn, config.num_candidates, rank_fn, map_fn, decode_fn)

    def init(key, num_agents):
        del key
        messages = init_messages(num_agents, world_model.config.latent_dim, delay)
        if not config.warm_start:
            return messages
        horizon, channels = world_model.config.horizon, 2 * world_model.config.latent_dim
        return WarmCarry(messages, jnp.zeros((num_agents, horizon, channels)))

    def act(key, policy_params, carry, obs, adjacency, env_state):
        del env_state
        loss_key, plan_key = jax.random.split(key)
        z = world_model.encode(policy_params.params, policy_params.stats, task, obs)
        messages = carry.messages if config.warm_start else carry
        is_first = messages.t == 0
        heard, messages = exchange(messages, quantise(z, config.message_bits, config.message_range))
        if config.message_loss:
            arrives = lambda weight: jax.random.bernoulli(loss_key, 1.0 - config.message_loss, weight.shape)  # noqa: E731
            if isinstance(adjacency, Neighbours):
                adjacency = adjacency.replace(weight=adjacency.weight * arrives(adjacency.weight))
            else:
                adjacency = adjacency * arrives(adjacency)
        m = mean_field(heard, adjacency)
        if not config.warm_start:
            return plan(policy_params, plan_key, z, m).action, messages
        still = jnp.broadcast_to(jnp.concatenate([z, m], -1)[:, None], carry.x.shape)
        result = plan(policy_params, plan_key, z, m, jnp.where(is_first, still, carry.x))
        return result.action, WarmCarry(messages, result.x)

    return Policy(
        init,
        act,
        information="one_hop",
        reads_state=False,
        message_bytes=message_bytes(world_model, task, config.message_bits),
    )
