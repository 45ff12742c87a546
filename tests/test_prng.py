"""The fast generator draws JAX's own numbers, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_envs import prng

NAMES = ("bits", "uniform", "normal", "exponential")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,), (2, 19, 3), (1001,)])
def test_the_same_bits_as_jax(name, shape):
    keys = jax.random.split(jax.random.key(3), 4)
    ours, theirs = getattr(prng, name), getattr(jax.random, name)
    draw = jax.jit(lambda keys: (jax.vmap(lambda k: ours(k, shape))(keys), jax.vmap(lambda k: theirs(k, shape))(keys)))
    fast, slow = draw(jax.random.clone(keys))
    np.testing.assert_array_equal(fast, slow)
    assert fast.dtype == slow.dtype and len(np.unique(fast)) > 0.9 * fast.size


def test_the_bounds_of_a_uniform():
    theirs = lambda key: jax.random.uniform(key, (500,), minval=-2, maxval=3)  # noqa: E731
    draw = jax.jit(lambda key: (prng.uniform(key, (500,), -2.0, 3.0), theirs(key)))
    np.testing.assert_array_equal(*draw(jax.random.key(0)))


def test_other_types_and_generators_are_left_to_jax():
    key, other = jax.random.key(0), jax.random.key(0, impl="rbg")
    with jax.enable_x64(True):
        double = prng.normal(key, (3,))
        assert double.dtype == jnp.float64
        np.testing.assert_array_equal(double, jax.random.normal(jax.random.clone(key), (3,)))
    np.testing.assert_array_equal(prng.bits(other, (5,)), jax.random.bits(jax.random.clone(other), (5,)))
