"""The paper taken at its word, at the small scale: the straw man's fair trial.

    python -m experiments.demo --config=experiments/configs/paper_reading.py --workdir=runs/paper_reading

Its encoder is trained through the diffusion loss and collapses; the latent alarm in the log says so.
"""

from ml_collections import ConfigDict

from experiments.configs import default, demo


def get_config(held_out: str = "rb") -> ConfigDict:
    """The demo's data and budgets with the preset `paper_reading`."""
    return default.use_preset(demo.get_config(held_out), "paper_reading")
