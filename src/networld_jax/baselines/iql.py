"""MA-IQL: implicit Q-learning per agent (Kostrikov et al. 2022). No action outside the data is ever valued.

    L_V  = E |tau - 1(q < V)| (q - V)^2,   q = min_j Qbar_j(o, a)        V: tau-expectile of Q over the data's actions
    L_pi = -E min(exp(beta (q - V)), 100) log pi(a | o)                  with the V just updated
    L_Q  = E sum_j (Q_j(o, a) - r - gamma (1 - terminated) V(o'))^2      the same; then Qbar follows at the Polyak rate

Box actions, scaled to [-1, 1]: a Gaussian around tanh(f(o)), one learned log std per component, samples not squashed.
Integer actions: Q is a table summed over components, the policy the clone's categorical head (the data's histogram is
its prior), decoded by its mean as every other head here, or by its mode. The actor's rate decays to zero over the run.
On narrow expert data the advantages vanish and IQL is close to MA-BC: read the two rows together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from networld_envs.types import TaskSpec
from networld_jax import action_heads, networks, training
from networld_jax.baselines import actions, inputs, returns
from networld_jax.baselines.cql import td_target
from networld_jax.baselines.types import Baseline, DiscountConfig, require, require_positive
from networld_jax.losses import masked_mean
from networld_jax.planning import PolicyParams
from networld_jax.types import TrainState, Transitions


@dataclasses.dataclass(frozen=True)
class IQLConfig(DiscountConfig):
    """Nets, rates and the two exponents; the comments give the reference's values for 1 M updates."""

    batch_size: int = 256
    learning_rate: float = 1e-3  # 3e-4
    target_rate: float = 0.01  # Polyak rate of the target critics; 0.005
    expectile: float = 0.7  # tau: 0.7 locomotion, 0.9 mazes
    beta: float = 3.0  # inverse temperature of the policy, per standard deviation of the reward
    weight_clip: float = 100.0  # largest weight of an action
    decode: str = "mean"  # of the integer policy: "mean" or "mode"
    clip_norm: float = 10.0  # global gradient norm

    def __post_init__(self):
        super().__post_init__()
        require(self, 0.0, 1.0, "target_rate", "expectile")
        require(self, 0.0, float("inf"), "beta")
        require_positive(self, "weight_clip", "clip_norm")
        if self.decode not in ("mean", "mode"):
            raise ValueError(f"decode must be 'mean' or 'mode', got {self.decode!r}")


class Heads(NamedTuple):
    """How Q reads an action and how the policy gives it probability; the rest of IQL does not care."""

    init_critic: Callable  # (key, stats) -> params
    q: Callable  # (params, stats, features [B, F], action [B, A]) -> [2, B]
    init_policy: Callable  # (key, stats) -> params
    log_prob: Callable  # (params, stats, features, action) -> [B]
    decide: Callable  # (params, stats, features) -> action [B, A]


def expectile_loss(error: jax.Array, expectile: float) -> jax.Array:
    """|tau - 1(error < 0)| error^2, elementwise; error = target - estimate."""
    return jnp.where(error > 0, expectile, 1.0 - expectile) * error**2


def box_heads(spec: TaskSpec, config: IQLConfig) -> Heads:
    """Reals: Q of the concatenated action, a Gaussian policy."""
    width, size = inputs.input_dim(spec, config), spec.action_dim
    critic_net, policy_net = networks.MLP((*config.hidden, 1)), networks.MLP((*config.hidden, size))

    def q(params, stats, features, action):
        scaled = actions.scale_action(action, spec, stats)
        return networks.apply_twins(critic_net, params, jnp.concatenate([features, scaled], -1))[..., 0]

    def mean(params, features):
        return jnp.tanh(policy_net.apply({"params": params["net"]}, features))

    def log_prob(params, stats, features, action):
        log_std = jnp.clip(params["log_std"], -5.0, 2.0)[None, :]
        return actions.gaussian_log_prob(actions.scale_action(action, spec, stats), mean(params, features), log_std)

    return Heads(
        init_critic=lambda key, stats: networks.init_twins(critic_net, key, jnp.zeros((1, width + size))),
        q=q,
        init_policy=lambda key, stats: {
            "net": policy_net.init(key, jnp.zeros((1, width)))["params"],
            "log_std": jnp.zeros(size),
        },
        log_prob=log_prob,
        decide=lambda params, stats, features: actions.unscale_action(mean(params, features), spec, stats),
    )


def integer_heads(spec: TaskSpec, config: IQLConfig) -> Heads:
    """Whole numbers: Q a sum of tables, a product of categorical distributions."""
    width = inputs.input_dim(spec, config)
    net = action_heads.network

    def q(params, stats, features, action):
        tables = networks.apply_twins(net(spec, stats, config.hidden), params, features)
        return jax.vmap(lambda table: actions.take(table, actions.action_index(action, stats)))(tables)

    def logits(params, stats, features):
        out = action_heads.predict(spec, stats, config.hidden, params, features)
        return actions.mask_illegal(out, spec, stats)

    def log_prob(params, stats, features, action):
        table = jax.nn.log_softmax(logits(params, stats, features), -1)
        return actions.take(table, actions.action_index(action, stats))

    def decide(params, stats, features):
        out = logits(params, stats, features)
        if config.decode == "mode":
            return actions.index_action(jnp.argmax(out, -1), stats)
        return action_heads.decode_mean(out, stats)

    example = jnp.zeros((1, width))
    return Heads(
        init_critic=lambda key, stats: networks.init_twins(net(spec, stats, config.hidden), key, example),
        q=q,
        init_policy=lambda key, stats: net(spec, stats, config.hidden).init(key, example)["params"],
        log_prob=log_prob,
        decide=decide,
    )


def make_iql(spec: TaskSpec, config: IQLConfig) -> Baseline:
    """IQL with the heads that the task's actions ask for."""
    heads = (integer_heads if spec.action_kind == "integer" else box_heads)(spec, config)
    value_net = networks.MLP((*config.hidden, 1))
    decay = optax.cosine_decay_schedule(config.learning_rate, config.num_updates)
    optimisers = {
        "value": training.make_optimiser(config.learning_rate, config.clip_norm),
        "policy": training.make_optimiser(decay, config.clip_norm, config.weight_decay),
        "critic": training.make_optimiser(config.learning_rate, config.clip_norm),
    }

    def value(params, features):
        return value_net.apply({"params": params}, features)[..., 0]

    def prepare(trajectories, stats):
        return returns.relabel(trajectories, stats, config.label)

    def init(key, stats):
        value_key, policy_key, critic_key = jax.random.split(key, 3)
        params = {
            "value": value_net.init(value_key, jnp.zeros((1, inputs.input_dim(spec, config))))["params"],
            "policy": heads.init_policy(policy_key, stats),
            "critic": heads.init_critic(critic_key, stats),
        }
        opt_state = {name: optimiser.init(params[name]) for name, optimiser in optimisers.items()}
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.array, params), opt_state)

    def update(key, state, rows: Transitions, stats):
        del key
        mask = rows.agent_mask
        features, next_features = inputs.row_features(config, rows)
        q_slow = heads.q(state.ema_params["critic"], stats, features, rows.action).min(0)
        new, opt_state, metrics = {}, {}, {}

        def step(name, loss_fn):
            new[name], opt_state[name], numbers = training.descend(
                loss_fn, state.params[name], optimisers[name], state.opt_state[name]
            )
            metrics.update(numbers)

        def value_loss(params):
            v = value(params, features)
            loss = masked_mean(expectile_loss(q_slow - v, config.expectile), mask)
            return loss, {"value": loss, "v": masked_mean(v, mask)}

        step("value", value_loss)
        advantage = q_slow - value(new["value"], features)
        weight = jnp.minimum(jnp.exp(config.beta * advantage), config.weight_clip)
        target = td_target(rows, stats, value(new["value"], next_features), config.discount)

        def policy_loss(params):
            loss = -masked_mean(weight * heads.log_prob(params, stats, features, rows.action), rows.weight)
            return loss, {"policy": loss, "advantage_std": jnp.sqrt(masked_mean(advantage**2, mask))}

        def critic_loss(params):
            error = heads.q(params, stats, features, rows.action) - target[None]
            td = masked_mean(error**2, mask[None])
            return 2.0 * td, {"td": td, "loss": td}

        step("policy", policy_loss)
        step("critic", critic_loss)
        ema = {
            name: training.ema_update(state.ema_params[name], new[name], state.step, config.ema_decay)
            for name in ("value", "policy")
        }
        ema["critic"] = optax.incremental_update(new["critic"], state.ema_params["critic"], config.target_rate)
        return TrainState(state.step + 1, new, ema, opt_state), metrics

    def decide(key, policy_params: PolicyParams, features):
        del key
        return heads.decide(policy_params.params["policy"], policy_params.stats, features)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=returns.transition_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
