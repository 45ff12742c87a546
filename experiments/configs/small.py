"""The small scale: every stage in minutes on 2 CPU cores.

for stage in collect pretrain adapt evaluate figures; do
    python -m experiments.$stage --config=experiments/configs/small.py --workdir=runs/small
done
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config(held_out: str = "rb") -> ConfigDict:
    """`--config=experiments/configs/small.py:cbf` (or :ns) chooses the held-out task."""
    return default.get_config(held_out)
