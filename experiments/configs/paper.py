"""The paper's sizes: 100 source trajectories x 5000 steps per task, 10 target trajectories, 100 epochs x 1000 updates.

    python -m experiments.collect --config=experiments/configs/paper.py --workdir=runs/paper    (hours, accelerator)

Datasets are written shard by shard, so memory stays at `num_parallel` trajectories.
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(held_out: str = "rb") -> ConfigDict:
    """`--config=experiments/configs/paper.py:cbf` chooses the held-out task."""
    c = default.use_preset(default.get_config(held_out), "networld")
    c.collect.tier = "expert"
    c.collect.num_trajectories = ConfigDict(dict.fromkeys(c.tasks, 100))  # the baselines' full sets have 300
    c.collect.num_steps = ConfigDict(dict.fromkeys(c.tasks, 5000))
    c.collect.num_parallel = 50
    c.collect.steps_per_dispatch = 500
    c.pretrain.num_updates = 100_000
    c.pretrain.sequences_per_task = 256
    c.pretrain.learning_rate = 2e-4
    c.pretrain.updates_per_dispatch = 1000
    c.adapt.num_updates = 100_000
    c.adapt.sequences = 256
    c.adapt.learning_rate = 2e-4
    c.adapt.updates_per_dispatch = 1000
    c.baselines.num_updates = 100_000  # 100 epochs x 1000
    c.baselines.updates_per_dispatch = 1000
    c.evaluate.num_instances = ConfigDict(dict.fromkeys(c.tasks, 32))
    c.evaluate.num_steps = ConfigDict(dict.fromkeys(c.tasks, 1000))
    return c
