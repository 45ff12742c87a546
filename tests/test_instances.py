"""Frozen instance ranges: disjoint, reproducible, extendable."""

import itertools

import jax
import numpy as np
import pytest

from networld_envs.instances import KEY_RANGES, instance_keys, range_key


def as_rows(keys):
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys))]


def test_ranges_are_disjoint():
    """No key of any (task, split) range occurs in another, nor twice in its own."""
    rows = [as_rows(instance_keys(t, s, 500)) for t, s in itertools.product(("cbf", "rb", "ns"), KEY_RANGES)]
    every = list(itertools.chain.from_iterable(rows))
    assert len(every) == 3 * 4 * 500
    assert len(set(every)) == len(every)


def test_instance_does_not_depend_on_how_many_are_asked_for():
    many = as_rows(instance_keys("rb", "test", 20))
    assert as_rows(instance_keys("rb", "test", 5)) == many[:5]
    assert as_rows(instance_keys("rb", "test", 5, first=12)) == many[12:17]
    single = jax.random.fold_in(range_key("rb", "test"), 3)
    assert tuple(np.asarray(jax.random.key_data(single))) == many[3]


def test_unknown_split_lists_the_choices():
    with pytest.raises(ValueError, match="split must be one of"):
        instance_keys("rb", "tests", 1)
