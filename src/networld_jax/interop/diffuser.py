"""Weights of Diffuser's PyTorch networks (Janner et al. 2022) as parameters of ours, with equal outputs.

`TemporalUnet` and `ValueFunction` state dicts are read from `.safetensors` or `.npz`; a pickle is never opened. From a
PyTorch checkpoint, once, where you trust it:

    state = {k: v.contiguous() for k, v in torch.load("state_1000000.pt")["ema"].items()}
    safetensors.torch.save_file(state, "unet.safetensors")

>>> net = load_unet("unet.safetensors")            # names may have a prefix, as in "model.downs.0..."
>>> x0 = net.apply(net.params, x, k)               # [..., H, C], k [...] -> [..., H, C]

Layouts: a convolution [out, in, width] becomes [width, in, out], a transposed one [in, out, width] becomes
[width, in, out], a linear map [out, in] becomes [in, out]. U-Nets with attention have no counterpart here.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from networld_jax import networks
from networld_jax.types import Params

SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class ImportedNet(NamedTuple):
    """A network with somebody else's weights."""

    apply: Callable[..., jax.Array]  # (params, x [..., H, C], k [...] int32) -> [..., H, C], or [..., 1] of a value net
    params: Params
    width: int  # channels at full resolution; channels of level i are width * mults[i]
    mults: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------ files


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Arrays by name of a `.safetensors` or `.npz` file.

    Raises ValueError for another kind of file (pickles of PyTorch above all), and for one that is damaged.
    """
    path = Path(path)
    if path.suffix == ".npz":
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no readable npz file of plain arrays ({error})") from error
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise ValueError(
        f"weights must be .safetensors or .npz, got {path.name!r}: a PyTorch pickle can run code when it is opened; "
        "convert it where you trust it with safetensors.torch.save_file(state_dict, path)"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Eight bytes with the header's length, the header in JSON (dtype, shape, byte range of every array), the bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(content[8 + length + begin : 8 + length + end], SAFETENSORS_DTYPES[entry["dtype"]])
            arrays[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error!r})") from error
    return arrays


# ------------------------------------------------------------------------------------------------------ names


def _block(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """(our layer, their layer) of a ResidualTemporalBlock; `res` is missing where the widths agree."""
    for b in (0, 1):
        yield f"{ours}/block{b}/conv", f"{theirs}.blocks.{b}.block.0"
        yield f"{ours}/block{b}/gn", f"{theirs}.blocks.{b}.block.2"
    yield f"{ours}/time", f"{theirs}.time_mlp.1"
    yield f"{ours}/res", f"{theirs}.residual_conv"


def _unet_layers(depth: int) -> Iterator[tuple[str, str]]:
    yield from (("time_mlp/fc0", "time_mlp.1"), ("time_mlp/fc1", "time_mlp.3"))
    for i in range(depth):
        yield from _block(f"down{i}_0", f"downs.{i}.0")
        yield from _block(f"down{i}_1", f"downs.{i}.1")
        yield f"down{i}_ds", f"downs.{i}.3.conv"
    yield from (*_block("mid0", "mid_block1"), *_block("mid1", "mid_block2"))
    for i in range(depth - 1):
        yield from _block(f"up{i}_0", f"ups.{i}.0")
        yield from _block(f"up{i}_1", f"ups.{i}.1")
        yield f"up{i}_us", f"ups.{i}.3.conv"
    yield from (("final_block/conv", "final_conv.0.block.0"), ("final_block/gn", "final_conv.0.block.2"))
    yield "final_conv", "final_conv.1"


def _value_layers(depth: int) -> Iterator[tuple[str, str]]:
    yield from (("time_mlp/fc0", "time_mlp.1"), ("time_mlp/fc1", "time_mlp.3"))
    for i in range(depth):
        yield from _block(f"down{i}_0", f"blocks.{i}.0")
        yield from _block(f"down{i}_1", f"blocks.{i}.1")
        yield f"down{i}_ds", f"blocks.{i}.2.conv"
    for b in (0, 1):
        yield from _block(f"mid{b}", f"mid_block{b + 1}")
        yield f"mid{b}_ds", f"mid_down{b + 1}.conv"
    yield from (("fc0", "final_block.0"), ("fc1", "final_block.2"))


def _convert(ours: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """(name, array) of a weight of theirs in our layout."""
    if ours.endswith("/gn"):
        return f"{ours}_scale", weight
    if weight.ndim == 2:
        return f"{ours}/kernel", weight.T
    return f"{ours}/kernel", weight.transpose((2, 0, 1) if ours.endswith("_us") else (2, 1, 0))


def _network_names(state: Mapping[str, np.ndarray], first_level: str) -> tuple[dict[str, np.ndarray], int]:
    """(arrays of the network, its prefix removed; number of levels). Buffers of the diffusion beside it are left out.

    Raises ValueError when there is no such network.
    """
    pattern = re.compile(rf"(.*?){first_level}\.(\d+)\.0\.blocks\.0\.block\.0\.weight$")
    found = [match for name in state if (match := pattern.match(name))]
    if not found:
        shown = sorted(state)[:3]
        raise ValueError(f"no network with names like '{first_level}.0.0.blocks.0.block.0.weight'; found {shown} ...")
    prefix = min((match.group(1) for match in found), key=len)
    depth = 1 + max(int(match.group(2)) for match in found if match.group(1) == prefix)
    own = {name.removeprefix(prefix): np.asarray(array) for name, array in state.items() if name.startswith(prefix)}
    return own, depth


def _to_params(state: dict[str, np.ndarray], layers: Iterator[tuple[str, str]], top_level: tuple[str, ...]) -> Params:
    params: Params = {}
    used = set()
    for ours, theirs in layers:
        if f"{theirs}.weight" not in state:
            if ours.endswith(("/res", "_ds", "_us")):
                continue
            raise ValueError(f"the state dict lacks {theirs}.weight")
        name, weight = _convert(ours, state[f"{theirs}.weight"])
        bias_name = f"{ours}_bias" if ours.endswith("/gn") else f"{ours}/bias"
        for path, array in ((name, weight), (bias_name, state[f"{theirs}.bias"])):
            *folders, leaf = path.split("/")
            node = params
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = jnp.asarray(np.ascontiguousarray(array), jnp.float32)
        used |= {f"{theirs}.weight", f"{theirs}.bias"}
    left = sorted(name for name in state if name.split(".")[0] in top_level and name not in used)
    if left:
        raise ValueError(
            f"{len(left)} weights have no place here, first {left[0]!r} (attention is not supported)"
        )
    return params


def width_and_mults(params: Params) -> tuple[int, tuple[int, ...]]:
    """Base width and channel multipliers of a network in layout "diffuser", read from its shapes."""
    width = params["time_mlp"]["fc1"]["bias"].shape[0]
    depth = sum(name.startswith("down") and name.endswith("_0") for name in params)
    return width, tuple(params[f"down{i}_0"]["block1"]["gn_scale"].shape[0] // width for i in range(depth))


# ------------------------------------------------------------------------------------------------------ networks


def unet_from_state_dict(state: Mapping[str, np.ndarray]) -> ImportedNet:
    """A `TemporalUnet`; sizes are read from the weights. Raises ValueError when names or shapes do not fit."""
    own, depth = _network_names(state, "downs")
    top_level = ("time_mlp", "downs", "mid_block1", "mid_attn", "mid_block2", "ups", "final_conv")
    params = _to_params(own, _unet_layers(depth), top_level)
    width, mults = width_and_mults(params)
    module = networks.TemporalUNet(params["final_conv"]["bias"].shape[0], width, mults, layout="diffuser")
    return ImportedNet(lambda params, x, k: module.apply({"params": params}, x, k), params, width, mults)


def value_from_state_dict(state: Mapping[str, np.ndarray]) -> ImportedNet:
    """A `ValueFunction`; sizes are read from the weights. Raises ValueError when names or shapes do not fit."""
    own, depth = _network_names(state, "blocks")
    top_level = ("time_mlp", "blocks", "mid_block1", "mid_down1", "mid_block2", "mid_down2", "final_block")
    params = _to_params(own, _value_layers(depth), top_level)
    width, mults = width_and_mults(params)
    outputs = params["fc1"]["bias"].shape[0]
    module = networks.ReturnClassifier(width, mults, layout="diffuser", num_outputs=outputs)
    return ImportedNet(lambda params, x, k: module.apply({"params": params}, x, k), params, width, mults)


def load_unet(path: Path | str) -> ImportedNet:
    """`unet_from_state_dict` of a file. Raises ValueError as it and `read_arrays` do."""
    return unet_from_state_dict(read_arrays(path))


def load_value(path: Path | str) -> ImportedNet:
    """`value_from_state_dict` of a file. Raises ValueError as it and `read_arrays` do."""
    return value_from_state_dict(read_arrays(path))


def with_task_embedding(params: Params, key: jax.Array, num_tasks: int) -> Params:
    """The same network with a task index, as a world model's denoiser or classifier in layout "diffuser" has one.

    The rows that read the embedding start at zero: outputs do not change until they are trained.
    """
    width = params["time_mlp"]["fc1"]["bias"].shape[0]

    def widen(kernel):
        return jnp.concatenate([kernel, jnp.zeros((width, kernel.shape[1]), kernel.dtype)])

    widened = {
        name: node | {"time": node["time"] | {"kernel": widen(node["time"]["kernel"])}} if "time" in node else node
        for name, node in params.items()
    }
    if "fc0" in params:  # a value network reads the embedding once more, beside the features
        widened["fc0"] = params["fc0"] | {"kernel": widen(params["fc0"]["kernel"])}
    return widened | {"task_embedding": {"embedding": jax.random.normal(key, (num_tasks, width))}}
