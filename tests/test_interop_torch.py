"""Diffuser's networks in PyTorch, written from their description, with random weights: ours give the same outputs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax.interop import diffuser

torch = pytest.importorskip("torch", reason="needs PyTorch: a CPU build is enough")

from torch import nn  # noqa: E402

party = lambda check: pytest.mark.interop(party="PyTorch (Diffuser)", package="torch", check=check)  # noqa: E731
pytestmark = pytest.mark.interop


class Shape(nn.Module):
    """Adds or removes the axis that Diffuser's einops layers do."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


class Positions(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        half = self.dim // 2
        angles = t[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))[None]
        return torch.cat([angles.sin(), angles.cos()], -1)


class ConvBlock(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        add, drop = Shape(lambda x: x[:, :, None]), Shape(lambda x: x[:, :, 0])
        self.block = nn.Sequential(nn.Conv1d(cin, cout, 5, padding=2), add, nn.GroupNorm(8, cout), drop, nn.Mish())

    def forward(self, x):
        return self.block(x)


class Residual(nn.Module):
    def __init__(self, cin, cout, dim):
        super().__init__()
        self.blocks = nn.ModuleList([ConvBlock(cin, cout), ConvBlock(cout, cout)])
        self.time_mlp = nn.Sequential(nn.Mish(), nn.Linear(dim, cout), Shape(lambda e: e[:, :, None]))
        self.residual_conv = nn.Conv1d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, e):
        return self.blocks[1](self.blocks[0](x) + self.time_mlp(e)) + self.residual_conv(x)


class Resample(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


def down(c):
    return Resample(nn.Conv1d(c, c, 3, 2, 1))


def time_net(dim):
    return nn.Sequential(Positions(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))


class TemporalUnet(nn.Module):
    def __init__(self, channels, dim, mults):
        super().__init__()
        widths = [channels, *(dim * m for m in mults)]
        pairs = list(itertools.pairwise(widths))
        self.time_mlp = time_net(dim)
        self.downs = nn.ModuleList(
            nn.ModuleList([Residual(a, b, dim), Residual(b, b, dim), nn.Identity(), down(b)]) for a, b in pairs
        )
        self.downs[-1][3] = nn.Identity()
        self.mid_block1, self.mid_block2 = (Residual(widths[-1], widths[-1], dim) for _ in range(2))
        self.mid_attn = nn.Identity()
        self.ups = nn.ModuleList(
            nn.ModuleList([
                Residual(2 * b, a, dim), Residual(a, a, dim), nn.Identity(), Resample(nn.ConvTranspose1d(a, a, 4, 2, 1))
            ]) for a, b in reversed(pairs[1:])
        )  # fmt: skip
        self.final_conv = nn.Sequential(ConvBlock(dim, dim), nn.Conv1d(dim, channels, 1))

    def forward(self, x, t):
        x, e, skips = x.transpose(1, 2), self.time_mlp(t), []
        for first, second, _, shrink in self.downs:
            x = second(first(x, e), e)
            skips.append(x)
            x = shrink(x)
        x = self.mid_block2(self.mid_block1(x, e), e)
        for first, second, _, grow in self.ups:
            x = grow(second(first(torch.cat([x, skips.pop()], 1), e), e))
        return self.final_conv(x).transpose(1, 2)


class ValueFunction(nn.Module):
    def __init__(self, channels, dim, mults, horizon):
        super().__init__()
        widths = [channels, *(dim * m for m in mults)]
        self.time_mlp = time_net(dim)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Residual(a, b, dim), Residual(b, b, dim), down(b)]) for a, b in itertools.pairwise(widths)
        )
        c = widths[-1]
        self.mid_block1, self.mid_down1 = Residual(c, c // 2, dim), down(c // 2)
        self.mid_block2, self.mid_down2 = Residual(c // 2, c // 4, dim), down(c // 4)
        for _ in range(len(mults) + 2):
            horizon = -(-horizon // 2)
        flat = c // 4 * horizon
        self.final_block = nn.Sequential(nn.Linear(flat + dim, flat // 2), nn.Mish(), nn.Linear(flat // 2, 1))

    def forward(self, x, t):
        x, e = x.transpose(1, 2), self.time_mlp(t)
        for first, second, shrink in self.blocks:
            x = shrink(second(first(x, e), e))
        x = self.mid_down1(self.mid_block1(x, e))
        x = self.mid_down2(self.mid_block2(x, e))
        return self.final_block(torch.cat([x.flatten(1), e], -1))


NETS = {
    "TemporalUnet": (lambda: TemporalUnet(7, 16, (1, 2, 4)), diffuser.load_unet),
    "ValueFunction": (lambda: ValueFunction(7, 16, (1, 2), 16), diffuser.load_value),
}


@party("{name} from a state dict in {suffix}: equal outputs")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_equal_outputs(name, suffix, tmp_path):
    torch.manual_seed(0)
    make, load = NETS[name]
    net = make().eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        writer = pytest.importorskip("safetensors.torch", reason="needs safetensors")
        writer.save_file({f"model.{k}": v.contiguous() for k, v in net.state_dict().items()}, path)
    else:
        np.savez(path, **{k: v.numpy() for k, v in net.state_dict().items()})
    x, t = torch.randn(3, 16, 7), torch.tensor([0, 7, 19])
    with torch.no_grad():
        expected = net(x, t).numpy()
    imported = load(path)
    out = jax.jit(imported.apply)(imported.params, jnp.asarray(x.numpy()), jnp.asarray(t.numpy(), jnp.int32))
    np.testing.assert_allclose(out, expected, atol=2e-5 * np.abs(expected).max())  # float32 through ten blocks
