"""1-D convolutions over the time axis of x [..., L, C], with any number of leading axes.

Three equal implementations behind `conv1d`, which picks one by backend and shape. On accelerators it is `lax.conv` in
the layout [batch, time, channel]. On CPU XLA's own convolution falls to a naive loop when the input is shorter than the
kernel, as it is at the deepest level of a U-Net (12x slower forward pass); there a convolution is one matrix product of
its windows, or, where much of the windows would be padding, one product per output without the padding.

Sums are kept in at least float32 whatever the type of x.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Padding = int | tuple[int, int]

# On CPU: from this share of products with padding on, leaving them out pays for the smaller matrix products. Measured
# on whole guided samplers (`experiments.benchmark --suite=sampler`): 1/8 takes in lengths up to 8 for width 5.
TRIM_SHARE = 0.125


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
    convolve = fastest(jax.default_backend(), x.shape[-2], kernel.shape[0], stride, (before, after))
    return convolve(x, kernel, stride, (before, after))


def fastest(
    backend: str, length: int, width: int, stride: int, padding: tuple[int, int]
) -> Callable[[jax.Array, jax.Array, int, tuple[int, int]], jax.Array]:
    """The implementation `conv1d` takes for an input of `length` on `backend` ("cpu", "gpu", "tpu")."""
    if backend != "cpu":
        return conv1d_lax
    windows = _windows(length, width, stride, padding)
    padded = sum(width - (high - low) for _, low, high in windows)
    return conv1d_trimmed if padded >= TRIM_SHARE * width * len(windows) else conv1d_im2col


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
