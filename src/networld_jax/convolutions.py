"""1-D convolutions over the time axis of x [..., L, C], with any number of leading axes.

Two equal implementations. On CPU a convolution is written as one matrix product of its windows: XLA's own falls to a
naive loop when the input is shorter than the kernel, as it is at the deepest level of a U-Net (12x slower forward
pass). On accelerators it is `lax.conv` in the layout [batch, time, channel].
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Padding = int | tuple[int, int]


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
        return x @ kernel[0]
    convolve = conv1d_im2col if jax.default_backend() == "cpu" else conv1d_lax
    return convolve(x, kernel, stride, (before, after))


def conv1d_im2col(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """`conv1d` as one matrix product over windows laid side by side."""
    width, _, num_out = kernel.shape
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [padding, (0, 0)])
    length = (x.shape[-2] - width) // stride + 1
    taps = [jax.lax.slice_in_dim(x, i, i + stride * (length - 1) + 1, stride, axis=-2) for i in range(width)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, num_out)


def conv1d_lax(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """`conv1d` through `lax.conv_general_dilated`."""
    folded = x.reshape(-1, *x.shape[-2:])
    y = jax.lax.conv_general_dilated(folded, kernel, (stride,), (padding,), dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


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
