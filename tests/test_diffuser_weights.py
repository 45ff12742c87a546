"""Diffuser's PyTorch weights in our networks: the recorded outputs of its own networks come out."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax.interop import diffuser

DATA = pathlib.Path(__file__).parent / "data"
VECTORS = np.load(DATA / "diffuser_vectors.npz")
INSIDE_BLOCK = {
    "block0/conv": "blocks.0.block.0", "block0": "blocks.0.block.2",
    "block1/conv": "blocks.1.block.0", "block1": "blocks.1.block.2",
    "time": "time_mlp.1", "res": "residual_conv",
}  # fmt: skip
FIXED = {
    "time_mlp/fc0": "time_mlp.1", "time_mlp/fc1": "time_mlp.3", "fc0": "final_block.0", "fc1": "final_block.2",
    "final_block/conv": "final_conv.0.block.0", "final_block": "final_conv.0.block.2", "final_conv": "final_conv.1",
}  # fmt: skip


def torch_name(path, net):
    """The name in Diffuser's PyTorch module of one of our layers."""
    if path in FIXED:
        return FIXED[path]
    layer, _, inside = path.partition("/")
    name, _, number = layer.partition("_")
    kind, index = name.rstrip("0123456789"), int(name[-1])
    if kind == "mid":
        return f"mid_down{index + 1}.conv" if number == "ds" else f"mid_block{index + 1}.{INSIDE_BLOCK[inside]}"
    levels = {"down": "downs" if net == "unet" else "blocks", "up": "ups"}[kind]
    if number in ("ds", "us"):
        return f"{levels}.{index}.{3 if net == 'unet' else 2}.conv"
    return f"{levels}.{index}.{number}.{INSIDE_BLOCK[inside]}"


def torch_state(net, prefix="model."):
    """The fixture's weights as Diffuser's GaussianDiffusion would save them."""
    state = {"betas": np.zeros(20, np.float32)}
    for name, array in np.load(DATA / f"diffuser_{net}_weights.npz").items():
        path, leaf = name.removeprefix(f"{net}/").rsplit("/", 1)
        theirs = prefix + torch_name(path, net)
        if leaf == "kernel" and array.ndim == 3:
            # Conv1d [out, in, width], ConvTranspose1d [in, out, width]
            array = np.moveaxis(array, 0, -1) if path.endswith("_us") else array.swapaxes(0, 2)
        elif leaf == "kernel":
            array = array.swapaxes(0, 1)
        state[f"{theirs}.{'bias' if leaf in ('bias', 'gn_bias') else 'weight'}"] = array
    return state


def write_safetensors(path, state):
    """The format by its description: length, JSON header, bytes."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in state.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("net, suffix", [("unet", "safetensors"), ("value", "npz")])
def test_imported_weights_give_diffusers_outputs(net, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "npz":
        np.savez(path, **torch_state(net))
    else:
        write_safetensors(path, torch_state(net))
    imported = diffuser.load_unet(path) if net == "unet" else diffuser.load_value(path)
    assert (imported.width, imported.mults) == (16, (1, 2, 4))
    x, k = jnp.asarray(VECTORS["fwd/x"]), jnp.asarray(VECTORS["fwd/t"], jnp.int32)
    out = jax.jit(imported.apply)(imported.params, x, k)
    # PyTorch's float32 against ours through 12 blocks; the value net sums over the length once more.
    np.testing.assert_allclose(out, VECTORS[f"fwd/{net}_out"], atol=5e-5)


def test_a_task_index_changes_nothing_at_first():
    from networld_jax import networks

    for net, module in (
        ("unet", networks.TemporalUNet(10, 16, (1, 2, 4), layout="diffuser", num_tasks=3)),
        ("value", networks.ReturnClassifier(16, (1, 2, 4), layout="diffuser", num_tasks=3)),
    ):
        read = diffuser.unet_from_state_dict if net == "unet" else diffuser.value_from_state_dict
        params = diffuser.with_task_embedding(read(torch_state(net)).params, jax.random.key(0), 3)
        x, k = jnp.asarray(VECTORS["fwd/x"]), jnp.asarray(VECTORS["fwd/t"], jnp.int32)
        out = jax.jit(module.apply)({"params": params}, x, k, jnp.full(k.shape, 2))
        np.testing.assert_allclose(out, VECTORS[f"fwd/{net}_out"], atol=5e-5)


def test_what_does_not_fit_is_named(tmp_path):
    state = torch_state("unet", prefix="")
    with pytest.raises(ValueError, match="no network with names like 'blocks"):
        diffuser.value_from_state_dict(state)
    attention = state | {"mid_attn.fn.fn.to_qkv.weight": np.zeros((384, 64, 1), np.float32)}
    with pytest.raises(ValueError, match=r"1 weights have no place here, first 'mid_attn.*attention is not supported"):
        diffuser.unet_from_state_dict(attention)
    with pytest.raises(ValueError, match=r"lacks mid_block1\.blocks\.0\.block\.0\.weight"):
        diffuser.unet_from_state_dict({k: v for k, v in state.items() if k != "mid_block1.blocks.0.block.0.weight"})
    with pytest.raises(ValueError, match="a PyTorch pickle can run code"):
        diffuser.load_unet(tmp_path / "state_1000.pt")
    whole = tmp_path / "whole.safetensors"
    write_safetensors(whole, state)
    for cut in (4, 200, whole.stat().st_size - 1):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(ValueError, match="is no readable safetensors file"):
            diffuser.load_unet(path)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="is no readable npz file"):
        diffuser.load_unet(tmp_path / "cut.npz")
