"""Offline MARL baselines behind one contract; docs/baselines.md says what each of them is."""

from networld_jax.baselines.advantage_bc import AdvantageBCConfig, make_filtered_bc, make_rc_bc
from networld_jax.baselines.bc import BCConfig, make_bc
from networld_jax.baselines.cql import CQLConfig, make_cql
from networld_jax.baselines.iql import IQLConfig, make_iql
from networld_jax.baselines.types import Baseline, BaselineConfig, RewardConfig

BASELINES = {
    "ma_bc": make_bc,
    "bc_shift": make_bc,
    "bc_quantile": make_bc,
    "filtered_bc": make_filtered_bc,
    "rc_bc": make_rc_bc,
    "ma_cql": make_cql,
    "ma_iql": make_iql,
}
"""Name -> factory(spec, config) -> Baseline."""

DEFAULTS = {
    "ma_bc": BCConfig(),
    "bc_shift": BCConfig(shift_std=0.1),
    "bc_quantile": BCConfig(quantile=0.6),
    "filtered_bc": AdvantageBCConfig(),
    "rc_bc": AdvantageBCConfig(),
    "ma_cql": CQLConfig(),
    "ma_iql": IQLConfig(),
}
"""Name -> the factory's configuration, at the scale of 2 CPU cores; its class is the one the factory takes."""

__all__ = [
    "BASELINES",
    "DEFAULTS",
    "AdvantageBCConfig",
    "BCConfig",
    "Baseline",
    "BaselineConfig",
    "CQLConfig",
    "IQLConfig",
    "RewardConfig",
    "make_bc",
    "make_cql",
    "make_filtered_bc",
    "make_iql",
    "make_rc_bc",
]
