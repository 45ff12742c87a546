"""Multi-task BC: one trunk for all tasks between input and output layers of each task's own.

    logits = output_task(trunk(input_task(o, m)))

Pre-trained by cloning the source tasks (`make_pretraining`), then adapted to a new task whose input and output layers
start afresh while the trunk learns at `trunk_scale` times the rate: the procedure of the world model without a world
model. If this row gains as much from pre-training as the planner does, the gain is not due to diffusion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from networld_envs.types import TaskSpec
from networld_jax import action_heads, networks, training
from networld_jax.baselines import inputs, returns
from networld_jax.baselines.types import Baseline, BaselineConfig, require
from networld_jax.losses import masked_mean
from networld_jax.planning import PolicyParams
from networld_jax.types import Params, TaskStats, TrainState, Transitions


@dataclasses.dataclass(frozen=True)
class MultiTaskBCConfig(BaselineConfig):
    """`hidden` are the layers of the shared trunk, its first one also the width that every task's input layer feeds."""

    trunk_scale: float = 0.3  # rate of a pre-trained trunk relative to the new task's layers; 0 = frozen

    def __post_init__(self):
        super().__post_init__()
        require(self, 0.0, 1.0, "trunk_scale")
        if not self.hidden:
            raise ValueError("hidden must have at least one layer: it is the trunk")


class Pretraining(NamedTuple):
    """Cloning several tasks at once; data and stats are {task: ...}."""

    init: Callable[..., TrainState]  # (key, stats) -> state; state.ema_params["trunk"] is what adaptation starts from
    sample: Callable[..., Mapping[str, Transitions]]  # (key, data, stats) -> {task: rows}
    update: Callable[..., tuple[TrainState, dict]]  # (key, state, batch, stats) -> (state, metrics)


def task_net(spec: TaskSpec, config: MultiTaskBCConfig):
    """(init(key, stats) -> {"input", "output"}, init_trunk(key) -> params, logits(layers, trunk, stats, features))."""
    entrance = networks.MLP((config.hidden[0],))
    trunk_net = networks.MLP((*config.hidden, config.hidden[-1]))

    def init(key, stats: TaskStats):
        input_key, output_key = jax.random.split(key)
        deep = jnp.zeros((1, config.hidden[-1]))
        return {
            "input": entrance.init(input_key, jnp.zeros((1, inputs.input_dim(spec, config))))["params"],
            "output": action_heads.network(spec, stats, ()).init(output_key, deep)["params"],
        }

    def init_trunk(key):
        return trunk_net.init(key, jnp.zeros((1, config.hidden[0])))["params"]

    def logits(layers, trunk, stats, features):
        x = networks.mish(entrance.apply({"params": layers["input"]}, features))
        x = networks.mish(trunk_net.apply({"params": trunk}, x))
        out = action_heads.network(spec, stats, ()).apply({"params": layers["output"]}, x)
        return action_heads.add_prior(out, stats)

    return init, init_trunk, logits


def clone_loss(out: jax.Array, rows: Transitions, stats: TaskStats) -> jax.Array:
    """Mean two-hot cross-entropy of the rows worth imitating."""
    return masked_mean(action_heads.losses(out, rows.action, stats), rows.weight)


def make_pretraining(specs: Sequence[TaskSpec], config: MultiTaskBCConfig) -> Pretraining:
    """Trunk and layers of all source tasks; tasks weigh equally."""
    optimiser = training.make_optimiser(training.learning_rate_schedule(config.learning_rate, config.num_updates))
    nets = {spec.name: task_net(spec, config) for spec in specs}
    samplers = {spec.name: returns.transition_sampler(spec, config) for spec in specs}

    def init(key, stats: Mapping[str, TaskStats]):
        trunk_key, *task_keys = jax.random.split(key, 1 + len(specs))
        layers = {name: net[0](k, stats[name]) for (name, net), k in zip(nets.items(), task_keys, strict=True)}
        trunk = nets[specs[0].name][1](trunk_key)
        return training.init_train_state({"trunk": trunk, "layers": layers}, optimiser)

    def sample(key, data, stats):
        keys = jax.random.split(key, len(specs))
        return {name: samplers[name](k, data[name], stats[name]) for name, k in zip(nets, keys, strict=True)}

    def update(key, state, batch: Mapping[str, Transitions], stats):
        def loss_fn(params, batch, key):
            del key
            losses = {}
            for name, (_, _, logits) in nets.items():
                features, _ = inputs.row_features(config, batch[name])
                out = logits(params["layers"][name], params["trunk"], stats[name], features)
                losses[name] = clone_loss(out, batch[name], stats[name])
            loss = sum(losses.values()) / len(losses)
            return loss, {"loss": loss} | {f"{name}/loss": value for name, value in losses.items()}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, batch, key)

    return Pretraining(init, sample, update)


def make_multi_task_bc(spec: TaskSpec, config: MultiTaskBCConfig, trunk: Params | None = None) -> Baseline:
    """One task on a trunk: a pre-trained one, or (None) a fresh one that learns at the full rate, the control."""
    init_layers, init_trunk, logits = task_net(spec, config)
    rate = training.learning_rate_schedule(config.learning_rate, config.num_updates)
    scale = 1.0 if trunk is None else config.trunk_scale
    slow = training.adam(lambda count: scale * rate(count), config.weight_decay) if scale else optax.set_to_zero()
    rates = {"layers": training.adam(rate, config.weight_decay), "trunk": slow}
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.multi_transform(rates, {"layers": "layers", "trunk": "trunk"})
    )

    def init(key, stats):
        trunk_key, layers_key = jax.random.split(key)
        start: Any = init_trunk(trunk_key) if trunk is None else jax.tree.map(jnp.array, trunk)
        return training.init_train_state({"layers": init_layers(layers_key, stats), "trunk": start}, optimiser)

    def update(key, state, rows: Transitions, stats):
        def loss_fn(params, rows, key):
            del key
            features, _ = inputs.row_features(config, rows)
            loss = clone_loss(logits(params["layers"], params["trunk"], stats, features), rows, stats)
            return loss, {"loss": loss}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, rows, key)

    def decide(key, policy_params: PolicyParams, features):
        del key
        params, stats = policy_params.params, policy_params.stats
        return action_heads.decode_mean(logits(params["layers"], params["trunk"], stats, features), stats)

    return Baseline(
        prepare=lambda trajectories, stats: (trajectories, stats),
        init=init,
        sample=returns.transition_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
