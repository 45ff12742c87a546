"""The three planning gates of ns on validation instances; about half an hour of one CPU core.

python -m experiments.gates --config=experiments/configs/ns_gates.py --workdir=runs/ns_gates --publish
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config() -> ConfigDict:
    """4 validation instances x 1000 windows: the test instances judge policies, not the task."""
    c = default.get_config()
    c.evaluate.split = "validation"
    c.evaluate.num_instances.ns = 4
    c.evaluate.num_steps.ns = 1000
    c.evaluate.burn_in_steps.ns = 20
    c.evaluate.num_parallel = 4
    return c
