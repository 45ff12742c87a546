"""Every rule of every task on the fixed test instances.

python -m experiments.calibrate --config=experiments/configs/calibrate.py --workdir=runs/calibrate --publish
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config() -> ConfigDict:
    """16 instances (cbf 32), long episodes."""
    c = default.get_config()
    c.calibrate = ConfigDict()
    c.calibrate.tasks = c.tasks
    c.calibrate.skip = ("",)  # policies left out
    c.calibrate.percentiles = ("rate", "reward")  # per-agent metrics whose 10th percentile over agents is reported
    c.evaluate.num_instances = ConfigDict({"cbf": 32, "rb": 32, "ns": 16})
    c.evaluate.num_steps = ConfigDict({"cbf": 200, "rb": 500, "ns": 1000})
    c.evaluate.burn_in_steps = ConfigDict({"cbf": 20, "rb": 100, "ns": 20})
    c.evaluate.num_parallel = 16
    return c
