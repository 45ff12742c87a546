"""MA-DD: Decision Diffuser per agent (Ajay et al. 2023), classifier-free.

Diffuses windows x in R^{H x F} of what an agent sees (with the mean field: of both halves), never actions. The denoiser
knows the standardised return y of the window's first `return_steps` steps, or with probability `drop_probability`
nothing; sampling asks for a high return y* (a quantile of the training data's) and extrapolates past it:

    x0 = x0(nothing) + w (x0(y*) - x0(nothing)),   row 0 clamped to the present, initial noise x `temperature`

and an inverse model acts on rows 0 and 1. It is ours: trained with noise on the next observation (0 = the reference's
clean one), so that it does not copy a sample's luck. Sequences are per agent, labels per agent; the label has a fixed
number of steps, since these tasks do not end where a trajectory does.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs.types import TaskSpec
from networld_jax import action_heads, networks, sampling, training
from networld_jax.baselines import inputs, returns
from networld_jax.baselines.types import Baseline, DiscountConfig, require, require_positive
from networld_jax.diffusion import denoising_loss, loss_weights
from networld_jax.losses import masked_mean, noised
from networld_jax.noise_levels import NOISE_LEVELS, disturb, inputs_at_level
from networld_jax.planning import PolicyParams
from networld_jax.presets import SAMPLERS
from networld_jax.schedules import cosine_schedule
from networld_jax.windows import windows


@dataclasses.dataclass(frozen=True)
class DDConfig(DiscountConfig):
    """Networks, conditioning and sampling; the comments give the reference's values."""

    batch_size: int = 128  # agent sequences; 64
    horizon: int = 8  # H; 100
    return_steps: int = 8  # of the label, as the world model's; to the end of the trajectory
    width: int = 32  # 128
    width_mults: tuple[int, ...] = (1, 2)  # (1, 4, 8)
    layout: str = "networld"  # "diffuser"
    diffusion_steps: int = 20  # K; 200
    prediction: str = "x0"  # "noise"
    next_row_weight: float = 3.0  # of row 1, which the inverse model reads; 1 (CleanDiffuser: 10)
    inverse_dynamics_noise: float = 0.6  # std of the noise on o_{t+1}, in units of TaskStats.surprise; 0
    noise_aware: bool = False  # the inverse model learns for all noise, is told which, and acts at the one above; -
    drop_probability: float = 0.25  # of the condition in training
    guide_scale: float = 1.2  # w: 1 = conditional, > 1 extrapolates; 1.2 (per task up to 6)
    target_quantile: float = 0.95  # of the training data's labels
    sampler: str = "ddim"  # of networld_jax.presets.SAMPLERS; "ddpm"
    num_steps: int = 5  # network evaluations (each conditional and unconditional); 200
    temperature: float = 0.5  # factor of the initial noise and of every step's
    clip: float = 6.0  # of x0, in standard deviations
    num_averaged: int = 1  # plans per agent whose mean is decoded; 1

    def __post_init__(self):
        super().__post_init__()
        networks.check_horizon(self.horizon, self.layout, self.width_mults)
        require(self, 2, float("inf"), "horizon")
        require(self, 1, float("inf"), "return_steps", "diffusion_steps", "num_steps", "num_averaged")
        require(self, 0.0, 1.0, "drop_probability", "target_quantile")
        require(self, 0.0, float("inf"), "temperature")
        require(self, *(NOISE_LEVELS if self.noise_aware else (0.0, float("inf"))), "inverse_dynamics_noise")
        require_positive(self, "clip")
        for name, allowed in (("prediction", ("x0", "noise")), ("sampler", tuple(SAMPLERS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


@struct.dataclass
class Windows:
    """A batch of S agent sequences."""

    features: jax.Array  # [S, H+1, F]
    action: jax.Array  # [S, H, A]
    label: jax.Array  # [S] standardised
    weight: jax.Array  # [S] present agents
    demonstration: jax.Array  # [S, H] present and worth imitating


def make_dd(spec: TaskSpec, config: DDConfig) -> Baseline:
    """The Decision Diffuser as a Baseline."""
    width, horizon = inputs.input_dim(spec, config), config.horizon
    inverse_dim = width + spec.obs_dim + config.noise_aware
    schedule = cosine_schedule(config.diffusion_steps)
    unet = networks.TemporalUNet(width, width=config.width, mults=config.width_mults, layout=config.layout)
    rate = training.learning_rate_schedule(config.learning_rate, config.num_updates)
    optimiser = training.make_optimiser(rate, weight_decay=config.weight_decay)

    def prepare(trajectories, stats):
        data, stats = returns.label_steps(trajectories, stats, config.label, config.discount, config.return_steps)
        starts = trajectories.reward.shape[1] - max(horizon, config.return_steps) + 1
        if starts < 1:
            raise ValueError(
                f"trajectories of {trajectories.reward.shape[1]} steps hold no window of horizon {horizon}; "
                "use a smaller horizon"
            )
        label = data.label[:, :starts]
        present = np.broadcast_to(np.asarray(trajectories.agent_mask)[:, None, :] > 0, label.shape)
        target = jnp.float32(np.quantile(label[present], config.target_quantile))
        return data.replace(label=label), stats.replace(extra=stats.extra | {"target_return": target})

    def sample(key, data: returns.Labelled, stats) -> Windows:
        where = returns.sample_labelled(key, data, config.batch_size)
        segments = windows(data.trajectories, where, horizon, spec.message_delay_steps)
        fold = lambda x: x.reshape((-1,) + x.shape[2:])  # noqa: E731
        return Windows(
            features=fold(inputs.window_features(config, segments, stats)),
            action=fold(segments.action),
            label=data.label[where[:, 0], where[:, 1]].reshape(-1),
            weight=segments.agent_mask.reshape(-1),
            demonstration=fold(segments.agent_mask[:, :, None] * segments.is_demonstration[:, None, :]),
        )

    def denoise(params, x, k, label, keep):
        return unet.apply({"params": params["denoiser"]}, x, k, condition=(label[:, None], keep))

    def inverse(params, stats, features, next_obs, noise):
        network = action_heads.network(spec, stats, config.hidden)
        if config.noise_aware:
            next_obs = inputs_at_level(next_obs, noise, stats.surprise[: spec.obs_dim])
        out = network.apply({"params": params["inverse_dynamics"]}, jnp.concatenate([features, next_obs], -1))
        return action_heads.add_prior(out, stats)

    def init(key, stats):
        denoiser_key, inverse_key = jax.random.split(key)
        one, x = jnp.zeros(1), jnp.zeros((1, horizon, width))
        network = action_heads.network(spec, stats, config.hidden)
        params = {
            "denoiser": unet.init(denoiser_key, x, jnp.zeros(1, jnp.int32), condition=(one[:, None], one))["params"],
            "inverse_dynamics": network.init(inverse_key, jnp.zeros((1, inverse_dim)))["params"],
        }
        return training.init_train_state(params, optimiser)

    def update(key, state, batch: Windows, stats):
        def loss_fn(params, batch, key):
            level_key, noise_key, keep_key, blur_key = jax.random.split(key, 4)
            x0 = batch.features[:, :horizon]
            k = jax.random.randint(level_key, batch.label.shape, 0, schedule.num_steps)
            noise = jax.random.normal(noise_key, x0.shape)
            keep = jax.random.bernoulli(keep_key, 1.0 - config.drop_probability, batch.label.shape)
            prediction = denoise(params, noised(x0, k, noise, schedule), k, batch.label, keep.astype(jnp.float32))
            rows = loss_weights(horizon, width, next_row_weight=config.next_row_weight)
            target = x0 if config.prediction == "x0" else noise
            diffusion = masked_mean(denoising_loss(prediction, target, rows), batch.weight)
            level = None if config.noise_aware else config.inverse_dynamics_noise
            next_obs, blur = disturb(
                blur_key, batch.features[:, 1:, : spec.obs_dim], stats.surprise[: spec.obs_dim], level
            )
            logits = inverse(params, stats, x0, next_obs, blur)
            idm = masked_mean(action_heads.losses(logits, batch.action, stats), batch.demonstration)
            return diffusion + idm, {"loss": diffusion + idm, "denoise": diffusion, "inverse_dynamics": idm}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, batch, key)

    def guided_prediction(params, target):
        """(x, k) -> x0, the extrapolation from "nothing" through y*; both in one call of the network."""

        def predict(x, k):
            count = x.shape[0]
            keep = jnp.concatenate([jnp.ones(count), jnp.zeros(count)])
            label = jnp.broadcast_to(target, (2 * count,))
            with_return, without = jnp.split(
                denoise(params, jnp.concatenate([x, x]), jnp.concatenate([k, k]), label, keep), 2
            )
            return without + config.guide_scale * (with_return - without)

        return sampling.from_noise_prediction(predict, schedule) if config.prediction == "noise" else predict

    def imagine(params, target, keys, features):
        """Plans [S, H, F] from the present [S, F]."""
        return SAMPLERS[config.sampler](
            keys,
            guided_prediction(params, target),
            schedule,
            (horizon, width),
            condition_fn=sampling.clamp_first_row(features),
            num_steps=config.num_steps,
            initial_noise_scale=config.temperature,
            step_noise_scale=config.temperature,
            clip=config.clip,
        )

    def decide(key, policy_params: PolicyParams, features):
        params, stats = policy_params.params, policy_params.stats
        keys = inputs.agent_keys(key, features.shape[0])
        draw = functools.partial(imagine, params, stats.extra["target_return"])
        x = sampling.averaged(draw, config.num_averaged)(keys, features)
        next_obs = x[:, 1, : spec.obs_dim]
        logits = inverse(params, stats, features, next_obs, config.inverse_dynamics_noise)
        return action_heads.decode_mean(logits, stats)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=sample,
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
