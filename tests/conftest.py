"""Strict flags for every test; warnings are errors (pyproject). Most of the suite's time is compilation: XLA's costly
passes are off, its older emitters compile in two thirds of the time (the programs are slower, which small tests do not
feel), and compiled programs are kept in .jax_cache/tests for the next run."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    ("--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1", os.environ.get("XLA_FLAGS", ""))
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).resolve().parent.parent / ".jax_cache/tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True)
def strict_keys():
    """Using one key twice is an error in every test."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def full_compile():
    """With XLA's every pass: for tests that compare the bits of two programs, or compute for long."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
