"""Policies that need no learning: experts that collect data, rules that learned policies have to beat, bounds.

Each module of this package has

    policies(params) -> dict[str, Policy]   the rows of every table, by name; "random" and "expert" among them
    tiers(params)    -> dict[str, Policy]   what collects the offline data of a quality tier; "expert" among them

An environment that a user adds brings the same two functions in the file of its factory.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from networld_envs.types import Policy

EXPERTS = ("cbf", "rb", "ns")


def _module(task: str) -> Any:
    """The module with the task's policies: one of this package, or the file that defines a user's environment."""
    if task in EXPERTS:
        return importlib.import_module(f"{__name__}.{task}")
    from networld_envs import ENVIRONMENTS  # here, since that package imports the environments

    if task not in ENVIRONMENTS:
        raise ValueError(f"no experts for task {task!r}; choose one of {sorted(ENVIRONMENTS)}")
    module = sys.modules[ENVIRONMENTS[task].__module__]
    for name in ("policies", "tiers"):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"no experts for task {task!r}; define {name}(params) in {module.__name__}")
    return module


def policies(task: str, params: Any) -> dict[str, Policy]:
    """Rules, experts and bounds of a task. Raises ValueError for an unknown task."""
    return _module(task).policies(params)


def tiers(task: str, params: Any) -> dict[str, Policy]:
    """Data-collecting policies of a task: "expert", "medium", "mixed", "noisy_expert", ... Raises ValueError for an
    unknown task."""
    return _module(task).tiers(params)
