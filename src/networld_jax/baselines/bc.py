"""MA-BC: behaviour cloning with shared parameters, the yardstick of every offline method.

    minimise  E CE(two_hot(a), softmax(f(o, m))),   act with the probability-weighted mean over bins

o is the agent's standardised symlog observation; with `use_mean_field` the mean of the neighbours' observations m (as
delayed as the task's messages are) is a second input.

`bc_shift` and `bc_quantile` are the same clone, decoded otherwise: the mean shifted by a constant, or a quantile of the
predicted distribution. Where asking too little costs more than asking too much, the quantile c_under / (c_under +
c_over) is the Bayes decision; a planner that beats the clone only by asking for a little more shows here.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from networld_envs.types import TaskSpec
from networld_jax import action_heads, training
from networld_jax.baselines import inputs, returns
from networld_jax.baselines.types import Baseline, BaselineConfig, require
from networld_jax.losses import masked_mean
from networld_jax.normalisation import action_std
from networld_jax.planning import PolicyParams
from networld_jax.types import Transitions


@dataclasses.dataclass(frozen=True)
class BCConfig(BaselineConfig):
    """The clone, and how its distribution becomes an action."""

    shift_std: float = 0.0  # added to every component of the mean, in standard deviations of the data's actions
    quantile: float = 0.0  # of the predicted distribution, in (0, 1); 0 = the mean

    def __post_init__(self):
        super().__post_init__()
        require(self, 0.0, 1.0, "quantile")
        if self.quantile and self.shift_std:
            raise ValueError("give shift_std or quantile, not both")


def make_bc(spec: TaskSpec, config: BCConfig) -> Baseline:
    """The clone as a Baseline."""
    rate = training.learning_rate_schedule(config.learning_rate, config.num_updates)
    optimiser = training.make_optimiser(rate, weight_decay=config.weight_decay)

    def logits(params, stats, features):
        return action_heads.predict(spec, stats, config.hidden, params, features)

    def init(key, stats):
        example = jnp.zeros((1, inputs.input_dim(spec, config)))
        params = action_heads.network(spec, stats, config.hidden).init(key, example)["params"]
        return training.init_train_state(params, optimiser)

    def update(key, state, rows: Transitions, stats):
        def loss_fn(params, rows, key):
            del key
            features, _ = inputs.row_features(config, rows)
            losses = action_heads.losses(logits(params, stats, features), rows.action, stats)
            loss = masked_mean(losses, rows.weight)
            return loss, {"loss": loss}

        return training.make_update(loss_fn, optimiser, config.ema_decay)(state, rows, key)

    def decide(key, policy_params: PolicyParams, features):
        del key
        stats = policy_params.stats
        out = logits(policy_params.params, stats, features)
        if config.quantile:
            return action_heads.decode_quantile(out, stats, config.quantile)
        return action_heads.decode_mean(out, stats) + config.shift_std * action_std(stats)[None, :]

    return Baseline(
        prepare=lambda trajectories, stats: (trajectories, stats),
        init=init,
        sample=returns.transition_sampler(spec, config),
        update=update,
        policy=inputs.memoryless_policy(spec, config, decide),
    )
