"""What a function costs, counted from its traced program: exact, on any backend, without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def matmul_flops(fn: Callable, *args: Any) -> int:
    """Floating-point operations of all matrix products and convolutions in one call of `fn`.

    A multiply-add counts as two. Loops with a known number of iterations count that often, `while` loops once, of the
    branches of a `cond` the dearest. Elementwise work is not counted.

    Args:
      fn: any traceable function, for example a denoiser or a whole planner.
      *args: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def num_parameters(params: Any) -> int:
    """Numbers in all arrays (or shapes) of a pytree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
        return 2 * summed * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        num_out = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(kernel) // num_out * math.prod(equation.outvars[0].aval.shape)
    inner = [_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part
