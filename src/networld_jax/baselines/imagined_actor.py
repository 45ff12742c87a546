"""Imagined actor: a decentralised policy trained by gradients through a learned simulator of the whole network.

    first `model_fraction` of the updates:  fit several simulators (`graph_dynamics`); clone the data (as MA-BC)
    the rest:      maximise  E sum_h gamma^h mean_i r_i  -  anchor E |a - a_clone|^2 / var(a)

over `horizon` imagined steps from states of the data, in which *every* agent follows the actor: the return is that of
a population of its own kind. A return in the data is that of a mixed population, and says that asking for more pays
where the others ask for little (docs/experiments.md, E28 and E29). What neighbours hear is the same quantised message
as everywhere, and gradients pass through it. Whole steps are drawn from the simulator (straight-through), from a
member picked at random per update. The anchor keeps the actor where the data are (Fujimoto & Gu 2021); gradients
through a model: SVG (Heess et al. 2015), Dreamer (Hafner et al. 2020).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from networld_envs.types import TaskSpec
from networld_jax import action_heads, graph_dynamics, training
from networld_jax.baselines import actions, inputs
from networld_jax.baselines.bc import BCConfig, make_bc
from networld_jax.baselines.transitions import sample_joint_steps, transitions
from networld_jax.baselines.types import Baseline, BaselineConfig, require, require_positive
from networld_jax.losses import masked_mean
from networld_jax.mean_field import mean_field, quantise
from networld_jax.normalisation import normalise_obs, standardise_action
from networld_jax.planning import MessageBuffer, PolicyParams, exchange
from networld_jax.transforms import straight_through
from networld_jax.types import Segments, TrainState


@dataclasses.dataclass(frozen=True)
class ImaginedActorConfig(BaselineConfig):
    """Simulator, imagination and anchor."""

    discount: float = 0.99  # per imagined step
    model_fraction: float = 0.5  # of the updates; after them the clone is frozen and the actor learns
    num_members: int = 2  # simulators, each from its own initial weights
    model_hidden: int = 128
    model_rounds: int = 2  # of messages inside a simulator
    model_weight_decay: float = 1e-2
    num_obs_bins: int = 26  # per observation entry
    horizon: int = 16  # imagined steps
    num_imagined: int = 48  # networks imagined per update
    actor_learning_rate: float = 3e-4
    anchor: float = 0.05  # weight of the squared distance to the clone, against standardised reward per step

    def __post_init__(self):
        super().__post_init__()
        counts = ("num_members", "model_hidden", "horizon", "num_imagined")
        require(self, 1, float("inf"), *counts)
        require(self, 2, float("inf"), "num_obs_bins")
        require(self, 0, float("inf"), "model_rounds", "model_weight_decay", "anchor")
        require(self, 0.0, 1.0, "model_fraction")
        require_positive(self, "actor_learning_rate")


def simulator_of(spec: TaskSpec, config: ImaginedActorConfig) -> graph_dynamics.Simulator:
    """The simulator that the actor is trained in; `state.ema_params["simulator"]` are its members."""
    return graph_dynamics.make_simulator(spec, config.num_obs_bins, config.model_hidden, config.model_rounds)


def make_imagined_actor(spec: TaskSpec, config: ImaginedActorConfig) -> Baseline:
    """The imagined actor as a Baseline."""
    delay = spec.message_delay_steps
    model_updates = max(1, round(config.model_fraction * config.num_updates))
    actor_updates = max(1, config.num_updates - model_updates)
    simulator = simulator_of(spec, config)
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(BaselineConfig)}
    clone = make_bc(spec, BCConfig(**shared | {"num_updates": model_updates}))
    rate = training.learning_rate_schedule
    optimisers = {
        "simulator": training.make_optimiser(
            rate(config.learning_rate, config.num_updates), weight_decay=config.model_weight_decay
        ),
        "actor": training.make_optimiser(
            rate(config.actor_learning_rate, actor_updates), weight_decay=config.weight_decay
        ),
    }

    def mean_action(params, stats, features):
        logits = action_heads.predict(spec, stats, config.hidden, params, features)
        return action_heads.decode_mean(logits, stats)

    def imagine(actor, params, segments: Segments, stats, key):
        """(mean standardised reward, mean squared distance to the clone) of the actor's imagined steps."""
        start_key, member_key, step_key = jax.random.split(key, 3)
        count = segments.reward.shape[0]
        rows = jax.random.choice(start_key, count, (min(config.num_imagined, count),), replace=False)
        cut = lambda x: normalise_obs(jnp.swapaxes(x[rows], 1, 2)[:, 0], stats)  # noqa: E731
        obs, heard = cut(segments.obs), cut(segments.message_obs)
        adjacency, mask = segments.adjacency[rows], segments.agent_mask[rows]
        member = graph_dynamics.choose_member(member_key, params["simulator"])
        send = lambda obs: straight_through(quantise(obs, config.message_bits, config.message_range), obs)  # noqa: E731
        on_the_way = MessageBuffer(jnp.broadcast_to(send(heard)[None], (delay, *heard.shape)), jnp.int32(1))

        def step(carry, key):
            obs, on_the_way = carry
            arrived, on_the_way = exchange(on_the_way, send(obs))
            features = inputs.features(config, obs, mean_field(arrived, adjacency))
            action = mean_action(actor, stats, features)
            cloned = jax.lax.stop_gradient(mean_action(params["clone"], stats, features))
            apart = standardise_action(action, stats) - standardise_action(cloned, stats)
            obs, reward = simulator.step(key, member, stats, obs, actions.executed(action, spec), adjacency)
            return (obs, on_the_way), (masked_mean(reward, mask), masked_mean((apart**2).mean(-1), mask))

        _, (reward, distance) = jax.lax.scan(step, (obs, on_the_way), jax.random.split(step_key, config.horizon))
        weight = config.discount ** jnp.arange(config.horizon)
        return (reward * weight).sum() / weight.sum(), distance.mean()

    def prepare(trajectories, stats):
        return trajectories, graph_dynamics.with_observation_bins(trajectories, stats, config.num_obs_bins)

    def sample(key, trajectories, stats):
        del stats
        return sample_joint_steps(key, trajectories, config.batch_size, delay)

    def init(key, stats):
        simulator_key, clone_key = jax.random.split(key)
        start = clone.init(clone_key, stats)
        params = {
            "simulator": jax.vmap(simulator.init)(jax.random.split(simulator_key, config.num_members)),
            "clone": start.params,
            "actor": jax.tree.map(jnp.array, start.params),
        }
        opt_state = {name: optimiser.init(params[name]) for name, optimiser in optimisers.items()}
        opt_state["clone"] = start.opt_state
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.array, params), opt_state)

    def update(key, state: TrainState, segments: Segments, stats):
        def learn_clone(params, opt_state):
            before = TrainState(state.step, params["clone"], state.ema_params["clone"], opt_state["clone"])
            after, metrics = clone.update(key, before, transitions(segments, stats), stats)
            zero = jnp.float32(0.0)
            metrics = {"loss": metrics["loss"], "imagined_reward": zero, "distance": zero}
            params = params | {"clone": after.params, "actor": after.params}
            return params, opt_state | {"clone": after.opt_state}, metrics

        def learn_actor(params, opt_state):
            def loss_fn(actor):
                reward, distance = imagine(actor, params, segments, stats, key)
                loss = config.anchor * distance - reward
                return loss, {"loss": loss, "imagined_reward": reward, "distance": distance}

            actor, inner, metrics = training.descend(
                loss_fn, params["actor"], optimisers["actor"], opt_state["actor"]
            )
            return params | {"actor": actor}, opt_state | {"actor": inner}, metrics

        def simulator_loss(members):
            losses, metrics = jax.vmap(lambda p: simulator.loss(p, stats, segments))(members)
            return losses.sum(), jax.tree.map(jnp.mean, metrics)

        is_clone = state.step < model_updates
        params, opt_state, metrics = jax.lax.cond(is_clone, learn_clone, learn_actor, state.params, state.opt_state)
        simulators, inner, errors = training.descend(
            simulator_loss, params["simulator"], optimisers["simulator"], opt_state["simulator"]
        )
        params, opt_state = params | {"simulator": simulators}, opt_state | {"simulator": inner}
        ema = training.ema_update(state.ema_params, params, state.step, config.ema_decay)
        return TrainState(state.step + 1, params, ema, opt_state), metrics | errors

    def decide(key, policy_params: PolicyParams, features):
        del key
        return mean_action(policy_params.params["actor"], policy_params.stats, features)

    return Baseline(
        prepare=prepare,
        init=init,
        sample=sample,
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
