"""How much of a behaviour follows from what an agent knows: a property of logged data.

Where actions follow from the present alone (one expert collected the data), cloning is hard to beat, and an imagined
next latent adds little but the error of whoever imagined it; where many behaviours are mixed, or an expert knew more
than the agents do, there is something to choose. What that means for the inverse model: docs/experiments.md, E15.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from networld_jax.mean_field import mean_field
from networld_jax.transforms import symlog
from networld_jax.types import Trajectories


class ActionPredictability(NamedTuple):
    """Shares of the variance of executed actions on trajectories held out, 1 = all of it."""

    from_present: float  # by (o_t, mean of the neighbours' o_t)
    with_next: float  # by these and o_{t+1}


def action_predictability(
    trajectories: Trajectories, num_features: int = 600, max_rows: int = 20_000, ridge: float = 1e-3, seed: int = 0
) -> ActionPredictability:
    """R^2 of actions given symlog observations, by ridge regression on random rectified features.

    Fitted on the first three quarters of the trajectories, tested on the others; action components count alike, those
    that never change do not count. Raises ValueError for fewer than two trajectories.
    """
    count = trajectories.reward.shape[0]
    if count < 2:
        raise ValueError(f"predictability needs at least 2 trajectories, one to test on, got {count}")
    split = min(max(1, round(0.75 * count)), count - 1)
    rng = np.random.default_rng(seed)
    fitted, tested = (_rows(trajectories, part, max_rows, rng) for part in (slice(split), slice(split, count)))
    mean, std = fitted.action.mean(0), fitted.action.std(0)
    changing = std > 1e-6 * np.maximum(np.abs(mean), 1.0)
    if not changing.any():
        return ActionPredictability(1.0, 1.0)
    targets = [((part.action - mean) / np.where(changing, std, 1.0))[:, changing] for part in (fitted, tested)]
    shares = [
        _explained(inputs, targets, num_features, ridge, rng)
        for inputs in ([fitted.present, tested.present], [fitted.both, tested.both])
    ]
    return ActionPredictability(*shares)


class _Rows(NamedTuple):
    present: np.ndarray  # [n, 2 O] own and neighbours' mean
    both: np.ndarray  # [n, 3 O] and the next own observation
    action: np.ndarray  # [n, A]


def _rows(trajectories: Trajectories, part: slice, max_rows: int, rng: np.random.Generator) -> _Rows:
    """Steps of present agents that show the behaviour, at most `max_rows`, drawn without replacement."""
    squashed = symlog(jnp.asarray(trajectories.obs[part]))
    heard = np.asarray(mean_field(squashed, jnp.asarray(trajectories.adjacency[part])[:, None]))
    obs = np.asarray(squashed)
    action = np.asarray(trajectories.action[part], np.float64)
    shown = np.asarray(trajectories.is_demonstration[part])[:, :, None]
    there = shown & (np.asarray(trajectories.agent_mask[part])[:, None] > 0)
    index = rng.permutation(np.flatnonzero(there))[:max_rows]
    flat = lambda x: x.reshape(-1, x.shape[-1])[index]  # noqa: E731
    present = np.concatenate([flat(obs[:, :-1]), flat(heard[:, :-1])], -1)
    return _Rows(present, np.concatenate([present, flat(obs[:, 1:])], -1), flat(action))


def _explained(inputs: list, targets: list, num_features: int, ridge: float, rng: np.random.Generator) -> float:
    """R^2 on the second of two parts, fitted on the first."""
    mean, std = inputs[0].mean(0), inputs[0].std(0) + 1e-6
    weight = rng.normal(size=(inputs[0].shape[1], num_features)) / np.sqrt(inputs[0].shape[1])
    bias = rng.normal(size=num_features)

    def features(x):
        x = np.clip((x - mean) / std, -6.0, 6.0)
        return np.concatenate([x, np.maximum(x @ weight + bias, 0.0), np.ones((len(x), 1))], -1)

    fitted = features(inputs[0])
    gram = fitted.T @ fitted + ridge * len(fitted) * np.eye(fitted.shape[1])
    errors = targets[1] - features(inputs[1]) @ np.linalg.solve(gram, fitted.T @ targets[0])
    return float(1.0 - np.mean(errors**2) / np.mean((targets[1] - targets[0].mean(0)) ** 2))
