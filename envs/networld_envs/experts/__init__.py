"""Policies that need no learning: experts that collect data, rules that learned policies have to beat, bounds.

Each module of this package has

    policies(params) -> dict[str, Policy]   the rows of every table, by name
    tiers(params)    -> dict[str, Policy]   what collects the offline data of a quality tier
"""

from __future__ import annotations

import importlib
from typing import Any

from networld_envs.types import Policy

EXPERTS = ("cbf", "rb", "ns")


def _module(task: str):
    if task not in EXPERTS:
        raise ValueError(f"no experts for task {task!r}; choose one of {EXPERTS}")
    return importlib.import_module(f"{__name__}.{task}")


def policies(task: str, params: Any) -> dict[str, Policy]:
    """Rules, experts and bounds of a task. Raises ValueError for an unknown task."""
    return _module(task).policies(params)


def tiers(task: str, params: Any) -> dict[str, Policy]:
    """Data-collecting policies of a task: "expert", "medium", "mixed", "noisy_expert", ... Raises ValueError for an
    unknown task."""
    return _module(task).tiers(params)
