"""A configuration of the stages over the toy environments, as small as they go."""

import ml_collections

from experiments.configs import default
from tests import toy_environment

TASKS = {
    "queues": toy_environment.make_queues,
    "slow_queues": toy_environment.make_slow_queues,
    "busy_queues": toy_environment.make_busy_queues,
}


def get_config() -> ml_collections.ConfigDict:
    c = default.get_config()
    everywhere = lambda value: ml_collections.ConfigDict(dict.fromkeys(TASKS, value))  # noqa: E731
    c.tasks, c.held_out = tuple(TASKS), "busy_queues"
    c.environment = ml_collections.ConfigDict({task: ml_collections.ConfigDict() for task in TASKS})
    c.collect.update(
        dict(tier="expert", num_parallel=2, steps_per_dispatch=6, float64=(), reference_instances=2, reference_steps=4)
    )
    c.collect.num_trajectories, c.collect.num_steps = everywhere(5), everywhere(10)
    c.pretrain.num_trajectories = everywhere(0)
    c.model.update(
        dict(latent_dim=2, horizon=2, width=8, width_mults=(1,), diffusion_steps=4, num_action_bins=7)
        | dict(inverse_dynamics_hidden=(8,), value_hidden=(8,))
    )
    c.pretrain.update(dict(num_updates=4, sequences_per_task=10, updates_per_dispatch=1, dispatches_per_checkpoint=1))
    c.pretrain.warmup_updates = 0
    c.adapt.update(dict(num_updates=2, sequences=10, updates_per_dispatch=1, dispatches_per_checkpoint=1))
    c.adapt.update(dict(num_trajectories=2, warmup_updates=0))
    c.baselines.update(dict(num_updates=2, updates_per_dispatch=1, dispatches_per_checkpoint=1))
    for name in ("ma_bc", "multi_task_bc"):
        c.baselines[name].update(dict(hidden=(8,), batch_size=10))
    c.planner.num_steps = 2
    c.evaluate.num_instances, c.evaluate.num_steps = everywhere(3), everywhere(4)
    c.evaluate.burn_in_steps = everywhere(1)
    c.evaluate.num_parallel = 2
    c.evaluate.policies = ("networld", "random", "expert")
    return c
