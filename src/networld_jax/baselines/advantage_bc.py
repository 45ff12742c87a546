"""Filtered and return-conditioned behaviour cloning, both by *advantage*.

Raw returns tell lucky states from unlucky ones before they tell good actions from bad ones: on a network whose load
differs between agents, the best tenth of all returns is the tenth with the lightest load. So both methods use

    A = y - V(o, m),   V = argmin E (y - V)^2,   y the standardised return of the next `return_steps` steps.

    filtered_bc   clones the actions whose advantage is among the largest `keep_fraction` of the batch
    rc_bc         clones a given (o, m, A / std A) and acts as if A / std A were `target_advantage`

V sees what the clone sees. It trains along, alone for the first `value_fraction` of the updates, in which every action
is cloned. With few data V fits the labels themselves and the advantages lose their meaning: watch `advantage_std`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from networld_envs.types import TaskSpec
from networld_jax import action_heads, networks, training
from networld_jax.baselines import inputs, returns
from networld_jax.baselines.types import Baseline, DiscountConfig, require
from networld_jax.losses import masked_mean
from networld_jax.planning import PolicyParams

ADVANTAGE_CLIP = 3.0  # standard deviations


@dataclasses.dataclass(frozen=True)
class AdvantageBCConfig(DiscountConfig):
    """The clone, its value net, and what the advantage does."""

    return_steps: int = 8  # H of the label, as the world model's horizon
    value_fraction: float = 0.2  # of the updates: V alone steers nothing yet
    keep_fraction: float = 0.5  # filtered_bc: share of the batch that is cloned
    target_advantage: float = 1.0  # rc_bc: the command, in standard deviations of the advantage

    def __post_init__(self):
        super().__post_init__()
        require(self, 1, float("inf"), "return_steps")
        require(self, 0.0, 1.0, "value_fraction", "keep_fraction")
        require(self, -ADVANTAGE_CLIP, ADVANTAGE_CLIP, "target_advantage")


def standardised_advantage(label: jax.Array, value: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """((y - V) / std over the batch [B], clipped; that std []). No gradient reaches V."""
    advantage = label - jax.lax.stop_gradient(value)
    std = jnp.sqrt(masked_mean((advantage - masked_mean(advantage, mask)) ** 2, mask))
    return jnp.clip(advantage / jnp.maximum(std, 1e-6), -ADVANTAGE_CLIP, ADVANTAGE_CLIP), std


def top_rows(advantage: jax.Array, mask: jax.Array, keep_fraction: float) -> jax.Array:
    """[B] 1 for the rows at or above the (1 - keep_fraction) quantile of the rows with mask."""
    threshold = jnp.nanquantile(jnp.where(mask > 0, advantage, jnp.nan), 1.0 - keep_fraction)
    return (advantage >= threshold).astype(jnp.float32)


def make_filtered_bc(spec: TaskSpec, config: AdvantageBCConfig) -> Baseline:
    """Clones the best actions of every kind of state."""
    return _make(spec, config, conditioned=False)


def make_rc_bc(spec: TaskSpec, config: AdvantageBCConfig) -> Baseline:
    """Clones all actions, told how good each was; asks for a good one."""
    return _make(spec, config, conditioned=True)


def _make(spec: TaskSpec, config: AdvantageBCConfig, conditioned: bool) -> Baseline:
    rate = training.learning_rate_schedule(config.learning_rate, config.num_updates)
    optimiser = training.make_optimiser(rate, weight_decay=config.weight_decay)
    value_net = networks.MLP((*config.hidden, 1))
    width = inputs.input_dim(spec, config)
    value_updates = round(config.value_fraction * config.num_updates)

    def logits(params, stats, features, advantage):
        seen = jnp.concatenate([features, advantage[:, None]], -1) if conditioned else features
        return action_heads.predict(spec, stats, config.hidden, params["policy"], seen)

    def prepare(trajectories, stats):
        return returns.label_steps(trajectories, stats, config.label, config.discount, config.return_steps)

    def init(key, stats):
        policy_key, value_key = jax.random.split(key)
        network = action_heads.network(spec, stats, config.hidden)
        params = {
            "policy": network.init(policy_key, jnp.zeros((1, width + conditioned)))["params"],
            "value": value_net.init(value_key, jnp.zeros((1, width)))["params"],
        }
        return training.init_train_state(params, optimiser)

    def update(key, state, batch, stats):
        is_ready = state.step >= value_updates

        def loss_fn(params, batch, key):
            del key
            rows, label = batch
            features, _ = inputs.row_features(config, rows)
            value = value_net.apply({"params": params["value"]}, features)[..., 0]
            value_loss = masked_mean((value - label) ** 2, rows.agent_mask)
            advantage, std = standardised_advantage(label, value, rows.agent_mask)
            weight = rows.weight
            if not conditioned:
                weight = weight * jnp.where(is_ready, top_rows(advantage, weight, config.keep_fraction), 1.0)
            losses = action_heads.losses(logits(params, stats, features, advantage), rows.action, stats)
            clone = masked_mean(losses, weight)
            return clone + value_loss, {"loss": clone, "value": value_loss, "advantage_std": std}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, batch, key)

    def decide(key, policy_params: PolicyParams, features):
        del key
        command = jnp.full(features.shape[:1], config.target_advantage)
        out = logits(policy_params.params, policy_params.stats, features, command)
        return action_heads.decode_mean(out, policy_params.stats)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=returns.labelled_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
