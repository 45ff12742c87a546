"""1-D convolutions over the time axis of x [..., L, C], with any number of leading axes.

Equal implementations behind `conv1d`, which picks one by backend and shape. On accelerators it is `lax.conv` in the
layout [batch, time, channel]. On CPU XLA's convolution is the fastest there is for whole windows, but falls to a naive
loop when the input is shorter than the kernel, as it is at the deepest level of a U-Net (40x slower), and in its own
gradient (up to 40x). So the gradient is always that of a matrix product over windows laid side by side, and short
inputs take that product forwards too, or, for many plans, one product per output without the padding.

Sums are kept in at least float32 whatever the type of x.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Padding = int | tuple[int, int]

# On CPU, from so many plans at once on: one product per output, on unpadded windows. It packs the kernel once per
# output, which pays when the products are tall (`experiments.benchmark --suite=sampler` times all forms).
TRIM_BATCH = 64


def conv1d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | None = None) -> jax.Array:
    """Cross-correlation over time: y[l] = sum_i x[stride l + i - padding] kernel[i], zeros outside.

    Args:
      x: [..., L, Cin].
      kernel: [width, Cin, Cout].
      stride: step between windows.
      padding: zeros before and after, one number or two; width // 2 by default (same length at stride 1, odd width).

    Returns:
      y [..., (L + zeros - width) // stride + 1, Cout].
    """
    chex.assert_rank(kernel, 3)
    chex.assert_axis_dimension(x, -1, kernel.shape[1])
    before, after = _both_sides(kernel.shape[0] // 2 if padding is None else padding)
    if kernel.shape[0] == 1 and stride == 1 and before == after == 0:
        return _matmul(x, kernel[0])
    batch, length = math.prod(x.shape[:-2]), x.shape[-2]
    convolve = fastest(jax.default_backend(), batch, length, kernel.shape[0], stride)
    return convolve(x, kernel, stride, (before, after))


def fastest(
    backend: str, batch: int, length: int, width: int, stride: int
) -> Callable[[jax.Array, jax.Array, int, tuple[int, int]], jax.Array]:
    """The implementation `conv1d` takes for inputs [batch, length, ...] on `backend` ("cpu", "gpu", "tpu")."""
    if backend != "cpu":
        return conv1d_lax
    if stride == 1 and length >= width:
        return conv1d_lax_with_im2col_gradient
    return conv1d_trimmed if batch >= TRIM_BATCH else conv1d_im2col


def conv1d_im2col(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """`conv1d` as one matrix product over windows laid side by side."""
    width, _, num_out = kernel.shape
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [padding, (0, 0)])
    length = (x.shape[-2] - width) // stride + 1
    taps = [jax.lax.slice_in_dim(x, i, i + stride * (length - 1) + 1, stride, axis=-2) for i in range(width)]
    return _matmul(jnp.concatenate(taps, axis=-1), kernel.reshape(-1, num_out))


def conv1d_trimmed(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """`conv1d` without products with padding: whole windows by `conv1d_im2col`, one matrix product per cut one."""
    width, num_in, num_out = kernel.shape
    windows = _windows(x.shape[-2], width, stride, padding)
    whole = [start for start, low, high in windows if high - low == width]
    outputs = []
    for start, low, high in windows:
        if high - low < width:
            window = x[..., low:high, :].reshape(*x.shape[:-2], (high - low) * num_in)
            taps = kernel[low - start : high - start].reshape(-1, num_out)
            outputs.append(_matmul(window, taps)[..., None, :])
        elif start == whole[0]:  # whole windows are neighbours: all of them at once
            outputs.append(conv1d_im2col(x[..., start : whole[-1] + width, :], kernel, stride, (0, 0)))
    return jnp.concatenate(outputs, axis=-2)


def conv1d_lax(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """`conv1d` through `lax.conv_general_dilated`."""
    folded = x.reshape(-1, *x.shape[-2:])
    # Without preferred_element_type: a wider result has no gradient rule, and accelerators sum bfloat16 in float32.
    y = jax.lax.conv_general_dilated(folded, kernel, (stride,), (padding,), dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def conv1d_lax_with_im2col_gradient(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array:
    """`conv1d_lax` whose derivatives, forwards and backwards, are those of `conv1d_im2col`."""
    return conv1d_lax(x, kernel, stride, padding)


def _im2col_tangent(stride, padding, primals, tangents):
    x, kernel = primals
    parts = []
    if not isinstance(tangents[0], SymbolicZero):
        parts.append(conv1d_im2col(tangents[0], kernel, stride, padding))
    if not isinstance(tangents[1], SymbolicZero):
        parts.append(conv1d_im2col(x, tangents[1], stride, padding))
    out = conv1d_lax_with_im2col_gradient(x, kernel, stride, padding)
    return out, sum(parts) if parts else jnp.zeros_like(out)


conv1d_lax_with_im2col_gradient.defjvp(_im2col_tangent, symbolic_zeros=True)


def conv1d_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of width 4, stride 2, padding 1: doubles the length.

    Even and odd outputs are two ordinary convolutions of width 2, without inserted zeros:
    y[2m] = x[m] w[1] + x[m-1] w[3], y[2m+1] = x[m] w[2] + x[m+1] w[0].

    Args:
      x: [..., L, Cin].
      kernel: [4, Cin, Cout], w above.

    Returns:
      y [..., 2 L, Cout].
    """
    chex.assert_axis_dimension(kernel, 0, 4)
    even = conv1d(x, kernel[jnp.array([3, 1])], padding=(1, 0))
    odd = conv1d(x, kernel[jnp.array([2, 0])], padding=(0, 1))
    interleaved = jnp.stack([even, odd], axis=-2)  # [..., L, 2, Cout]
    return interleaved.reshape(*x.shape[:-2], 2 * x.shape[-2], kernel.shape[-1])


def _both_sides(padding: Padding) -> tuple[int, int]:
    return (padding, padding) if isinstance(padding, int) else padding


def _windows(length: int, width: int, stride: int, padding: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(start, low, high) of every output's window: it starts at `start` and covers the inputs low..high-1."""
    starts = range(-padding[0], length + padding[1] - width + 1, stride)
    return [(start, min(max(start, 0), length), max(min(start + width, length), 0)) for start in starts]


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y in the type of x, summed in at least float32."""
    wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return jnp.matmul(x, y, preferred_element_type=wide).astype(jnp.result_type(x, y))
