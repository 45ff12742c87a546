"""The same networks, guided sampler and training step in PyTorch, as one would write them there (extra "torch").

Temporal U-Net and value network of Diffuser (Janner et al. 2022) and of NetWorld's layout, channels first, eager mode,
gradients by autograd; CPU and CUDA. Weights are copied from a JAX parameter tree (`load_params`), so outputs can be
compared before anything is timed. No task embedding: the published networks have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from networld_jax.networks import get_layout

GROUPS = 8


class SinusoidalEmbedding(nn.Module):
    """[sin(k f), cos(k f)], f_i = 10000^(-i / (dim/2 - 1))."""

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        self.register_buffer("frequencies", torch.exp(-np.log(10000.0) / (half - 1) * torch.arange(half).float()))

    def forward(self, k: torch.Tensor) -> torch.Tensor:
        angles = k[:, None].float() * self.frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeMLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.embedding = SinusoidalEmbedding(dim)
        self.fc0, self.fc1 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, k: torch.Tensor) -> torch.Tensor:
        return self.fc1(nn.functional.mish(self.fc0(self.embedding(k))))


class ConvBlock(nn.Module):
    """Convolution, GroupNorm, Mish; x [B, C, L]."""

    def __init__(self, num_in: int, num_out: int, kernel_size: int = 5):
        super().__init__()
        self.conv = nn.Conv1d(num_in, num_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(GROUPS, num_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.mish(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int, dim: int):
        super().__init__()
        self.block0, self.block1 = ConvBlock(num_in, num_out), ConvBlock(num_out, num_out)
        self.time = nn.Linear(dim, num_out)
        self.res = nn.Conv1d(num_in, num_out, 1) if num_in != num_out else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.block0(x) + self.time(nn.functional.mish(embedding))[:, :, None]
        return self.block1(h) + self.res(x)


def halving(channels: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, 3, stride=2, padding=1)


class DownPath(nn.Module):
    """Levels of residual blocks and halvings; modules are named as in the JAX parameter tree."""

    def __init__(self, num_in: int, widths: Sequence[int], dim: int, blocks_per_level: int, downsample_last: bool):
        super().__init__()
        self.levels: list[tuple[list[str], str | None]] = []
        for i, width in enumerate(widths):
            names = []
            for b in range(blocks_per_level):
                self.add_module(f"down{i}_{b}", ResidualBlock(num_in, width, dim))
                names.append(f"down{i}_{b}")
                num_in = width
            halve = f"down{i}_ds" if i < len(widths) - 1 or downsample_last else None
            if halve:
                self.add_module(halve, halving(width))
            self.levels.append((names, halve))

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for names, halve in self.levels:
            for name in names:
                x = getattr(self, name)(x, embedding)
            skips.append(x)
            if halve:
                x = getattr(self, halve)(x)
        return x, skips


class TemporalUNet(nn.Module):
    """Denoiser: x [B, H, C], k [B] -> [B, H, C]."""

    def __init__(self, channels: int, width: int = 32, mults: Sequence[int] = (1, 2, 4, 8), layout: str = "diffuser"):
        super().__init__()
        form = get_layout(layout)
        widths = [width * m for m in mults]
        self.time_mlp = TimeMLP(width)
        self.down = DownPath(channels, widths, width, form.blocks_per_level, form.downsample_last)
        self.mid = nn.ModuleList(ResidualBlock(widths[-1], widths[-1], width) for _ in range(form.num_mid_blocks))
        self.up_names: list[tuple[str | None, list[str]]] = []
        num_in, num_upsamples, halved = widths[-1], 0, form.num_downsamples(mults)
        for j, i in enumerate(reversed(range(len(widths)))):
            double = None
            if i < halved:
                double, num_upsamples = f"up{num_upsamples}_us", num_upsamples + 1
                self.add_module(double, nn.ConvTranspose1d(num_in, num_in, 4, stride=2, padding=1))
            if i == 0 and not form.top_skip:
                self.up_names.append((double, []))
                break
            names, num_in = [], num_in + widths[i]
            for b in range(form.blocks_per_level):
                out = widths[max(i - 1, 0)]
                self.add_module(f"up{j}_{b}", ResidualBlock(num_in, out, width))
                names.append(f"up{j}_{b}")
                num_in = out
            self.up_names.append((double, names))
        self.final_block = ConvBlock(num_in, width)
        self.final_conv = nn.Conv1d(width, channels, 1)

    def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        embedding = self.time_mlp(k)
        h, skips = self.down(x.transpose(1, 2), embedding)
        for block in self.mid:
            h = block(h, embedding)
        for (double, names), skip in zip(self.up_names, reversed(skips)):
            if double:
                h = getattr(self, double)(h)
            if names:
                h = torch.cat([h, skip], dim=1)
            for name in names:
                h = getattr(self, name)(h, embedding)
        return self.final_conv(self.final_block(h)).transpose(1, 2)


class ReturnClassifier(nn.Module):
    """Return of a noised trajectory: x [B, H, C], k [B] -> [B]."""

    def __init__(
        self, channels: int, horizon: int, width: int = 32, mults: Sequence[int] = (1, 2, 4, 8), layout="diffuser"
    ):
        super().__init__()
        form = get_layout(layout)
        widths = [width * m for m in mults]
        self.time_mlp = TimeMLP(width)
        self.down = DownPath(channels, widths, width, form.blocks_per_level, downsample_last=True)
        self.mid, self.mid_ds = nn.ModuleList(), nn.ModuleList()
        length, num_in = horizon, widths[-1]
        for _ in widths:
            length = -(-length // 2)
        for b in range(form.num_mid_blocks):
            out = widths[-1] // 2 ** (b + 1)
            self.mid.append(ResidualBlock(num_in, out, width))
            self.mid_ds.append(halving(out))
            length, num_in = -(-length // 2), out
        flat = length * num_in
        hidden = [flat // 2] if form.num_mid_blocks else []
        sizes = [flat + width, *hidden, 1]
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        embedding = self.time_mlp(k)
        h, _ = self.down(x.transpose(1, 2), embedding)
        for block, halve in zip(self.mid, self.mid_ds):
            h = halve(block(h, embedding))
        h = torch.cat([h.flatten(1), embedding], dim=-1)
        for layer in self.head[:-1]:
            h = nn.functional.mish(layer(h))
        return self.head[-1](h)[:, 0]


# ---------------------------------------------------------------------------------------------------- weights


def _torch_name(path: str) -> str:
    """Name of a parameter of the JAX tree ("down0_0/block0/conv/kernel") in the modules above."""
    *modules, leaf = path.split("/")
    first, rest = modules[0], modules[1:]
    if leaf in ("gn_scale", "gn_bias"):
        rest, leaf = [*rest, "norm"], {"gn_scale": "weight", "gn_bias": "bias"}[leaf]
    leaf = {"kernel": "weight"}.get(leaf, leaf)
    if first.startswith("down"):
        return ".".join(["down", first, *rest, leaf])
    if first.startswith("mid"):
        index, halves, _ = first.removeprefix("mid").partition("_ds")
        return ".".join(["mid_ds" if halves else "mid", index, *rest, leaf])
    if first in ("fc0", "fc1"):
        return f"head.{first[2]}.{leaf}"
    if first == "head":
        return f"head.0.{leaf}"
    return ".".join([first, *rest, leaf])


def _torch_layout(path: str, value: np.ndarray) -> np.ndarray:
    """[width, in, out] kernels to torch's order; dense kernels transposed."""
    if not path.endswith("kernel"):
        return value
    if value.ndim == 2:
        return value.T
    return value.transpose(1, 2, 0) if "_us/" in path else value.transpose(2, 1, 0)


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """{path: array} of a nested parameter tree."""
    result = {}
    for name, value in params.items():
        result |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: np.asarray(value)}
    return result


def load_params(module: nn.Module, params: Mapping[str, Any]) -> nn.Module:
    """Copies a JAX parameter tree into a module; every weight of either side must find its partner."""
    state = {_torch_name(path): torch.tensor(_torch_layout(path, value)) for path, value in flat(params).items()}
    missing = {name for name, _ in module.named_parameters()} ^ set(state)
    if missing:
        raise ValueError(f"parameters without a partner: {sorted(missing)}")
    module.load_state_dict(state, strict=False)
    return module


def gradients_by_path(module: nn.Module, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The module's gradients under the names and in the layout of the JAX tree."""
    grads = {name: p.grad.detach().cpu().numpy() for name, p in module.named_parameters()}
    result = {}
    for path, value in flat(params).items():
        grad = grads[_torch_name(path)]
        if path.endswith("kernel"):
            inverse = {2: (1, 0), 3: (2, 0, 1) if "_us/" in path else (2, 1, 0)}[value.ndim]
            grad = grad.transpose(inverse)
        result[path] = grad
    return result


# ---------------------------------------------------------------------------------------------------- sampling


class Schedule:
    """The same noise levels as a `networld_jax.NoiseSchedule`."""

    def __init__(self, schedule: Any, device: str = "cpu"):
        half_log_snr = torch.tensor(np.asarray(schedule.half_log_snr, np.float64))
        ends = torch.tensor([-np.inf, np.inf], dtype=torch.float64)
        levels = torch.cat([half_log_snr, ends])  # index K is pure noise, -1 clean data
        signal, sigma = torch.sigmoid(2 * levels).sqrt(), torch.sigmoid(-2 * levels).sqrt()
        beta = -torch.expm1(
            nn.functional.logsigmoid(2 * half_log_snr)
            - nn.functional.logsigmoid(2 * torch.cat([ends[1:], half_log_snr[:-1]]))
        )
        sigma2_before = torch.cat([torch.zeros(1, dtype=torch.float64), sigma[: len(half_log_snr) - 1] ** 2])
        self.num_steps = len(half_log_snr)
        self.signal, self.sigma = (v.float().to(device) for v in (signal, sigma))
        self.posterior_variance = (beta * sigma2_before / sigma[: self.num_steps] ** 2).float().to(device)


def ascend(value: nn.Module, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Gradient of the summed value."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(value(x, k).sum(), x)[0]


@torch.no_grad()
def guided_ddpm(
    unet: nn.Module,
    value: nn.Module,
    schedule: Schedule,
    noise: torch.Tensor,
    present: torch.Tensor,
    guide_scale: float,
    num_guide_steps: int = 2,
    stop_below: int = 2,
) -> torch.Tensor:
    """Diffuser's sampler: `num_guide_steps` gradient steps on x, then one ancestral step, at every level.

    noise [1 + K, B, H, C]: the initial x, then one per step; present [B, C] is row 0 throughout.
    """
    x = noise[0].clone()
    x[:, 0] = present
    for i, level in enumerate(reversed(range(schedule.num_steps))):
        k = torch.full(x.shape[:1], level, device=x.device)
        if level >= stop_below:
            for _ in range(num_guide_steps):
                x = x + guide_scale * schedule.posterior_variance[level] * ascend(value, x, k)
                x[:, 0] = present
        x0 = unet(x, k)
        there = level - 1
        signal, sigma, signal_next, sigma_next = (
            values[index] for index in (level, there) for values in (schedule.signal, schedule.sigma)
        )
        # Posterior of a jump from `level` to `there` (Ho et al. 2020, eq. 7).
        beta = 1 - (signal / signal_next) ** 2
        mean = beta * signal_next / sigma**2 * x0 + (signal / signal_next) * sigma_next**2 / sigma**2 * x
        x = mean + (beta.sqrt() * sigma_next / sigma * noise[i + 1] if level else 0.0)
        x[:, 0] = present
    return x


@torch.no_grad()
def guided_ddim(
    unet: nn.Module,
    value: nn.Module,
    schedule: Schedule,
    noise: torch.Tensor,
    present: torch.Tensor,
    guide_scale: float,
    levels: Sequence[int],
) -> torch.Tensor:
    """DDIM with guidance folded into the prediction: x0 + w sigma^2 grad at the denoiser's x. noise [B, H, C]."""
    x = noise.clone()
    x[:, 0] = present
    for level, there in itertools.pairwise(levels):
        k = torch.full(x.shape[:1], int(level), device=x.device)
        x0 = unet(x, k) + guide_scale * schedule.sigma[level] ** 2 * ascend(value, x, k)
        implied = (x - schedule.signal[level] * x0) / schedule.sigma[level]
        x = schedule.signal[there] * x0 + schedule.sigma[there] * implied
        x[:, 0] = present
    return x


# ---------------------------------------------------------------------------------------------------- training


def losses(
    unet: nn.Module,
    value: nn.Module,
    schedule: Schedule,
    x0: torch.Tensor,
    k: torch.Tensor,
    noise: torch.Tensor,
    label: torch.Tensor,
) -> torch.Tensor:
    """Denoising loss (row 0 clean and without weight) plus squared error of the return, both means."""
    x = schedule.signal[k][:, None, None] * x0 + schedule.sigma[k][:, None, None] * noise
    x[:, 0] = x0[:, 0]
    error = (unet(x, k) - x0)[:, 1:]
    return (error**2).mean() + ((value(x, k) - label) ** 2).mean()


def training_step(
    unet: nn.Module, value: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule, *batch: torch.Tensor
) -> torch.Tensor:
    """One update; returns the loss before it."""
    optimiser.zero_grad(set_to_none=True)
    loss = losses(unet, value, schedule, *batch)
    loss.backward()
    optimiser.step()
    return loss.detach()
