"""The contract every model-free baseline keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from networld_envs.types import Policy


class Baseline(NamedTuple):
    """A baseline as pure functions; one file each, readable top to bottom."""

    init: Callable[..., Any]  # (key, stats) -> state
    update: Callable[..., tuple[Any, dict]]  # (key, state, batch, stats) -> (state, metrics)
    policy: Policy  # acts with PolicyParams(params, stats)
