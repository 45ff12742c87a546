"""MA-CDMP, the single-task ancestor of NetWorld: the preset `ma_cdmp` trained on the target task alone.

python -m experiments.adapt --config=experiments/configs/ma_cdmp.py:rb --workdir=runs/ma_cdmp
python -m experiments.evaluate ... --config.evaluate.policies="('networld_scratch',)"    (its row is called ma_cdmp)
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(held_out: str = "rb") -> ConfigDict:
    """One task, no pre-training; the small scale's budgets."""
    c = default.use_preset(default.get_config(held_out), "ma_cdmp")
    c.tasks = (held_out,)
    c.adapt.from_scratch = True
    c.evaluate.policies = ("networld_scratch",)
    return c
