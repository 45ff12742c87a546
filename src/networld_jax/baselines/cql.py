"""MA-CQL: conservative Q-learning per agent (Kumar et al. 2020), on soft actor-critic or, for integers, on Q-learning.

Critics see one agent's own inputs and action (no global state), parameters are shared. Targets bootstrap through every
cut, because a cut trajectory is truncated, not terminated:

    y = r + gamma (1 - terminated) min_j Qbar_j(o', a'),   a' ~ pi(o')    (integers: a' = argmax_a mean_j Q_j(o', a))
    L_j = E (Q_j(o, a) - y)^2 + cql_weight E [ log int exp Q_j(o, u) du - Q_j(o, a) ]

Box actions, variant CQL(H): the integral is estimated by importance sampling from uniform actions, pi(o) and pi(o'),
`num_actions` each, all valued at o; the data's own Q is not among them. The policy is a tanh-Gaussian that minimises
alpha log pi - min_j Q_j, cloned from the data (log-density *at the data's action*) for the first `clone_fraction` of
the updates; alpha follows the entropy target -A; no entropy in the backup.

Integer actions: Q is a sum over components (exact for one component, as on rb), so that integral and maximum over all
joint actions are sums over components; integers outside a component's range are masked in both.

Rewards are standardised with the training data. Differences to the reference are listed in docs/baselines.md.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from networld_envs.types import TaskSpec
from networld_jax import networks, training
from networld_jax.baselines import actions, inputs, returns
from networld_jax.baselines.types import Baseline, DiscountConfig, require, require_positive
from networld_jax.losses import masked_mean
from networld_jax.normalisation import standardise_reward
from networld_jax.planning import PolicyParams
from networld_jax.types import TrainState, Transitions


@dataclasses.dataclass(frozen=True)
class CQLConfig(DiscountConfig):
    """Nets, rates and the conservative term; the comments give the references' values for 1 M updates."""

    batch_size: int = 256
    learning_rate: float = 1e-3  # of the critics; 3e-4
    policy_learning_rate: float = 3e-4  # of policy and temperature; 3e-5 ... 3e-4
    target_rate: float = 0.01  # Polyak rate of the target critics; 0.005
    cql_weight: float = 5.0  # 5 ... 10
    num_actions: int = 10  # samples per proposal in the conservative term
    temperature: float = 1.0  # of the log-sum-exp
    clone_fraction: float = 0.05  # of the updates, in which the policy is cloned; 0.04 (40 k of 1 M)
    layer_norm: bool = False  # in the critics
    clip_norm: float = 10.0  # global gradient norm

    def __post_init__(self):
        super().__post_init__()
        require(self, 0.0, 1.0, "target_rate", "clone_fraction")
        require(self, 1, float("inf"), "num_actions")
        require(self, 0.0, float("inf"), "cql_weight")
        require_positive(self, "policy_learning_rate", "temperature", "clip_norm")


def make_cql(spec: TaskSpec, config: CQLConfig) -> Baseline:
    """CQL as the task's actions ask for."""
    return (_make_integer if spec.action_kind == "integer" else _make_box)(spec, config)


def conservative_gap(
    q_proposals: jax.Array, log_density: jax.Array, q_data: jax.Array, temperature: float
) -> jax.Array:
    """Estimate of tau log int exp(Q / tau) du - Q(data) from proposals u with known densities.

    Args:
      q_proposals: [2, P, B].
      log_density: [P, B] of the distribution that each proposal was drawn from.
      q_data: [2, B].

    Returns [2, B].
    """
    weighted = q_proposals / temperature - log_density[None]
    mean_exponential = jax.nn.logsumexp(weighted, axis=1) - jnp.log(q_proposals.shape[1])
    return temperature * mean_exponential - q_data


def td_target(rows: Transitions, stats, next_value: jax.Array, discount: float) -> jax.Array:
    """r + gamma (1 - terminated) V(o') with the standardised reward, [B]; no gradient."""
    reward = standardise_reward(rows.reward, stats)
    return jax.lax.stop_gradient(reward + discount * (1.0 - rows.terminated) * next_value)


# ------------------------------------------------------------------------------------------------ box actions


def _make_box(spec: TaskSpec, config: CQLConfig) -> Baseline:
    width, size = inputs.input_dim(spec, config), spec.action_dim
    critic_net = networks.MLP((*config.hidden, 1), layer_norm=config.layer_norm)
    policy_net = networks.MLP((*config.hidden, 2 * size))
    optimiser = training.make_optimiser(config.learning_rate, config.clip_norm)
    policy_optimiser = training.make_optimiser(config.policy_learning_rate, config.clip_norm, config.weight_decay)
    clone_updates = round(config.clone_fraction * config.num_updates)

    def distribution(policy, features):
        """Mean and log std [..., A] before the tanh."""
        mean, spread = jnp.split(policy_net.apply({"params": policy["net"]}, features), 2, -1)
        return mean, jnp.clip(policy["log_std_scale"] * spread + policy["log_std_offset"], -20.0, 2.0)

    def critic(params, features, u):
        """[2, ...] at scaled actions u [..., A]."""
        return networks.apply_twins(critic_net, params, jnp.concatenate([features, u], -1))[..., 0]

    def prepare(trajectories, stats):
        return returns.relabel(trajectories, stats, config.label)

    def init(key, stats):
        del stats
        policy_key, critic_key = jax.random.split(key)
        params = {
            "policy": {
                "net": policy_net.init(policy_key, jnp.zeros((1, width)))["params"],
                "log_std_scale": jnp.float32(1.0),
                "log_std_offset": jnp.float32(-1.0),
            },
            "critic": networks.init_twins(critic_net, critic_key, jnp.zeros((1, width + size))),
            "log_alpha": jnp.float32(0.0),
        }
        opt_state = {
            "policy": policy_optimiser.init(params["policy"]),
            "critic": optimiser.init(params["critic"]),
            "log_alpha": policy_optimiser.init(params["log_alpha"]),
        }
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.array, params), opt_state)

    def proposals(key, policy, features, next_features):
        """(actions [3n, B, A], their log densities [3n, B]), uniform, from pi(o') and from pi(o)."""
        uniform_key, next_key, now_key = jax.random.split(key, 3)
        count, rows = config.num_actions, features.shape[0]
        uniform = jax.random.uniform(uniform_key, (count, rows, size), minval=-1.0, maxval=1.0)

        def draw(key, features):
            return jax.vmap(lambda k: actions.tanh_gaussian_sample(k, *distribution(policy, features)))(
                jax.random.split(key, count)
            )

        (u_next, log_next), (u_now, log_now) = draw(next_key, next_features), draw(now_key, features)
        log_uniform = jnp.full((count, rows), -size * jnp.log(2.0))
        drawn = jnp.concatenate([uniform, u_next, u_now]), jnp.concatenate([log_uniform, log_next, log_now])
        return jax.lax.stop_gradient(drawn)

    def update(key, state, rows: Transitions, stats):
        policy_key, target_key, proposal_key = jax.random.split(key, 3)
        params, mask = state.params, rows.agent_mask
        features, next_features = inputs.row_features(config, rows)
        u = actions.scale_action(rows.action, spec, stats)
        alpha = jnp.exp(params["log_alpha"])

        def policy_loss(policy):
            mean, log_std = distribution(policy, features)
            drawn, log_pi = actions.tanh_gaussian_sample(policy_key, mean, log_std)
            improve = masked_mean(alpha * log_pi - critic(params["critic"], features, drawn).min(0), mask)
            clone = masked_mean(alpha * log_pi - actions.tanh_gaussian_log_prob(u, mean, log_std), rows.weight)
            loss = jnp.where(state.step < clone_updates, clone, improve)
            return loss, {"policy": loss, "entropy": -masked_mean(log_pi, mask)}

        next_u, _ = actions.tanh_gaussian_sample(target_key, *distribution(params["policy"], next_features))
        next_value = critic(state.ema_params["critic"], next_features, next_u).min(0)
        target = td_target(rows, stats, next_value, config.discount)
        others, log_density = proposals(proposal_key, params["policy"], features, next_features)
        repeated = jnp.broadcast_to(features[None], (others.shape[0], *features.shape))

        def critic_loss(critic_params):
            q = critic(critic_params, features, u)
            gap = conservative_gap(critic(critic_params, repeated, others), log_density, q, config.temperature)
            td = masked_mean((q - target[None]) ** 2, mask[None])
            gap = masked_mean(gap, mask[None])
            return 2.0 * (td + config.cql_weight * gap), {
                "td": td,
                "conservative": gap,
                "q": masked_mean(q, mask[None]),
            }

        # every loss is taken at the old parameters, as in the reference
        metrics: dict[str, jax.Array] = {}
        new, opt_state = {}, {}
        for name, loss, own_optimiser in (
            ("policy", policy_loss, policy_optimiser),
            ("critic", critic_loss, optimiser),
        ):
            new[name], opt_state[name], numbers = training.descend(
                loss, params[name], own_optimiser, state.opt_state[name]
            )
            metrics |= numbers

        def alpha_loss(log_alpha):
            return log_alpha * (metrics["entropy"] + size), {"alpha": jnp.exp(log_alpha)}  # target entropy -A

        new["log_alpha"], opt_state["log_alpha"], numbers = training.descend(
            alpha_loss, params["log_alpha"], policy_optimiser, state.opt_state["log_alpha"]
        )
        acting = training.ema_update(state.ema_params["policy"], new["policy"], state.step, config.ema_decay)
        slow = optax.incremental_update(new["critic"], state.ema_params["critic"], config.target_rate)
        ema = {"policy": acting, "critic": slow, "log_alpha": new["log_alpha"]}
        metrics |= numbers | {"loss": metrics["td"] + config.cql_weight * metrics["conservative"]}
        return TrainState(state.step + 1, new, ema, opt_state), metrics

    def decide(key, policy_params: PolicyParams, features):
        del key
        mean, _ = distribution(policy_params.params["policy"], features)
        return actions.unscale_action(jnp.tanh(mean), spec, policy_params.stats)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=returns.transition_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )


# ------------------------------------------------------------------------------------------------ integer actions


def _make_integer(spec: TaskSpec, config: CQLConfig) -> Baseline:
    width, size = inputs.input_dim(spec, config), spec.action_dim
    optimiser = training.make_optimiser(config.learning_rate, config.clip_norm, config.weight_decay)

    def critic_net(stats):
        return networks.MLP((*config.hidden, size * stats.action_bins.shape[-1]), layer_norm=config.layer_norm)

    def tables(params, stats, features):
        """Values [2, B, A, M] of every integer of every component; `ILLEGAL` outside its range."""
        flat = networks.apply_twins(critic_net(stats), params, features)
        return actions.mask_illegal(flat.reshape(*flat.shape[:-1], size, -1), spec, stats)

    def prepare(trajectories, stats):
        return returns.relabel(trajectories, stats, config.label)

    def init(key, stats):
        params = {"critic": networks.init_twins(critic_net(stats), key, jnp.zeros((1, width)))}
        return training.init_train_state(params, optimiser)

    def update(key, state, rows: Transitions, stats):
        del key
        mask = rows.agent_mask
        features, next_features = inputs.row_features(config, rows)
        index = actions.action_index(rows.action, stats)
        best = jnp.argmax(tables(state.params["critic"], stats, next_features).mean(0), -1)
        slow = tables(state.ema_params["critic"], stats, next_features)
        next_value = jax.vmap(lambda table: actions.take(table, best))(slow).min(0)
        target = td_target(rows, stats, next_value, config.discount)

        def loss_fn(params):
            table = tables(params["critic"], stats, features)
            q = jax.vmap(lambda table: actions.take(table, index))(table)
            total = config.temperature * jax.nn.logsumexp(table / config.temperature, axis=-1).sum(-1)
            td, gap = masked_mean((q - target[None]) ** 2, mask[None]), masked_mean(total - q, mask[None])
            loss = td + config.cql_weight * gap
            return 2.0 * loss, {"loss": loss, "td": td, "conservative": gap, "q": masked_mean(q, mask[None])}

        params, opt_state, metrics = training.descend(loss_fn, state.params, optimiser, state.opt_state)
        slow = optax.incremental_update(params, state.ema_params, config.target_rate)
        return TrainState(state.step + 1, params, slow, opt_state), metrics

    def decide(key, policy_params: PolicyParams, features):
        del key
        table = tables(policy_params.params["critic"], policy_params.stats, features).mean(0)
        return actions.index_action(jnp.argmax(table, -1), policy_params.stats)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=returns.transition_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
