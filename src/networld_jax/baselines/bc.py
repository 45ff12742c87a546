"""MA-BC: behaviour cloning with shared parameters, the yardstick of every offline method.

    minimise  E CE(two_hot(a), softmax(f(o, m))),   act with the probability-weighted mean over bins

o is the agent's standardised symlog observation; with `use_mean_field` the mean of the neighbours' observations m (as
delayed as the task's messages are) is a second input.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from networld_envs.types import Policy, TaskSpec
from networld_jax import networks, training
from networld_jax.baselines.types import Baseline
from networld_jax.datasets import normalise_obs
from networld_jax.mean_field import mean_field
from networld_jax.planning import PolicyParams, exchange, init_messages
from networld_jax.transforms import from_two_hot, two_hot_cross_entropy
from networld_jax.types import TaskStats, Transitions


@dataclasses.dataclass(frozen=True)
class BCConfig:
    """Sizes of the clone."""

    hidden: tuple[int, ...] = (256, 256)
    use_mean_field: bool = False
    learning_rate: float = 1e-3
    num_updates: int = 2000  # length of the cosine schedule
    ema_decay: float = 0.995


def make_bc(spec: TaskSpec, config: BCConfig) -> Baseline:
    """The clone as a Baseline."""
    optimiser = training.make_optimiser(training.learning_rate_schedule(config.learning_rate, config.num_updates))

    def network(stats: TaskStats) -> networks.InverseDynamics:
        return networks.InverseDynamics(
            action_dim=spec.action_dim, num_bins=stats.action_bins.shape[-1], hidden=config.hidden
        )

    def inputs(obs, neighbour_mean):
        return jnp.concatenate([obs, neighbour_mean], -1) if config.use_mean_field else obs

    def logits(params, stats, features):
        prior = stats.action_log_histogram
        out = network(stats).apply({"params": params}, features)
        return out + prior.reshape((1,) * (out.ndim - 2) + prior.shape)

    def init(key, stats):
        width = spec.obs_dim * (2 if config.use_mean_field else 1)
        return training.init_train_state(network(stats).init(key, jnp.zeros((1, width)))["params"], optimiser)

    def update(key, state, batch: Transitions, stats: TaskStats):
        def loss_fn(params, batch, key):
            del key
            out = logits(params, stats, inputs(batch.obs, batch.neighbour_mean))
            per_component = jax.vmap(two_hot_cross_entropy, in_axes=(-2, -1, 0), out_axes=-1)
            losses = per_component(out, batch.action, stats.action_bins).mean(-1)
            loss = jnp.sum(losses * batch.weight) / jnp.maximum(batch.weight.sum(), 1.0)
            return loss, {"loss": loss}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, batch, key)

    def policy() -> Policy:
        def act(key, policy_params: PolicyParams, carry, obs, adjacency, env_state):
            del key, env_state
            normal = normalise_obs(obs, policy_params.stats)
            heard, carry = exchange(carry, normal)
            out = logits(policy_params.params, policy_params.stats, inputs(normal, mean_field(heard, adjacency)))
            action = jax.vmap(from_two_hot, in_axes=(-2, 0), out_axes=-1)(out, policy_params.stats.action_bins)
            return action, carry

        delay = spec.message_delay_steps
        return Policy(
            init=lambda key, num_agents: init_messages(num_agents, spec.obs_dim, delay),
            act=act,
            reads_state=False,
            information="one_hop" if config.use_mean_field else "own",
            message_bytes=spec.obs_dim if config.use_mean_field else 0,
        )

    return Baseline(init, update, policy())
