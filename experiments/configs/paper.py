"""The paper's sizes: 100 source trajectories x 5000 steps per task, 10 target trajectories, 100 epochs x 1000 updates.

    python -m experiments.collect --config=experiments/configs/paper.py --workdir=runs/paper    (hours, accelerator)

Datasets are written shard by shard, so memory stays at `num_parallel` trajectories.
"""

from ml_collections import ConfigDict

from experiments.configs import default


def use_reference_sizes(c: ConfigDict) -> None:
    """The baselines at the sizes of the codes they come from; docs/baselines.md names them."""
    b = c.baselines
    for name in ("ma_bc", "bc_shift", "bc_quantile", "filtered_bc", "rc_bc", "multi_task_bc", "diffusion_policy"):
        b[name].learning_rate = 3e-4
    for name in ("filtered_bc", "rc_bc", "diffusion_policy", "ma_dd"):
        b[name].return_steps = c.model.horizon  # the label of the world model
    for name in ("ma_cql", "ma_iql"):
        b[name].update(dict(learning_rate=3e-4, target_rate=0.005, discount=0.99))
    b.ma_cql.update(dict(hidden=(256, 256, 256), policy_learning_rate=1e-4))
    b.ma_dt.update(dict(learning_rate=1e-4, batch_size=64, context=20, width=128, num_layers=3))
    b.ma_dd.update(dict(learning_rate=2e-4, batch_size=64, layout="diffuser", horizon=32, width=128))
    b.ma_dd.update(dict(width_mults=(1, 4, 8), diffusion_steps=100, num_steps=20))


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
    use_reference_sizes(c)
    c.evaluate.num_instances = ConfigDict(dict.fromkeys(c.tasks, 32))
    c.evaluate.num_steps = ConfigDict(dict.fromkeys(c.tasks, 1000))
    return c
