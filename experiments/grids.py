"""What is tried for every method, NetWorld and its rivals, before one may be called weaker: eight settings beside its
own, one field changed in each, scored on validation instances with one seed, the best of them with two more (groups
`tuning`, `tuning_finals`, `tuned` and `tuned_seeds` of configs/evidence.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUM_TRIED = 8
NUM_FINALISTS = 3  # its own among them

SHORTER, LONGER = 500, 2000  # updates; 1000 otherwise
SCHEDULE = {"baselines.num_updates": (SHORTER, LONGER)}

GRIDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "networld_scratch": {
        "adapt.num_updates": (SHORTER, LONGER),
        "adapt.weight_decay": (1.0, 3.0),
        "loss.advantage_weighting": (1.0,),
        "planner.guide_scale": (10.0, 300.0),
        "planner.num_averaged": (4,),
    },
    "ma_bc": SCHEDULE | {"learning_rate": (3e-4, 3e-3), "weight_decay": (0.3, 1.0, 3.0), "ema_decay": (0.98,)},
    "bc_shift": SCHEDULE | {"shift_std": (-0.1, 0.05, 0.2, 0.4), "weight_decay": (1.0,), "learning_rate": (3e-4,)},
    "bc_quantile": SCHEDULE | {"quantile": (0.4, 0.5, 0.7, 0.8), "weight_decay": (1.0,), "learning_rate": (3e-4,)},
    "filtered_bc": SCHEDULE
    | {"keep_fraction": (0.25, 0.75), "return_steps": (4, 16), "weight_decay": (1.0,), "learning_rate": (3e-4,)},
    "rc_bc": SCHEDULE
    | {"target_advantage": (0.5, 2.0), "return_steps": (4, 16), "weight_decay": (1.0,), "learning_rate": (3e-4,)},
    "ma_cql": SCHEDULE
    | {"cql_weight": (1.0, 10.0), "discount": (0.8,), "layer_norm": (True,), "learning_rate": (3e-4,),
       "weight_decay": (1.0,)},
    "ma_iql": SCHEDULE
    | {"expectile": (0.5, 0.9), "beta": (1.0, 10.0), "weight_decay": (1.0,), "learning_rate": (3e-4,)},
    "ma_dt": SCHEDULE
    | {"target_quantile": (0.5, 0.8), "context": (5, 20), "weight_decay": (0.1,), "learning_rate": (3e-4,)},
    "ma_dd": SCHEDULE
    | {"guide_scale": (1.0, 3.0), "target_quantile": (0.8,), "num_averaged": (4,), "temperature": (1.0,),
       "weight_decay": (1.0,)},
    "diffusion_policy": SCHEDULE
    | {"num_candidates": (4, 64), "selection_temperature": (0.3,), "return_steps": (4, 16), "weight_decay": (1.0,)},
    "multi_task_bc": SCHEDULE
    | {"trunk_scale": (0.0, 0.1, 1.0), "weight_decay": (0.3, 1.0), "learning_rate": (3e-4,)},
    "imagined_actor": SCHEDULE
    | {"anchor": (0.2, 1.0, 3.0), "horizon": (8,), "model_fraction": (0.7,), "weight_decay": (1.0,)},
    "ma_cdmp": {
        "adapt.num_updates": (SHORTER, LONGER),
        "adapt.weight_decay": (1.0,),
        "planner.guide_scale": (10.0, 300.0),
        "planner.num_averaged": (4,),
        "loss.inverse_dynamics_noise": (0.3, 1.2),
    },
}  # fmt: skip
"""Method -> field -> values to try; a field without a section is one of the method's own in `baselines`."""


def variants(method: str) -> dict[str, dict[str, Any]]:
    """Name -> what it changes (dotted field -> value), for every setting to try of a method; none without a grid."""
    found = {}
    for field, values in GRIDS.get(method, {}).items():
        path = field if "." in field else f"baselines.{method}.{field}"
        for value in values:
            found[f"{method}_{path.rpartition('.')[2]}_{value:g}"] = {path: value}
    return found
