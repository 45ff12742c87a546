"""NetWorld in JAX: a diffusion world model that controls wireless networks, one decision per agent and step.

The tour: an environment (`networld_envs.make`) and a policy give `Trajectories` (`rollout`); `make_world_model` bundles
the networks as pure functions; `joint_loss` trains them; `make_planner` turns them into a policy again; `evaluate`
scores it.
"""

from networld_jax.datasets import from_arrays, load, spec_from_trajectories
from networld_jax.evaluation import Protocol, Scores, anchored, charge_messages, evaluate, paired_difference
from networld_jax.labels import neighbourhood_return
from networld_jax.losses import joint_loss
from networld_jax.mean_field import mean_field
from networld_jax.normalisation import task_stats
from networld_jax.planning import PolicyParams, make_planner
from networld_jax.predictability import action_predictability
from networld_jax.pretrained import load_pretrained
from networld_jax.rollout import rollout
from networld_jax.sampling import guided, sample_ddim, sample_ddpm, sample_dpmpp_2m
from networld_jax.schedules import NoiseSchedule, cosine_schedule
from networld_jax.training import init_train_state, make_epoch, make_optimiser, make_update, world_model_loss
from networld_jax.types import (
    LossConfig,
    PlannerConfig,
    Segments,
    TaskStats,
    TrainState,
    Trajectories,
    WorldModelConfig,
)
from networld_jax.world_model import WorldModel, make_world_model

__all__ = [
    "LossConfig",
    "NoiseSchedule",
    "PlannerConfig",
    "PolicyParams",
    "Protocol",
    "Scores",
    "Segments",
    "TaskStats",
    "TrainState",
    "Trajectories",
    "WorldModel",
    "WorldModelConfig",
    "action_predictability",
    "anchored",
    "charge_messages",
    "cosine_schedule",
    "evaluate",
    "from_arrays",
    "guided",
    "init_train_state",
    "joint_loss",
    "load",
    "load_pretrained",
    "make_epoch",
    "make_optimiser",
    "make_planner",
    "make_update",
    "make_world_model",
    "mean_field",
    "neighbourhood_return",
    "paired_difference",
    "rollout",
    "sample_ddim",
    "sample_ddpm",
    "sample_dpmpp_2m",
    "spec_from_trajectories",
    "task_stats",
    "world_model_loss",
]
