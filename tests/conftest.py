"""Strict flags for every test; warnings are errors (pyproject)."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")


@pytest.fixture(autouse=True)
def strict_keys():
    """Using one key twice is an error in every test."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture(scope="module")
def quick_compile():
    """For modules that compile much and compute little: XLA's costly passes are off."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
