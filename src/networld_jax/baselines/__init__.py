"""Offline MARL baselines behind one contract."""

from networld_jax.baselines.bc import BCConfig, make_bc
from networld_jax.baselines.types import Baseline

BASELINES = {"ma_bc": make_bc}

__all__ = ["BASELINES", "BCConfig", "Baseline", "make_bc"]
