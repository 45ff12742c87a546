"""The demo: everything end to end in at most 15 minutes on 2 CPU cores.

make demo            (= python -m experiments.demo --config=experiments/configs/demo.py --workdir=runs/demo)
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(held_out: str = "rb") -> ConfigDict:
    """Small data, short training, few instances x 200 steps."""
    c = default.get_config(held_out)
    c.collect.num_trajectories = ConfigDict({"cbf": 32, "rb": 40, "ns": 16})
    c.collect.num_steps = ConfigDict({"cbf": 60, "rb": 250, "ns": 60})
    c.collect.num_parallel = 16
    c.adapt.num_trajectories = c.collect.num_trajectories[held_out]
    c.pretrain.num_updates = 1000
    c.adapt.num_updates = 3000
    c.baselines.num_updates = 3000  # the same budget
    c.update(ConfigDict(default.TUNED[held_out]))
    c.evaluate.num_instances = ConfigDict({"cbf": 8, "rb": 8, "ns": 4})
    c.evaluate.num_steps = ConfigDict({"cbf": 200, "rb": 200, "ns": 200})
    return c
