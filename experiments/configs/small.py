"""The small scale: every stage in minutes on 2 CPU cores.

    for stage in collect pretrain adapt evaluate figures; do
        python -m experiments.$stage --config=experiments/configs/small.py --workdir=runs/small
    done

`--config.held_out=cbf` (or ns) chooses another target; `small_cbf.py`-like files are not needed.
"""

from experiments.configs import default


def get_config():
    """Sizes of `default` unchanged."""
    return default.get_config()
