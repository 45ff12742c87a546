"""The contract every baseline keeps, and the settings all of them share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from networld_envs.types import Policy
from networld_jax.labels import LABELS
from networld_jax.types import TrainState, require_message_bits


class Baseline(NamedTuple):
    """A baseline as pure functions; one file each, readable top to bottom.

    Training, start to end: `data, stats = prepare(trajectories, stats)` once, on the host, from training data only;
    `state = init(key, stats)`; then, inside one scan, `update(key, state, sample(key, data, stats), stats)`. The policy
    acts with `PolicyParams(state.ema_params, stats)`.
    """

    prepare: Callable[..., tuple[Any, Any]]  # (trajectories, stats) -> (data, stats)
    init: Callable[..., TrainState]  # (key, stats) -> state
    sample: Callable[..., Any]  # (key, data, stats) -> batch, on the device
    update: Callable[..., tuple[TrainState, dict]]  # (key, state, batch, stats) -> (state, metrics)
    policy: Policy  # acts with PolicyParams(state.ema_params, stats)


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """What every baseline has in common. Hashable; a method's own fields follow in its subclass."""

    use_mean_field: bool = False  # hear the 1-hop mean of the neighbours' observations ("own+mf"), or not ("own")
    message_bits: int = 4  # quantisation of every entry of a message, as the planner's; 0 = float32
    message_range: float = 3.0  # entries beyond +- this many standard deviations are clipped in messages
    hidden: tuple[int, ...] = (256, 256)  # layers of every multi-layer perceptron
    batch_size: int = 1024  # agent transitions per update (agent sequences for methods that learn from sequences)
    learning_rate: float = 1e-3
    num_updates: int = 2000  # length of every schedule
    ema_decay: float = 0.995  # of the weights that act
    weight_decay: float = 0.0  # of what acts: kernels shrink by learning_rate * weight_decay per update

    def __post_init__(self):
        require(self, 1, float("inf"), "batch_size", "num_updates")
        require(self, 0.0, 1.0, "ema_decay")
        require(self, 0.0, float("inf"), "weight_decay")
        require(self, 0, 32, "message_bits")
        require_positive(self, "learning_rate", "message_range")
        require_message_bits(self.message_bits)


@dataclasses.dataclass(frozen=True)
class RewardConfig(BaselineConfig):
    """Methods that read rewards."""

    label: str = "own"  # whose reward: "own", or every agent's spread over its closed neighbourhood ("neighbourhood")

    def __post_init__(self):
        super().__post_init__()
        if self.label not in LABELS:
            raise ValueError(f"label must be one of {sorted(LABELS)}, got {self.label!r}")


@dataclasses.dataclass(frozen=True)
class DiscountConfig(RewardConfig):
    """Methods that discount them."""

    discount: float = 0.95  # per environment step

    def __post_init__(self):
        super().__post_init__()
        require(self, 0.0, 1.0, "discount")


def require(config: Any, low: float, high: float, *names: str) -> None:
    """Raises ValueError unless the named fields lie in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{type(config).__name__}.{name} must lie in [{low}, {high}], got {value}")


def require_positive(config: Any, *names: str) -> None:
    """Raises ValueError unless the named fields are above zero."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ValueError(f"{type(config).__name__}.{name} must be positive, got {value}")
