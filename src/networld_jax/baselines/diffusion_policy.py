"""Diffusion policy with value selection: imagines actions instead of futures, on the same inputs.

    denoise a in [-1, 1]^A given (o, m);   Q(o, m, a) = E [standardised return of the next `return_steps` steps]

At run time `num_candidates` actions are drawn per agent and Q (the smaller of two) picks the best one, or draws one by
exp(Q / selection_temperature) (Chi et al. 2023; Hansen-Estruch et al. 2023, with our return
label in place of a bootstrapped Q). What a world model adds beyond a good model of the actions shows against this row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from networld_envs.types import TaskSpec
from networld_jax import networks, sampling, training
from networld_jax.baselines import actions, inputs, returns
from networld_jax.baselines.types import Baseline, DiscountConfig, require
from networld_jax.diffusion import q_sample
from networld_jax.losses import masked_mean
from networld_jax.planning import PolicyParams
from networld_jax.presets import SAMPLERS
from networld_jax.schedules import cosine_schedule


@dataclasses.dataclass(frozen=True)
class DiffusionPolicyConfig(DiscountConfig):
    """Nets, sampling and selection."""

    return_steps: int = 8  # of the label, as the world model's
    diffusion_steps: int = 20  # K
    sampler: str = "ddim"  # of networld_jax.presets.SAMPLERS
    num_steps: int = 5  # network evaluations
    num_candidates: int = 16  # P actions per agent; 1 = the plain diffusion policy
    selection_temperature: float = 0.0  # in standard deviations of the return; 0 = the best candidate

    def __post_init__(self):
        super().__post_init__()
        require(self, 1, float("inf"), "return_steps", "diffusion_steps", "num_steps", "num_candidates")
        require(self, 0.0, float("inf"), "selection_temperature")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {tuple(SAMPLERS)}, got {self.sampler!r}")


def choose(key: jax.Array, values: jax.Array, temperature: float) -> jax.Array:
    """Index [] into values [P]: the largest, or a draw with probability proportional to exp(values / temperature)."""
    return jax.random.categorical(key, values / temperature) if temperature else jnp.argmax(values)


def make_diffusion_policy(spec: TaskSpec, config: DiffusionPolicyConfig) -> Baseline:
    """The diffusion policy as a Baseline."""
    width, size = inputs.input_dim(spec, config), spec.action_dim
    schedule = cosine_schedule(config.diffusion_steps)
    denoiser, critic = networks.ActionDenoiser(config.hidden), networks.MLP((*config.hidden, 1))
    rate = training.learning_rate_schedule(config.learning_rate, config.num_updates)
    optimiser = training.make_optimiser(rate, weight_decay=config.weight_decay)

    def q(params, features, scaled):
        return networks.apply_twins(critic, params["critic"], jnp.concatenate([features, scaled], -1))[..., 0]

    def prepare(trajectories, stats):
        return returns.label_steps(trajectories, stats, config.label, config.discount, config.return_steps)

    def init(key, stats):
        del stats
        denoiser_key, critic_key = jax.random.split(key)
        features, action = jnp.zeros((1, width)), jnp.zeros((1, size))
        params = {
            "denoiser": denoiser.init(denoiser_key, action, jnp.zeros(1, jnp.int32), features)["params"],
            "critic": networks.init_twins(critic, critic_key, jnp.concatenate([features, action], -1)),
        }
        return training.init_train_state(params, optimiser)

    def update(key, state, batch, stats):
        def loss_fn(params, batch, key):
            level_key, noise_key = jax.random.split(key)
            rows, label = batch
            features, _ = inputs.row_features(config, rows)
            scaled = actions.scale_action(rows.action, spec, stats)
            k = jax.random.randint(level_key, label.shape, 0, schedule.num_steps)
            noise = jax.random.normal(noise_key, scaled.shape)
            x_k = q_sample(scaled[:, None], k, noise[:, None], schedule)[:, 0]
            prediction = denoiser.apply({"params": params["denoiser"]}, x_k, k, features)
            diffusion = masked_mean(((prediction - scaled) ** 2).mean(-1), rows.weight)
            value = 2.0 * masked_mean((q(params, features, scaled) - label[None]) ** 2, rows.agent_mask[None])
            return diffusion + value, {"loss": diffusion, "action_value": value / 2.0}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, batch, key)

    def candidates(keys, params, features):
        """One scaled action [S, A] per key [S] and features [S, F]."""
        return SAMPLERS[config.sampler](
            keys,
            lambda x, k: denoiser.apply({"params": params["denoiser"]}, x[:, 0], k, features)[:, None],
            schedule,
            (1, size),
            num_steps=config.num_steps,
            clip=1.0,
        )[:, 0]

    def decide(key, policy_params: PolicyParams, features):
        params, stats = policy_params.params, policy_params.stats
        num_agents, count = features.shape[0], config.num_candidates
        split = jax.vmap(jax.random.split)(inputs.agent_keys(key, num_agents))  # [N, 2]
        keys, repeated = sampling.several(count, split[:, 0], features)
        scaled = candidates(keys, params, repeated)
        values = q(params, repeated, scaled).min(0).reshape(num_agents, count)
        best = jax.vmap(lambda k, v: choose(k, v, config.selection_temperature))(split[:, 1], values)
        chosen = scaled.reshape(num_agents, count, size)[jnp.arange(num_agents), best]
        return actions.unscale_action(chosen, spec, stats)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=returns.labelled_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
