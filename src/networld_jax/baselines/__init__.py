"""Offline MARL baselines behind one contract; docs/baselines.md says what each of them is."""

from networld_jax.baselines.advantage_bc import AdvantageBCConfig, make_filtered_bc, make_rc_bc
from networld_jax.baselines.bc import BCConfig, make_bc
from networld_jax.baselines.cql import CQLConfig, make_cql
from networld_jax.baselines.dd import DDConfig, make_dd
from networld_jax.baselines.diffusion_policy import DiffusionPolicyConfig, make_diffusion_policy
from networld_jax.baselines.dt import DTConfig, make_dt
from networld_jax.baselines.imagined_actor import ImaginedActorConfig, make_imagined_actor
from networld_jax.baselines.iql import IQLConfig, make_iql
from networld_jax.baselines.multi_task_bc import (
    MultiTaskBCConfig,
    Pretraining,
    make_multi_task_bc,
    make_pretraining,
)
from networld_jax.baselines.types import Baseline, BaselineConfig, RewardConfig

BASELINES = {
    "ma_bc": make_bc,
    "bc_shift": make_bc,
    "bc_quantile": make_bc,
    "filtered_bc": make_filtered_bc,
    "rc_bc": make_rc_bc,
    "ma_cql": make_cql,
    "ma_iql": make_iql,
    "ma_dt": make_dt,
    "ma_dd": make_dd,
    "diffusion_policy": make_diffusion_policy,
    "multi_task_bc": make_multi_task_bc,
    "imagined_actor": make_imagined_actor,
}
"""Name -> factory(spec, config) -> Baseline. The single-task ancestor MA-CDMP is `PRESETS["ma_cdmp"]` instead."""

DEFAULTS: dict[str, BaselineConfig] = {
    "ma_bc": BCConfig(),
    "bc_shift": BCConfig(shift_std=0.1),
    "bc_quantile": BCConfig(quantile=0.6),
    "filtered_bc": AdvantageBCConfig(),
    "rc_bc": AdvantageBCConfig(),
    "ma_cql": CQLConfig(),
    "ma_iql": IQLConfig(),
    "ma_dt": DTConfig(),
    "ma_dd": DDConfig(),
    "diffusion_policy": DiffusionPolicyConfig(),
    "multi_task_bc": MultiTaskBCConfig(),
    "imagined_actor": ImaginedActorConfig(),
}
"""Name -> the factory's configuration at the scale of 2 CPU cores; its class is the one the factory takes."""

__all__ = [
    "BASELINES",
    "DEFAULTS",
    "AdvantageBCConfig",
    "BCConfig",
    "Baseline",
    "BaselineConfig",
    "CQLConfig",
    "DDConfig",
    "DTConfig",
    "DiffusionPolicyConfig",
    "IQLConfig",
    "ImaginedActorConfig",
    "MultiTaskBCConfig",
    "Pretraining",
    "RewardConfig",
    "make_bc",
    "make_cql",
    "make_dd",
    "make_diffusion_policy",
    "make_dt",
    "make_filtered_bc",
    "make_imagined_actor",
    "make_iql",
    "make_multi_task_bc",
    "make_pretraining",
    "make_rc_bc",
]
