"""Networks over a window: temporal U-Net and return classifier.

Every trajectory is treated on its own: no statistic, hence no information, crosses a leading axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from networld_jax.convolutions import conv1d, conv1d_transpose

NUM_GROUPS = 8  # of every GroupNorm


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which blocks a temporal U-Net consists of; one level per entry of mults."""

    blocks_per_level: int
    downsample_last: bool  # halve the length after the deepest level too
    num_mid_blocks: int
    top_skip: bool  # does the up path use the skip of the full-resolution level

    def num_downsamples(self, mults: Sequence[int]) -> int:
        return len(mults) - (not self.downsample_last)


LAYOUTS = {
    # Janner et al. 2022: 16 blocks at 4 levels; the full-resolution skip is computed there but never used.
    "diffuser": Layout(blocks_per_level=2, downsample_last=False, num_mid_blocks=2, top_skip=False),
    # NetWorld: 8 blocks, 4 down and 4 up, at 4 levels; every skip used.
    "networld": Layout(blocks_per_level=1, downsample_last=True, num_mid_blocks=0, top_skip=True),
}


def get_layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {sorted(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def check_horizon(horizon: int, layout: str, mults: Sequence[int]) -> None:
    """Raises ValueError unless the U-Net can halve the horizon as often as it must."""
    factor = 2 ** get_layout(layout).num_downsamples(mults)
    if horizon < 1 or horizon % factor:
        raise ValueError(f"horizon must be divisible by {factor}, got {horizon}")


def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)) with a single exponential: x n / (n + 2), n = e^x (e^x + 2)."""
    exponential = jnp.exp(jnp.minimum(x, 20.0))  # beyond 20 the ratio is 1 to float precision
    n = exponential * (exponential + 2)
    return x * (n / (n + 2))


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-5) -> jax.Array:
    """GroupNorm of x [..., L, C] over time and the channels of each of 8 groups, never over a leading axis.

    Biased variance; scale and bias [C]. Statistics in at least float32.
    """
    channels = x.shape[-1]
    if channels % NUM_GROUPS:
        raise ValueError(f"channels must be divisible by {NUM_GROUPS} (GroupNorm groups), got {channels}; change width")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def group_mean(values):
        """Over time first, which leaves channels side by side and vectorises (4x faster on CPU than both at once)."""
        sums = values.sum(-2).reshape(*x.shape[:-2], NUM_GROUPS, channels // NUM_GROUPS).sum(-1, keepdims=True)
        means = sums / (x.shape[-2] * channels // NUM_GROUPS)
        return jnp.broadcast_to(means, (*means.shape[:-1], channels // NUM_GROUPS)).reshape(*x.shape[:-2], 1, channels)

    centred = wide - group_mean(wide)
    normalised = centred * jax.lax.rsqrt(group_mean(jnp.square(centred)) + eps)
    scale, bias = (jnp.expand_dims(p, range(x.ndim - 1)) for p in (scale, bias))
    return normalised.astype(x.dtype) * scale + bias


def sinusoidal_embedding(k: jax.Array, dim: int) -> jax.Array:
    """[sin(k f), cos(k f)] with dim/2 frequencies f_i = 10000^(-i / (dim/2 - 1)): k [...] -> [..., dim]."""
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = k[..., None].astype(jnp.float32) * jnp.expand_dims(frequencies, range(k.ndim))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Conv(nn.Module):
    """Convolution over time, x [..., L, Cin] -> [..., L', features]."""

    features: int
    kernel_size: int
    stride: int = 1
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return conv1d(x, _as(kernel, x), self.stride) + jnp.expand_dims(_as(bias, x), range(x.ndim - 1))


class Upsample(nn.Module):
    """Transposed convolution of width 4 and stride 2: x [..., L, C] -> [..., 2L, C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, x.shape[-1], x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return conv1d_transpose(x, _as(kernel, x)) + jnp.expand_dims(_as(bias, x), range(x.ndim - 1))


class ConvBlock(nn.Module):
    """Convolution, GroupNorm, Mish."""

    features: int
    kernel_size: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(self.features, self.kernel_size, name="conv")(x)
        scale = self.param("gn_scale", nn.initializers.ones, (self.features,))
        bias = self.param("gn_bias", nn.initializers.zeros, (self.features,))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return mish(group_norm(wide, scale, bias)).astype(jnp.promote_types(x.dtype, _as(scale, x).dtype))


class ResidualBlock(nn.Module):
    """Two ConvBlocks with a skip; the embedding is added after the first, the same at every time step."""

    features: int
    kernel_size: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = ConvBlock(self.features, self.kernel_size, name="block0")(x)
        h = h + _as(nn.Dense(self.features, name="time")(mish(embedding)), h)[..., None, :]
        h = ConvBlock(self.features, self.kernel_size, name="block1")(h)
        return h + (x if x.shape[-1] == self.features else Conv(self.features, 1, name="res")(x))


class TimeMLP(nn.Module):
    """Diffusion step k [...] -> embedding [..., dim]."""

    dim: int

    @nn.compact
    def __call__(self, k: jax.Array) -> jax.Array:
        hidden = mish(nn.Dense(4 * self.dim, name="fc0")(sinusoidal_embedding(k, self.dim)))
        return nn.Dense(self.dim, name="fc1")(hidden)


class ConditionMLP(nn.Module):
    """Condition [..., F] (a return to reach) -> embedding [..., dim], zero where `keep` [...] is 0."""

    dim: int

    @nn.compact
    def __call__(self, condition: jax.Array, keep: jax.Array) -> jax.Array:
        hidden = mish(nn.Dense(self.dim, name="fc0")(condition))
        hidden = mish(nn.Dense(4 * self.dim, name="fc1")(hidden))
        return nn.Dense(self.dim, name="fc2")(hidden) * keep[..., None]


def _embed(
    k: jax.Array,
    task_index: jax.Array | None,
    dim: int,
    num_tasks: int,
    condition: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Embedding of the diffusion step, and of a condition and the task if there are any, side by side."""
    embedding = TimeMLP(dim, name="time_mlp")(k)
    if condition is not None:
        embedding = jnp.concatenate([embedding, ConditionMLP(dim, name="condition_mlp")(*condition)], axis=-1)
    if num_tasks == 0:
        return embedding
    if task_index is None:
        raise ValueError(f"task_index is required: the network was built for num_tasks={num_tasks}")
    task_index = jnp.broadcast_to(task_index, k.shape)
    table = nn.Embed(num_tasks, dim, embedding_init=nn.initializers.normal(1.0), name="task_embedding")
    return jnp.concatenate([embedding, table(task_index)], axis=-1)


def _down_path(
    x: jax.Array, embedding: jax.Array, widths: Sequence[int], layout: Layout, downsample_last: bool
) -> tuple[jax.Array, list[jax.Array]]:
    """Residual blocks and halvings; returns the deepest features and the skip of every level."""
    skips = []
    for i, width in enumerate(widths):
        for b in range(layout.blocks_per_level):
            x = ResidualBlock(width, name=f"down{i}_{b}")(x, embedding)
        skips.append(x)
        if i < len(widths) - 1 or downsample_last:
            x = Conv(width, 3, stride=2, name=f"down{i}_ds")(x)
    return x, skips


def _up_path(
    x: jax.Array, skips: Sequence[jax.Array], embedding: jax.Array, widths: Sequence[int], layout: Layout
) -> jax.Array:
    """Mirror of the down path: per level doubling, skip, residual blocks. Numbered from the deepest."""
    num_upsamples = 0
    for j, i in enumerate(reversed(range(len(widths)))):
        if x.shape[-2] != skips[i].shape[-2]:
            x = Upsample(name=f"up{num_upsamples}_us")(x)
            num_upsamples += 1
        if i == 0 and not layout.top_skip:
            return x
        x = jnp.concatenate([x, skips[i]], axis=-1)
        for b in range(layout.blocks_per_level):
            x = ResidualBlock(widths[max(i - 1, 0)], name=f"up{j}_{b}")(x, embedding)
    return x


class TemporalUNet(nn.Module):
    """Denoiser: x [..., H, C], k [...] -> [..., H, C], a prediction of x0 or of the noise.

    The last convolution starts at zero, so an untrained denoiser predicts 0, the mean of standardised data.
    """

    out_channels: int  # C
    width: int = 32  # channels of level i are width * mults[i]; divisible by 8
    mults: tuple[int, ...] = (1, 2, 4, 8)
    layout: str = "networld"
    num_tasks: int = 0  # rows of the task embedding; 0: no task index
    compute_dtype: DTypeLike | None = None  # of convolutions and activations, e.g. bfloat16; None = that of x

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        k: jax.Array,
        task_index: jax.Array | None = None,
        return_features: bool = False,
        condition: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Denoises.

        Args:
          x: [..., H, C].
          k: diffusion step, int32, one per trajectory: x.shape[:-2].
          task_index: int32, scalar or like k.
          return_features: also return (deepest features [..., L, W], embedding [..., E]) of the down path, to which a
            `ReturnHead` can be attached: one trunk for denoiser and classifier.
          condition: (values [..., F], keep [...]): enters like the diffusion step; keep = 0 is unconditional.

        Raises:
          ValueError: a horizon that cannot be halved often enough, widths not divisible by 8.
        """
        _check_inputs(x, k, self.out_channels)
        layout = get_layout(self.layout)
        check_horizon(x.shape[-2], self.layout, self.mults)
        dtype_out, x = x.dtype, x if self.compute_dtype is None else x.astype(self.compute_dtype)
        widths = [self.width * m for m in self.mults]
        embedding = _embed(k, task_index, self.width, self.num_tasks, condition)
        deepest, skips = _down_path(x, embedding, widths, layout, layout.downsample_last)
        h = deepest
        for b in range(layout.num_mid_blocks):
            h = ResidualBlock(widths[-1], name=f"mid{b}")(h, embedding)
        h = _up_path(h, skips, embedding, widths, layout)
        h = ConvBlock(self.width, name="final_block")(h)
        out = Conv(self.out_channels, 1, kernel_init=nn.initializers.zeros, name="final_conv")(h)
        out = out.astype(jnp.promote_types(out.dtype, dtype_out))
        return (out, (deepest.astype(out.dtype), embedding)) if return_features else out


class ReturnHead(nn.Module):
    """Deepest features [..., L, W] and embedding [..., E] -> [..., num_outputs]: linear, zero at the start."""

    num_outputs: int = 1

    @nn.compact
    def __call__(self, features: jax.Array, embedding: jax.Array) -> jax.Array:
        flat = jnp.concatenate([_flatten(features), embedding], axis=-1)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="fc0")(flat)


class ReturnClassifier(nn.Module):
    """Return of a noised trajectory: x [..., H, C], k [...] -> [..., num_outputs], standardised values or bin logits.

    Layout "networld": the down path of the U-Net with weights of its own, then a `ReturnHead`. Layout "diffuser": two
    more narrowing blocks and a hidden layer (Janner et al. 2022). Both halve the length after every level, and accept
    any horizon.
    """

    width: int = 32
    mults: tuple[int, ...] = (1, 2, 4, 8)
    layout: str = "networld"
    num_tasks: int = 0
    num_outputs: int = 1  # scalars (1, or several returns at once), or M logits over bins
    compute_dtype: DTypeLike | None = None  # of convolutions and activations, e.g. bfloat16; None = that of x

    @nn.compact
    def __call__(self, x: jax.Array, k: jax.Array, task_index: jax.Array | None = None) -> jax.Array:
        """Arguments as in `TemporalUNet`."""
        _check_inputs(x, k)
        layout = get_layout(self.layout)
        dtype_out, x = x.dtype, x if self.compute_dtype is None else x.astype(self.compute_dtype)
        widths = [self.width * m for m in self.mults]
        embedding = _embed(k, task_index, self.width, self.num_tasks)
        x, _ = _down_path(x, embedding, widths, layout, downsample_last=True)
        if layout.num_mid_blocks == 0:
            return ReturnHead(self.num_outputs, name="head")(x.astype(dtype_out), embedding)
        for b in range(layout.num_mid_blocks):
            width = widths[-1] // 2 ** (b + 1)
            x = ResidualBlock(width, name=f"mid{b}")(x, embedding)
            x = Conv(width, 3, stride=2, name=f"mid{b}_ds")(x)
        flat = _flatten(x.astype(dtype_out))
        hidden = jnp.concatenate([flat, embedding], axis=-1)
        hidden = mish(nn.Dense(flat.shape[-1] // 2, name="fc0")(hidden))
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="fc1")(hidden)


def _as(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """The parameter in the type of x where that is a half-precision one; weights themselves stay float32."""
    return parameter.astype(x.dtype) if x.dtype in (jnp.bfloat16, jnp.float16) else parameter


def _flatten(x: jax.Array) -> jax.Array:
    """[..., L, W] -> [..., W L], channel outer and time inner."""
    return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], -1)


def _check_inputs(x: jax.Array, k: jax.Array, channels: int | None = None) -> None:
    if k.shape != x.shape[:-2]:
        raise ValueError(f"k must have one diffusion step per trajectory, shape {x.shape[:-2]}, got {k.shape}")
    if channels is not None:
        chex.assert_axis_dimension(x, -1, channels)
