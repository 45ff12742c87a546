"""Rows as the queue writes them, with known means."""

import numpy as np

from experiments import runs
from experiments.configs import evidence as configuration

INSTANCES = 16
SHARED = np.random.default_rng(0).normal(size=INSTANCES)  # networks are easy or hard for every method alike


def row(method, reward, *, task="rb", tier="mixed", seed=0, size=10_000, **fields):
    """A row whose mean reward is `reward` up to a little noise of the seed."""
    rng = np.random.default_rng([seed, *method.encode()])
    values = reward + SHARED - SHARED.mean() + 0.01 * rng.normal(size=INSTANCES)
    is_rule = tier == "none"
    label = "none" if is_rule or method == "ma_bc" else "neighbourhood"
    start = dict(
        task=task, tier=tier, method=method, seed=seed, preset="small", split="test", updates=0 if is_rule else 1000,
        target_transitions=0 if is_rule else size, target_topologies=0 if is_rule else max(1, size // 250),
        pretrain=None, obs_set="none" if is_rule else "own+mf", label=label,
        settings={}, tuning_trials=0, message_bytes=0, instance_rewards=values.tolist(),
        reward=float(values.mean()), score=0.0, metrics={}, seconds=10.0, device="a device",
        versions={"jax": "1.2.3"}, command="python -m experiments.queue ...",
    )  # fmt: skip
    return start | fields


def seeds(method, reward, **fields):
    return [row(method, reward, seed=seed, **fields) for seed in range(3)]


def validated(method, reward, **fields):
    """A row on validation instances with the settings that the queue gives a method."""
    run = runs.Run("rb", "mixed", method, "own+mf", "neighbourhood")
    _, start = runs.row_start(configuration.get_config(), run)
    return row(method, reward, **({"split": "validation", "settings": start["settings"]} | fields))


def few_shot(method, reward, **fields):
    return seeds(method, reward, size=1000, **fields)
