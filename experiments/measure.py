"""Timing that holds on a shared machine: variants interleaved, every call waited for, trace, compile and run apart."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


class Program(NamedTuple):
    """A compiled function, and what getting there took."""

    call: Callable[..., Any]
    trace_s: float  # Python to jaxpr
    compile_s: float  # jaxpr to machine code, without the persistent cache
    memory_bytes: int  # arguments, results and temporaries that are alive at once, as XLA laid them out


class Times(NamedTuple):
    """Seconds per call of one variant."""

    seconds: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.seconds, 95))


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Compilations inside are not taken from, nor put into, XLA's persistent cache."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def compiled(fn: Callable[..., Any], *args: Any, **jit_options: Any) -> Program:
    """`fn` compiled for these arguments, ahead of any call."""
    with without_cache():
        started = time.perf_counter()
        traced = jax.jit(fn, **jit_options).trace(*args)
        traced_at = time.perf_counter()
        program = traced.lower().compile()
        done = time.perf_counter()
    memory = program.memory_analysis()
    num_bytes = 0
    if memory is not None:
        num_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        num_bytes -= memory.alias_size_in_bytes
    return Program(program, traced_at - started, done - traced_at, num_bytes)


def interleaved(
    calls: Mapping[str, Callable[[], Any]], seconds: float, min_rounds: int = 5, max_rounds: int = 1000
) -> dict[str, Times]:
    """Times of variants called in turn, one call each per round, every round in another random order.

    What else runs on the machine then hits all of them alike: one after the other the same two programs have shown a
    ratio of 0.49 where in turn it was 1.03. Nor does a variant always follow the same one: who came after a large
    matrix product, whose data had filled the caches, looked 2.6 times as slow as it is. One warm-up round is not
    counted.

    Args:
      calls: name -> call without arguments; its arrays are waited for.
      seconds: rounds go on for about this long.
      min_rounds, max_rounds: but at least and at most so many.
    """
    names = list(calls)
    for call in calls.values():
        jax.block_until_ready(call())
    taken: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    started, rounds = time.perf_counter(), 0
    while rounds < min_rounds or (time.perf_counter() - started < seconds and rounds < max_rounds):
        for name in order.permutation(names):
            begin = time.perf_counter()
            jax.block_until_ready(calls[name]())
            taken[name].append(time.perf_counter() - begin)
        rounds += 1
    return {name: Times(np.array(values)) for name, values in taken.items()}


class Peaks(NamedTuple):
    """What this machine does at best, measured."""

    matmul_flops_per_s: float
    memory_bytes_per_s: float


def peak_calls(dtype: Any = jnp.float32) -> dict[str, tuple[Callable[[], Any], float]]:
    """{"matmul": (call, FLOPs), "memory": (call, bytes)} to be timed among the variants they are compared with."""
    size = 1536 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    long = jnp.ones((64 if jax.default_backend() == "cpu" else 1024) * 2**18, jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    add = jax.jit(lambda x: x + 1.0)
    return {
        "matmul": (lambda: multiply(matrix), 2.0 * size**3),
        "memory": (lambda: add(long), 2.0 * long.nbytes),
    }


def measure_peaks(seconds: float = 2.0, dtype: Any = jnp.float32) -> Peaks:
    """Best rates seen of a large matrix product and of a large addition (one read and one write per entry)."""
    calls = peak_calls(dtype)
    times = interleaved({name: call for name, (call, _) in calls.items()}, seconds)
    rates = {name: amount / times[name].seconds.min() for name, (_, amount) in calls.items()}
    return Peaks(rates["matmul"], rates["memory"])


def peak_memory_bytes() -> int:
    """Most memory this process held so far: on an accelerator the device's, on CPU the resident set."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES
