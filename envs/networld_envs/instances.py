"""Frozen, disjoint ranges of random instances, so that every method sees the same networks and nobody tunes on the
test.

Instance i of a range is `fold_in(key(range), i)`. A range is a (task, split) pair; the numbers below never change.
"""

from __future__ import annotations

import zlib

import jax

KEY_RANGES = {"data": 0, "train_eval": 1, "validation": 2, "test": 3}
_ROOT_SEED = 260200558  # the paper's arXiv number


def range_key(task: str, split: str) -> jax.Array:
    """The key of a range. Raises ValueError for an unknown split."""
    if split not in KEY_RANGES:
        raise ValueError(f"split must be one of {sorted(KEY_RANGES)}, got {split!r}")
    task_key = jax.random.fold_in(jax.random.key(_ROOT_SEED), zlib.crc32(task.encode()))
    return jax.random.fold_in(task_key, KEY_RANGES[split])


def instance_keys(task: str, split: str, num_instances: int, first: int = 0) -> jax.Array:
    """Keys [num_instances] of instances first, first + 1, ... of a range."""
    key = range_key(task, split)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jax.numpy.arange(num_instances))
