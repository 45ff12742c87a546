"""Distilled planners: students that imagine in one or two evaluations what the guided sampler imagines in many.

The teacher is `planning.diffusion_imagination` with a deterministic sampler: a function x = f(noise, z, m) of its
initial noise and the present. Guidance is distilled with it, so a student needs neither classifier nor gradient.

| student | network | learns | evaluations |
|---|---|---|---|
| `chain_student` | the denoiser's U-Net, from its weights on | from any point of the teacher's chain to its end | any |
| `row_student` | an MLP | row 1 of the plan, all that the inverse dynamics reads | 1 |

The first is direct distillation (Luhman & Luhman 2021) over all levels of the chain, which makes it a consistency
function on the solved chain (Song et al. 2023): evaluated at the noisiest level alone it answers at once, and sampling
it over several levels improves the answer. The second learns E[z_1 | z_0, m_0] of the guided plans, or with
`noise_rows` the plan that belongs to a given noise.

A student's weights live in the world model's parameters under "student".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from networld_jax import networks, sampling
from networld_jax.diffusion import denoising_loss, loss_weights
from networld_jax.losses import masked_mean
from networld_jax.mean_field import mean_field, quantise
from networld_jax.planning import ImagineFn, PolicyParams, diffusion_imagination, planning_levels
from networld_jax.schedules import NoiseSchedule
from networld_jax.types import Params, PlannerConfig, Segments, Trajectories
from networld_jax.windows import sample_segments
from networld_jax.world_model import WorldModel


class Student(NamedTuple):
    """A distilled imagination; its weights are `policy_params.params["student"]` wherever PolicyParams appear."""

    init: Callable[[jax.Array, Params], Params]  # (key, teacher's params) -> student's weights
    loss: Callable[..., jax.Array]  # (weights, teacher PolicyParams, keys [S], z [S, D], m [S, D]) -> [S]
    imagine: ImagineFn


def chain_student(
    world_model: WorldModel,
    schedule: NoiseSchedule,
    task: str,
    config: PlannerConfig,
    *,
    num_steps: int = 1,
    next_row_weight: float = 3.0,
    sampler: Callable[..., jax.Array] = sampling.sample_ddim,
) -> Student:
    """A U-Net that maps (x_k, k) of the teacher's chain to the teacher's plan.

    Args:
      config: the teacher's planner.
      num_steps: evaluations of the student when it imagines, 1 or more.
      next_row_weight: weight of row 1, the one that is acted on, in the squared error.
      sampler: the teacher's, deterministic after its initial noise (DDIM, DPM-Solver++).

    Raises ValueError for a model that predicts noise (a student predicts plans).
    """
    if world_model.config.prediction != "x0":
        raise ValueError(f"a chain student needs a world model with prediction='x0', got {world_model.config}")
    mask, index = world_model.channel_mask(task), world_model.task_index(task)
    teacher = diffusion_imagination(world_model, schedule, task, config, functools.partial(sampler, return_chain=True))
    levels = jnp.asarray(planning_levels(schedule.num_steps, config)[:-1])
    horizon, channels = world_model.config.horizon, 2 * world_model.config.latent_dim
    weights = loss_weights(horizon, channels, next_row_weight=next_row_weight, channel_mask=mask)

    def predict(student, x, k):
        task_index = jnp.full(x.shape[0], index, jnp.int32)
        return world_model.predict({"denoiser": student}, task_index, x, k) * mask[None, None, :]

    def init(key, params):
        del key
        return jax.tree.map(jnp.array, params["denoiser"])

    def loss(student, policy_params, keys, z, m):
        plan, chain = teacher(policy_params, keys, z, m)
        plan, chain = jax.lax.stop_gradient((plan, chain))
        which = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(levels)))(keys)
        x = jnp.take_along_axis(chain, which[None, :, None, None], axis=0)[0]
        return denoising_loss(predict(student, x, levels[which]), plan, weights)

    def imagine(policy_params, keys, z, m, previous=None):
        del previous
        present = jnp.concatenate([z, m], -1)
        return sampling.sample_ddim(
            keys,
            functools.partial(predict, policy_params.params["student"]),
            schedule,
            (horizon, channels),
            condition_fn=lambda x: (x * mask[None, None, :]).at[:, 0].set(present),
            num_steps=num_steps,
            initial_noise_scale=config.initial_noise_scale,
            clip=config.latent_clip,
        )

    return Student(init, loss, imagine)


def row_student(
    world_model: WorldModel,
    schedule: NoiseSchedule,
    task: str,
    config: PlannerConfig,
    *,
    hidden: tuple[int, ...] = (256, 256),
    noise_rows: int = 0,
    sampler: Callable[..., jax.Array] = sampling.sample_ddim,
) -> Student:
    """An MLP (z, m[, noise]) -> z_1, the only planned row that becomes an action.

    Without noise it learns the mean over the teacher's plans. `noise_rows` first rows of the teacher's initial noise
    make it a sampler again. Its plans repeat row 1 to the horizon: rank them by action value, not by return.
    """
    mask, dim = world_model.channel_mask(task), world_model.config.latent_dim
    horizon = world_model.config.horizon
    if not 0 <= noise_rows <= horizon:
        raise ValueError(f"noise_rows must lie in 0..{horizon} (the horizon), got {noise_rows}")
    teacher = diffusion_imagination(world_model, schedule, task, config, sampler)
    net = networks.MLP(features=(*hidden, dim), zero_init=True)
    width = 2 * dim * (1 + noise_rows)

    def predict(student, keys, z, m):
        inputs = [z, m]
        if noise_rows:  # the draw that the samplers call number 0
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, 0), (horizon, 2 * dim))  # noqa: E731
            noise = config.initial_noise_scale * jax.vmap(draw)(keys) * mask[None, None, :]
            inputs.append(noise[:, :noise_rows].reshape(len(z), -1))
        return z + net.apply({"params": student}, jnp.concatenate(inputs, -1)) * mask[None, :dim]

    def init(key, params):
        del params
        return net.init(key, jnp.zeros((1, width)))["params"]

    def loss(student, policy_params, keys, z, m):
        target = jax.lax.stop_gradient(teacher(policy_params, keys, z, m)[:, 1, :dim])
        return jnp.sum((predict(student, keys, z, m) - target) ** 2, -1) / mask[:dim].sum()

    def imagine(policy_params, keys, z, m, previous=None):
        del previous
        future = jnp.concatenate([predict(policy_params.params["student"], keys, z, m), m], -1)
        rows = jnp.broadcast_to(future[:, None], (len(z), horizon, 2 * dim))
        return rows.at[:, 0].set(jnp.concatenate([z, m], -1))

    return Student(init, loss, imagine)


def presents(
    world_model: WorldModel, policy_params: PolicyParams, task: str, segments: Segments, config: PlannerConfig
) -> tuple[jax.Array, jax.Array]:
    """Latents z [B, N, D] and heard means m [B, N, D] at the start of windows, messages quantised as at run time."""
    params, stats = policy_params.params, policy_params.stats
    z = world_model.encode(params, stats, task, segments.obs[:, :, 0])
    sent = world_model.encode(params, stats, task, segments.message_obs[:, :, 0])
    return z, mean_field(quantise(sent, config.message_bits, config.message_range), segments.adjacency)


def distillation_loss(
    student: Student, world_model: WorldModel, task: str, config: PlannerConfig
) -> Callable[[Params, tuple[Segments, PolicyParams], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]:
    """loss_fn(weights, (segments, teacher), key) for `training.make_update`: mean over present agents."""

    def loss_fn(weights: Params, batch: tuple[Segments, PolicyParams], key: jax.Array):
        segments, teacher = batch
        z, m = presents(world_model, teacher, task, segments, config)
        fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        keys = jax.random.split(key, z.shape[0] * z.shape[1])
        errors = student.loss(weights, teacher, keys, fold(z), fold(m))
        loss = masked_mean(errors, fold(segments.agent_mask))
        return loss, {"loss": loss}

    return loss_fn


def state_sampler(
    num_segments: int, message_delay: int
) -> Callable[[jax.Array, tuple[Trajectories, PolicyParams]], tuple[Segments, PolicyParams]]:
    """sample_fn(key, (trajectories, teacher)) for `training.make_epoch`: states of logged behaviour, no simulator."""

    def sample(key: jax.Array, data: tuple[Trajectories, PolicyParams]):
        trajectories, teacher = data
        return sample_segments(key, trajectories, num_segments, 1, message_delay), teacher

    return sample


def with_student(policy_params: PolicyParams, weights: Any) -> PolicyParams:
    """The teacher's parameters with a student's weights beside them."""
    return policy_params.replace(params=policy_params.params | {"student": weights})
