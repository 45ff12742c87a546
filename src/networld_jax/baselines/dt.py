"""MA-DT: one decision transformer for all agents (Chen et al. 2021), conditioned on each agent's own return to go.

A trajectory is cut into sub-episodes of `sub_episode_steps`, because a return over a whole logged trajectory says
nothing about an evaluation of another length; time counts within the sub-episode. Tokens (R_t, o_t, a_t), with

    R_t = sum of the standardised rewards from t to the end of the sub-episode, divided by the 95th percentile of |R|,

feed causal attention over the last `context` steps; the action is read from the o_t token. Standardising comes before
summing: where every return lies near -900, dividing by 1000 leaves a condition that hardly varies.

At run time every agent starts with the `target_quantile` of the training data's returns, subtracts what it earns, and
starts again when a sub-episode is over. Windows have a fixed shape: new steps push old ones out, padding is masked.
With the neighbourhood label an agent needs its neighbours' rewards: they come as two more bytes per message.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from networld_envs.types import Policy, TaskSpec
from networld_jax import action_heads, networks, training
from networld_jax.baselines import actions, inputs, returns
from networld_jax.baselines.types import Baseline, RewardConfig, require, require_positive
from networld_jax.losses import masked_mean
from networld_jax.normalisation import standardise_reward
from networld_jax.planning import PolicyParams, exchange, init_messages
from networld_jax.windows import windows

REWARD_BYTES = 2  # a neighbour's share of the reward, float16
PADDED_ACTION = -10.0  # as in the reference; masked anyway


@dataclasses.dataclass(frozen=True)
class DTConfig(RewardConfig):
    """The transformer, its optimiser and its command; the comments give the reference's values for 100 k updates."""

    batch_size: int = 128  # agent sequences; 64
    learning_rate: float = 1e-3  # 1e-4
    context: int = 10  # steps seen; 20
    width: int = 64  # 128
    num_layers: int = 2  # 3
    num_heads: int = 1
    dropout: float = 0.1
    sub_episode_steps: int = 1000  # at most; shorter where trajectories are
    target_quantile: float = 0.95  # of the training data's returns
    warmup_fraction: float = 0.02  # of the updates: linear, constant afterwards; 0.1
    weight_decay: float = 1e-4
    clip_norm: float = 0.25  # global gradient norm

    def __post_init__(self):
        super().__post_init__()
        require(self, 1, float("inf"), "context", "num_layers", "sub_episode_steps", "num_heads")
        require(self, 0.0, 1.0, "dropout", "target_quantile", "warmup_fraction")
        require_positive(self, "clip_norm")
        if self.width % self.num_heads:
            raise ValueError(f"width must be divisible by num_heads={self.num_heads}, got {self.width}")


@struct.dataclass
class Sequences:
    """A batch of agent sequences: S windows of T = context steps, the last one always real."""

    features: jax.Array  # [S, T, F]
    action: jax.Array  # [S, T, A] as executed
    return_to_go: jax.Array  # [S, T] scaled
    time: jax.Array  # [S, T] int32 within the sub-episode
    valid: jax.Array  # [S, T] 0 = padding before the sub-episode
    weight: jax.Array  # [S, T] 0 = padding, absent agent, or no demonstration


@struct.dataclass
class DTCarry:
    """The rolling window of every agent, and what it still has to earn."""

    hearing: Any
    shares: Any  # rewards on their way to the neighbours; () with label "own"
    features: jax.Array  # [N, T, F]
    action: jax.Array  # [N, T, A] scaled
    return_to_go: jax.Array  # [N, T]
    time: jax.Array  # [T] int32
    valid: jax.Array  # [T]
    to_go: jax.Array  # [N] scaled
    reward: jax.Array  # [N] of the last step, raw
    t: jax.Array  # [] int32


def warmup_then_constant(peak: float, warmup_updates: int) -> optax.Schedule:
    """peak min(1, (count + 1) / warmup): it never falls again (Adam would not notice a smaller scale of gradients, but
    a rate that reaches 0 stops training)."""
    return lambda count: peak * jnp.minimum(1.0, (count + 1) / max(warmup_updates, 1))


def returns_to_go(reward: np.ndarray, num_steps: int) -> np.ndarray:
    """Sums of reward [R, L, N] from each step to the end of its sub-episode of `num_steps`; the remainder that fills no
    sub-episode is dropped: [R, L', N]."""
    runs, length, agents = reward.shape
    whole = length // num_steps
    pieces = reward[:, : whole * num_steps].reshape(runs, whole, num_steps, agents)
    return np.cumsum(pieces[:, :, ::-1], axis=2)[:, :, ::-1].reshape(runs, whole * num_steps, agents)


def make_dt(spec: TaskSpec, config: DTConfig) -> Baseline:
    """The decision transformer as a Baseline."""
    steps, width = config.context, inputs.input_dim(spec, config)
    rate = warmup_then_constant(config.learning_rate, round(config.warmup_fraction * config.num_updates))
    optimiser = training.make_optimiser(rate, config.clip_norm, config.weight_decay)
    hears_rewards = config.label == "neighbourhood"

    def network(stats):
        return networks.DecisionTransformer(
            spec.action_dim,
            stats.action_bins.shape[-1],
            max_steps=config.sub_episode_steps,
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
        )

    def prepare(trajectories, stats):
        trajectories, stats = returns.relabel(trajectories, stats, config.label)
        num_steps = min(config.sub_episode_steps, trajectories.reward.shape[1])
        standard = (np.asarray(trajectories.reward) - float(stats.reward_mean)) / float(stats.reward_std)
        to_go = returns_to_go(standard, num_steps)
        present = np.broadcast_to(np.asarray(trajectories.agent_mask)[:, None, :] > 0, to_go.shape)
        scale = max(float(np.quantile(np.abs(to_go[present]), 0.95)), 1e-6)
        target = np.quantile(to_go[:, ::num_steps][present[:, ::num_steps]], config.target_quantile) / scale
        extra = {
            "return_scale": jnp.float32(scale),
            "target_return": jnp.float32(target),
            "sub_episode_steps": jnp.int32(num_steps),
        }
        data = returns.Labelled(trajectories, (to_go / scale).astype(np.float32))
        return data, stats.replace(extra=stats.extra | extra)

    def sample(key, data: returns.Labelled, stats) -> Sequences:
        where = returns.sample_labelled(key, data, config.batch_size)
        run, last = where[:, :1], where[:, 1:]
        first = last - steps + 1
        segments = windows(data.trajectories, jnp.concatenate([run, first], -1), steps, spec.message_delay_steps)
        at = first + jnp.arange(steps)[None]  # [B, T]; negative entries are padding
        num_steps = stats.extra["sub_episode_steps"]
        valid = (at >= last - last % num_steps).astype(jnp.float32)
        demonstrated = valid * segments.is_demonstration
        fold = lambda x: x.reshape((-1,) + x.shape[2:])  # noqa: E731  [B, N, ...] -> [S, ...]
        per_agent = lambda x: fold(jnp.repeat(x[:, None], data.label.shape[-1], axis=1))  # noqa: E731  [B, T] -> [S, T]
        is_real = per_agent(valid) > 0
        return Sequences(
            features=jnp.where(
                is_real[..., None], fold(inputs.window_features(config, segments, stats)[:, :, :steps]), 0
            ),
            action=fold(segments.action),
            return_to_go=jnp.where(is_real, fold(jnp.swapaxes(data.label[run, at], 1, 2)), 0.0),
            time=per_agent(jnp.where(valid > 0, at % num_steps, 0)),
            valid=per_agent(valid),
            weight=per_agent(demonstrated) * segments.agent_mask.reshape(-1)[:, None],
        )

    def logits(params, stats, batch: Sequences, scaled, **options):
        tokens = (batch.return_to_go, batch.features, scaled, batch.time, batch.valid)
        return action_heads.add_prior(network(stats).apply({"params": params}, *tokens, **options), stats)

    def init(key, stats):
        empty = jnp.zeros((1, steps))
        tokens = (
            empty,
            jnp.zeros((1, steps, width)),
            jnp.zeros((1, steps, spec.action_dim)),
            empty.astype(jnp.int32),
            empty,
        )
        return training.init_train_state(network(stats).init(key, *tokens)["params"], optimiser)

    def update(key, state, batch: Sequences, stats):
        def loss_fn(params, batch, key):
            scaled = actions.scale_action(batch.action, spec, stats)
            scaled = jnp.where(batch.valid[..., None] > 0, scaled, PADDED_ACTION)
            out = logits(params, stats, batch, scaled, deterministic=False, rngs={"dropout": key})
            loss = masked_mean(action_heads.losses(out, batch.action, stats), batch.weight)
            return loss, {"loss": loss}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, batch, key)

    def start(key, num_agents):
        del key
        return DTCarry(
            hearing=inputs.init_hearing(spec, config, num_agents),
            shares=init_messages(num_agents, 1, spec.message_delay_steps) if hears_rewards else (),
            features=jnp.zeros((num_agents, steps, width)),
            action=jnp.full((num_agents, steps, spec.action_dim), PADDED_ACTION),
            return_to_go=jnp.zeros((num_agents, steps)),
            time=jnp.zeros(steps, jnp.int32),
            valid=jnp.zeros(steps),
            to_go=jnp.zeros(num_agents),
            reward=jnp.zeros(num_agents),
            t=jnp.int32(0),
        )

    def earned(carry: DTCarry, adjacency):
        """The last step's reward as the label counts it, [N], and the shares now on their way."""
        if not hears_rewards:
            return carry.reward, carry.shares
        share = carry.reward / (1.0 + adjacency.sum(-1))
        heard, shares = exchange(carry.shares, share[:, None].astype(jnp.float16).astype(jnp.float32))
        return share + (adjacency @ heard)[:, 0], shares

    def act(key, policy_params: PolicyParams, carry: DTCarry, obs, adjacency, env_state):
        del key, env_state
        params, stats = policy_params.params, policy_params.stats
        features, hearing = inputs.hear(config, stats, carry.hearing, obs, adjacency)
        reward, shares = earned(carry, adjacency)
        now = carry.t % stats.extra["sub_episode_steps"]
        standard = standardise_reward(reward, stats)
        to_go = jnp.where(now == 0, stats.extra["target_return"], carry.to_go - standard / stats.extra["return_scale"])
        push = lambda old, new: jnp.concatenate([old[:, 1:], new[:, None]], axis=1)  # noqa: E731
        num_agents = obs.shape[0]
        valid = jnp.append(jnp.where(now == 0, 0.0, carry.valid[1:]), 1.0)
        time = jnp.append(jnp.where(now == 0, 0, carry.time[1:]), now)
        window = Sequences(
            features=push(carry.features, features),
            action=push(carry.action, jnp.zeros((num_agents, spec.action_dim))),
            return_to_go=push(carry.return_to_go, to_go),
            time=jnp.tile(time[None], (num_agents, 1)),
            valid=jnp.tile(valid[None], (num_agents, 1)),
            weight=jnp.zeros((num_agents, steps)),
        )
        action = action_heads.decode_mean(logits(params, stats, window, window.action)[:, -1], stats)
        remembered = window.action.at[:, -1].set(actions.scale_action(actions.executed(action, spec), spec, stats))
        carry = carry.replace(
            hearing=hearing,
            shares=shares,
            features=window.features,
            action=remembered,
            return_to_go=window.return_to_go,
            time=time,
            valid=valid,
            to_go=to_go,
            t=carry.t + 1,
        )
        return action, carry

    policy = Policy(
        init=start,
        act=act,
        observe_reward=lambda carry, reward: carry.replace(reward=reward),
        reads_state=False,
        information="one_hop" if config.use_mean_field or hears_rewards else "own",
        message_bytes=inputs.message_bytes(spec, config) + REWARD_BYTES * hears_rewards,
    )
    return Baseline(prepare=prepare, init=init, sample=sample, update=update, policy=policy)
