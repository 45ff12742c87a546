"""Networks against Diffuser's own numbers, and the properties decentralised execution rests on."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from networld_jax import convolutions, diffusion, networks, schedules
from networld_jax.costs import matmul_flops, num_parameters
from tests import parity

DATA = pathlib.Path(__file__).parent / "data"
VECTORS = np.load(DATA / "diffuser_vectors.npz")
WEIGHTS = {name: np.load(DATA / f"diffuser_{name}_weights.npz") for name in ("unet", "value")}
UNET = networks.TemporalUNet(out_channels=10, width=16, mults=(1, 2, 4), layout="diffuser")
VALUE = networks.ReturnClassifier(width=16, mults=(1, 2, 4), layout="diffuser")
SMALL = dict(width=8, mults=(1, 2))


def flat_weights(net):
    return {key.removeprefix(f"{net}/"): array for key, array in WEIGHTS[net].items()}


@pytest.fixture(scope="module")
def unet():
    return with_pullback(UNET, "unet")


@pytest.fixture(scope="module")
def value():
    return with_pullback(VALUE, "value")


def with_pullback(net, name):
    """(params, jitted (x, t, cotangent) -> (output, gradients of params and x)): one compilation for several tests."""
    params = parity.nested_params(flat_weights(name))

    def apply(params, x, t, cotangent):
        out, pull = jax.vjp(lambda params, x: net.apply({"params": params}, x, t), params, x)
        return out, *pull(cotangent)

    return params, functools.partial(jax.jit(apply), params)


def random_params(net, *inputs):
    """Every parameter random, so that nothing hides behind a zero initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), shapes)


# ------------------------------------------------------------------------------------------------ published networks


def test_forward_passes_match_diffuser():
    x, t = VECTORS["fwd/x"], VECTORS["fwd/t"]
    # torch against XLA, float32, different summation orders; the value is of size 10
    np.testing.assert_allclose(parity.diffuser_unet(flat_weights("unet"), x, t), VECTORS["fwd/unet_out"], atol=2e-5)
    np.testing.assert_allclose(parity.diffuser_value(flat_weights("value"), x, t), VECTORS["fwd/value_out"], atol=5e-5)


def test_blocks_match_diffuser(unet):
    params, _ = unet
    time_mlp = networks.TimeMLP(16).apply({"params": params["time_mlp"]}, jnp.asarray(VECTORS["fwd/t"], jnp.int32))
    np.testing.assert_allclose(time_mlp, VECTORS["fwd/temb_unet"], atol=1e-5)
    block = networks.ResidualBlock(32).apply(
        {"params": params["down1_0"]}, jnp.asarray(VECTORS["block/x"]), jnp.asarray(VECTORS["block/emb"])
    )
    np.testing.assert_allclose(block, VECTORS["block/out"], atol=1e-5)
    halved = networks.Conv(32, 3, stride=2).apply({"params": params["down1_ds"]}, block)
    np.testing.assert_allclose(halved, VECTORS["block/downsample_out"], atol=1e-5)
    doubled = networks.Upsample().apply({"params": params["up0_us"]}, jnp.asarray(VECTORS["block/up_x"]))
    np.testing.assert_allclose(doubled, VECTORS["block/up_out"], atol=1e-5)


def noised(noise):
    """x_t of the training vectors, with the observation part of row 0 clean."""
    x0, t = jnp.asarray(VECTORS["train/x0"]), jnp.asarray(VECTORS["train/t"], jnp.int32)
    schedule = schedules.cosine_schedule(12)
    return x0, t, diffusion.q_sample(x0, t, jnp.asarray(noise), schedule).at[:, 0, 3:].set(x0[:, 0, 3:])


@pytest.mark.slow
def test_training_loss_and_gradients_match_diffuser(unet):
    noise, weights = jnp.asarray(VECTORS["train/noise"]), jnp.asarray(VECTORS["loss_weights"])
    x0, t, x = noised(noise)

    def loss_fn(output):  # the published code clamps the output like x
        return diffusion.denoising_loss(output.at[:, 0, 3:].set(x0[:, 0, 3:]), noise, weights).mean()

    output, *_ = unet[1](x, t, jnp.zeros_like(x))
    loss, cotangent = jax.value_and_grad(loss_fn)(output)
    _, gradient, _ = unet[1](x, t, cotangent)
    np.testing.assert_allclose(loss, VECTORS["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(gradient), VECTORS["train/unet_grad_global_norm"], rtol=1e-5)
    final, first = gradient["final_conv"], gradient["down0_0"]["block0"]["conv"]
    np.testing.assert_allclose(final["kernel"], VECTORS["train/grad/final_conv_kernel"], atol=1e-5)
    np.testing.assert_allclose(first["kernel"], VECTORS["train/grad/down0_0_block0_conv_kernel"], atol=1e-5)


def test_value_loss_and_gradients_match_diffuser(value):
    _, t, x = noised(VECTORS["train/value_noise"])
    output, *_ = value[1](x, t, jnp.zeros((4, 1)))
    error = output - VECTORS["train/value_target"]
    np.testing.assert_allclose(jnp.square(error).mean(), VECTORS["train/value_loss"], rtol=1e-4)
    _, gradient, _ = value[1](x, t, 2 * error / error.size)
    np.testing.assert_allclose(optax.tree.norm(gradient), VECTORS["train/value_grad_global_norm"], rtol=1e-4)
    at, t = jnp.asarray(VECTORS["fwd/x"]), jnp.asarray(VECTORS["fwd/t"], jnp.int32)
    _, _, by_x = value[1](at, t, jnp.ones((4, 1)))
    np.testing.assert_allclose(by_x, VECTORS["fwd/value_grad_x"], atol=1e-5)


@pytest.mark.parametrize(
    "name, num_guide_steps, scale, stop_below, by_variance",
    [("loop_std", 2, 2.0, 4, True), pytest.param("loop", 1, 0.1, 0, False, marks=pytest.mark.slow)],
)
def test_guided_loop_matches_diffuser(name, num_guide_steps, scale, stop_below, by_variance):
    weights = {key: array for net in WEIGHTS.values() for key, array in net.items()}
    schedule = {key.removeprefix("sched/"): VECTORS[key] for key in VECTORS.files if key.startswith("sched/")}
    chain, trajectories, values = parity.diffuser_guided_loop(
        weights,
        schedule,
        *(VECTORS[f"{name}/{key}"] for key in ("cond0", "x_init_noise", "step_noise")),
        num_guide_steps,
        scale,
        stop_below,
        by_variance,
        predict_epsilon=True,
        clip_denoised=True,
        action_dim=3,
    )
    # twelve steps of float32 rounding; guidance itself moves the plan by 0.15 (loop) and 0.92 (loop_std)
    np.testing.assert_allclose(chain, VECTORS[f"{name}/chain"], atol=1e-4)
    np.testing.assert_allclose(trajectories, VECTORS[f"{name}/sorted_traj"], atol=1e-4)
    np.testing.assert_allclose(values, VECTORS[f"{name}/sorted_values"], rtol=1e-5)


# ------------------------------------------------------------------------------------------------ convolutions


def direct_convolution(x, kernel, stride, padding):
    """The definition, in NumPy float64."""
    x = np.pad(np.asarray(x, np.float64), [(0, 0)] * (x.ndim - 2) + [padding, (0, 0)])
    starts = range(0, x.shape[-2] - len(kernel) + 1, stride)
    windows = [np.einsum("...ic,ico->...o", x[..., s : s + len(kernel), :], kernel) for s in starts]
    return np.stack(windows, axis=-2)


FORMS = (
    convolutions.conv1d_im2col,
    convolutions.conv1d_trimmed,
    convolutions.conv1d_lax,
    convolutions.conv1d_lax_with_im2col_gradient,
)


@pytest.mark.parametrize(
    "length, width, stride, padding",
    [(8, 5, 1, (2, 2)), (2, 5, 1, (2, 2)), (1, 3, 2, (1, 1)), (8, 3, 2, (1, 1)), (7, 3, 2, (1, 1)), (4, 2, 1, (1, 0))],
)
def test_all_convolutions_are_the_definition(length, width, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 3, length, 4))
    kernel = jax.random.normal(jax.random.key(1), (width, 4, 6))
    expected = direct_convolution(x, np.asarray(kernel), stride, padding)
    for convolve in (*FORMS, convolutions.conv1d):
        np.testing.assert_allclose(convolve(x, kernel, stride, padding), expected, atol=1e-5)


def test_all_convolutions_have_the_same_derivatives():
    """Backwards to x and to the kernel, and forwards along both."""
    x, dx = jax.random.normal(jax.random.key(0), (2, 2, 6, 3))
    kernel, dk = jax.random.normal(jax.random.key(1), (2, 5, 3, 4))
    cotangent = jax.random.normal(jax.random.key(2), (2, 6, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(convolve):
        apply = functools.partial(convolve, stride=1, padding=(2, 2))
        only_x = jax.grad(lambda x: jnp.sum(apply(x, kernel) * cotangent))(x)
        return *jax.vjp(apply, x, kernel)[1](cotangent), jax.jvp(apply, (x, kernel), (dx, dk))[1], only_x

    results = [derivatives(convolve) for convolve in FORMS]
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, results[0])
    assert np.abs(results[0][0]).max() > 1


def test_trimmed_convolution_multiplies_no_padding():
    """5 taps over 4 inputs: windows of 3, 4, 4, 3 instead of 20; over 2 inputs 4 instead of 10."""
    kernel = jnp.zeros((5, 6, 7))
    for length, taps in ((4, 14), (2, 4), (8, 34)):
        x = jnp.zeros((3, length, 6))
        cost = matmul_flops(lambda x: convolutions.conv1d_trimmed(x, kernel, 1, (2, 2)), x)
        assert cost == 2 * 3 * taps * 6 * 7


def test_the_choice_of_convolution():
    """Accelerators: XLA's own. CPU: XLA's forwards where the input holds the kernel, and never its gradient."""
    assert convolutions.fastest("gpu", 19, 4, 5, 1) is convolutions.conv1d_lax
    assert convolutions.fastest("cpu", 19, 8, 5, 1) is convolutions.conv1d_lax_with_im2col_gradient
    assert convolutions.fastest("cpu", 19, 4, 5, 1) is convolutions.conv1d_im2col
    assert convolutions.fastest("cpu", 256, 4, 5, 1) is convolutions.conv1d_trimmed
    assert convolutions.fastest("cpu", 19, 8, 3, 2) is convolutions.conv1d_im2col


def test_half_precision_keeps_float32_sums_and_results():
    """bfloat16 has 8 bits: products are off by 2^-8, their sums over 5 x 64 terms by no more."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 64))
    kernel = jax.random.normal(jax.random.key(1), (5, 64, 16)) / np.sqrt(320)
    exact = direct_convolution(x, np.asarray(kernel, np.float64), 1, (2, 2))
    half = convolutions.conv1d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float64) - exact).max() < 3 * 2**-8 * np.abs(exact).max()


def test_transposed_convolution_is_the_adjoint_of_the_strided_one():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 3, 2))
    strided = lambda y: convolutions.conv1d(y, jnp.swapaxes(kernel, 1, 2), 2, (1, 1))  # noqa: E731
    (expected,) = jax.linear_transpose(strided, jnp.zeros((10, 2)))(x)
    np.testing.assert_allclose(convolutions.conv1d_transpose(x, kernel), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------ layers


def test_mish_is_x_tanh_softplus_with_finite_gradients():
    x = np.concatenate([np.linspace(-30, 30, 601), [-1e4, -90.0, 90.0, 1e4]]).astype(np.float32)
    expected = x.astype(np.float64) * np.tanh(np.logaddexp(0, x.astype(np.float64)))
    np.testing.assert_allclose(networks.mish(jnp.asarray(x)), expected, rtol=2e-6, atol=1e-30)
    slopes = jax.vmap(jax.grad(networks.mish))(jnp.asarray(x))
    exact = x.astype(np.float64)
    tanh_sp, sigmoid = np.tanh(np.logaddexp(0, exact)), 1 / (1 + np.exp(-np.clip(exact, -500, 500)))
    # r + x r' with r' from a quotient in float32: x ulps, x = 20 where it still matters
    np.testing.assert_allclose(slopes, tanh_sp + exact * (1 - tanh_sp**2) * sigmoid, atol=1e-5)


def test_group_norm_by_hand():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 4, 16)) * 3 + 1, np.float64)
    groups = x.reshape(2, 3, 4, 8, 2)
    expected = (groups - groups.mean((2, 4), keepdims=True)) / np.sqrt(groups.var((2, 4), keepdims=True) + 1e-5)
    scale, bias = np.linspace(0.5, 2, 16), np.linspace(-1, 1, 16)
    normalised = networks.group_norm(jnp.float32(x), jnp.float32(scale), jnp.float32(bias))
    np.testing.assert_allclose(normalised, expected.reshape(x.shape) * scale + bias, atol=1e-5)
    with pytest.raises(ValueError, match="channels must be divisible by 8"):
        networks.group_norm(jnp.zeros((4, 12)), jnp.ones(12), jnp.zeros(12))


# ------------------------------------------------------------------------------------------------ NetWorld's networks

NETS = {
    "denoiser": networks.TemporalUNet(out_channels=6, layout="networld", num_tasks=3, **SMALL),
    "denoiser, diffuser": networks.TemporalUNet(out_channels=6, layout="diffuser", num_tasks=3, **SMALL),
    "classifier": networks.ReturnClassifier(layout="networld", num_tasks=3, num_outputs=5, **SMALL),
}


@pytest.mark.parametrize("name", NETS)
def test_agents_and_plans_never_mix(name):
    """[B, N, H, C]: another agent's input must not reach an agent's output, whatever its place."""
    net = NETS[name]
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 6))
    k, task = jnp.array([[0, 1, 2], [3, 4, 5]]), jnp.array([[0, 0, 0], [2, 2, 2]])
    variables = random_params(net, x, k, task)
    apply = jax.jit(net.apply)
    base = apply(variables, x, k, task)
    moved = apply(variables, x.at[0, 1].add(5.0), k, task)
    changed = np.abs(moved - base).reshape(2, 3, -1).max(-1) > 0
    assert np.array_equal(changed, [[False, True, False], [False, False, False]])
    reordered = apply(variables, x[:, ::-1], k[:, ::-1], task[:, ::-1])
    np.testing.assert_allclose(reordered[:, ::-1], base, rtol=1e-5, atol=1e-5)
    other_task = apply(variables, x, k, task.at[1, 0].set(1))
    assert np.array_equal(np.abs(other_task - base).reshape(2, 3, -1).max(-1) > 0, [[0, 0, 0], [1, 0, 0]])
    other_step = apply(variables, x, k.at[1, 2].set(9), task)
    assert np.array_equal(np.abs(other_step - base).reshape(2, 3, -1).max(-1) > 0, [[0, 0, 0], [0, 0, 1]])


def test_one_task_index_serves_all_and_is_required():
    net, x, k = NETS["denoiser"], jnp.ones((2, 8, 6)), jnp.array([1, 2])
    variables = jax.eval_shape(net.init, jax.random.key(0), x, k, jnp.int32(1))
    assert variables["params"]["task_embedding"]["embedding"].shape == (3, 8)
    assert variables["params"]["down0_0"]["time"]["kernel"].shape == (16, 8)  # step and task side by side
    with pytest.raises(ValueError, match="task_index is required"):
        net.init(jax.random.key(0), x, k)


def test_a_shared_trunk_can_carry_the_return_head():
    net, head = NETS["denoiser"], networks.ReturnHead(num_outputs=2)
    x, k = jnp.ones((2, 8, 6)), jnp.array([1, 2])

    def both(key):
        (out, trunk), variables = net.init_with_output(key, x, k, k, return_features=True)
        returns, head_variables = head.init_with_output(key, *trunk)
        return out, trunk, returns, variables, head_variables

    with jax.debug_key_reuse(False):  # shapes only
        out, (features, embedding), returns, *_ = jax.eval_shape(both, jax.random.key(0))
    assert (out.shape, features.shape, embedding.shape) == ((2, 8, 6), (2, 2, 16), (2, 16))
    assert returns.shape == (2, 2)


@pytest.mark.parametrize(
    "layout, mults, factor", [("networld", (1, 2, 4, 8), 16), ("networld", (1, 2), 4), ("diffuser", (1, 2, 4, 8), 8)]
)
def test_horizons_that_cannot_be_halved_are_refused(layout, mults, factor):
    networks.check_horizon(3 * factor, layout, mults)
    for horizon in (factor // 2, factor + 1, 0):
        with pytest.raises(ValueError, match=f"horizon must be divisible by {factor}, got {horizon}"):
            networks.check_horizon(horizon, layout, mults)
    with pytest.raises(ValueError, match=r"layout must be one of \['diffuser', 'networld'\], got 'unet'"):
        networks.check_horizon(8, "unet", mults)


@pytest.mark.parametrize("length", [8, 64])
def test_the_classifier_reads_its_own_flattened_size(length):
    """The published code fails at horizon 64: its book-kept size differs from the real one."""
    net = networks.ReturnClassifier(width=32, mults=(1, 2, 4, 8), layout="diffuser")
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, length, 17)), jnp.zeros(1, jnp.int32))["params"]
    last_length = -(-length // 2**6)
    assert shapes["fc0"]["kernel"].shape == (64 * last_length + 32, 64 * last_length // 2)


def shapes_and_flops(net, horizon, channels):
    x, k = jax.ShapeDtypeStruct((1, horizon, channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, k)
    return shapes["params"], matmul_flops(net.apply, shapes, x, k)


def num_blocks(params):
    return sum("block0" in entry for entry in params.values())


def test_sizes_and_costs_of_the_presets(monkeypatch):
    """Parameters and MFLOPs of the published network and of the paper's eight-block reading, at H = 32, width 32."""
    monkeypatch.setattr(convolutions, "fastest", lambda *_: convolutions.conv1d_trimmed)
    _, trimmed = shapes_and_flops(networks.TemporalUNet(64, 32, layout="diffuser"), 32, 64)
    assert trimmed / 1e6 == pytest.approx(31.5, rel=0.02)  # a fifth of the products is with padding
    monkeypatch.setattr(convolutions, "fastest", lambda *_: convolutions.conv1d_im2col)
    diffuser, flops = shapes_and_flops(networks.TemporalUNet(64, 32, layout="diffuser"), 32, 64)
    assert num_blocks(diffuser) == 16 and flops / 1e6 == pytest.approx(39.8, rel=0.02)
    at_17_channels, _ = shapes_and_flops(networks.TemporalUNet(17, 32, layout="diffuser"), 32, 17)
    assert num_parameters(at_17_channels) / 1e6 == pytest.approx(3.96, abs=0.005)
    value, _ = shapes_and_flops(networks.ReturnClassifier(32, layout="diffuser"), 32, 17)
    assert num_parameters(value) / 1e6 == pytest.approx(2.30, abs=0.005)

    networld, flops = shapes_and_flops(networks.TemporalUNet(64, 32, layout="networld"), 32, 64)
    assert num_blocks(networld) == 8 and flops / 1e6 == pytest.approx(20.1, rel=0.02)
    convolutions_only = num_parameters([leaf for leaf in jax.tree.leaves(networld) if leaf.ndim == 3])
    assert convolutions_only / 1e6 == pytest.approx(1.96, abs=0.01)
    down, flops = shapes_and_flops(networks.ReturnClassifier(32, layout="networld"), 32, 64)
    assert num_blocks(down) == 4 and flops / 1e6 == pytest.approx(9.9, rel=0.02)


def test_flops_of_loops_and_branches():
    a = jnp.ones((4, 5))

    def program(x):
        x = jax.lax.fori_loop(0, 3, lambda i, x: x @ a.T @ a, x)  # 3 * 2 * 2 * (2*4*5) at x [2, 5]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ a.T, lambda x: x[:, :4], x)

    assert matmul_flops(program, jnp.ones((2, 5))) == 3 * 160 + 80
    conv = lambda x: convolutions.conv1d_lax(x, jnp.ones((5, 3, 7)), 1, (2, 2))  # noqa: E731
    im2col = lambda x: convolutions.conv1d_im2col(x, jnp.ones((5, 3, 7)), 1, (2, 2))  # noqa: E731
    x = jnp.ones((2, 8, 3))
    assert matmul_flops(conv, x) == matmul_flops(im2col, x) == 2 * 5 * 3 * 7 * 16


def test_untrained_networks_start_neutral():
    x, k = jnp.ones((2, 8, 6)), jnp.array([0, 2])
    for name, last in (("denoiser", "final_conv"), ("classifier", "head")):
        initial = jax.jit(lambda key, net=NETS[name], last=last: net.init(key, x, k, k)["params"][last])
        assert all(np.all(leaf == 0.0) for leaf in jax.tree.leaves(initial(jax.random.key(1))))
    prior = jnp.log(jnp.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]))
    inverse = networks.InverseDynamics(2, 3, hidden=(16, 16), bias_init=lambda key, shape: prior)
    logits, variables = inverse.init_with_output(jax.random.key(2), jnp.ones((4, 9)))
    np.testing.assert_allclose(jax.nn.softmax(logits), np.tile(np.exp(prior), (4, 1, 1)), rtol=1e-6)
    chex.assert_shape(variables["params"]["logits_kernel"], (16, 6))


def test_encoder_latents_are_normalised_and_decodable():
    obs = 10 * jax.random.normal(jax.random.key(0), (5, 3, 7))
    encoder, decoder = networks.ScenarioEncoder(16, (32, 32)), networks.ObservationDecoder(7, (32, 32))
    latent, variables = encoder.init_with_output(jax.random.key(1), obs)
    np.testing.assert_allclose(latent.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(latent.std(-1), 1.0, atol=1e-3)  # eps 1e-6 under the root
    assert list(variables["params"]) == ["mlp"] and len(variables["params"]["mlp"]) == 3  # no affine
    plain = networks.ScenarioEncoder(16, (32, 32), layer_norm=False).apply(variables, obs)
    np.testing.assert_allclose(
        (plain - plain.mean(-1, keepdims=True)) / plain.std(-1, keepdims=True), latent, atol=1e-3
    )
    assert decoder.init_with_output(jax.random.key(2), latent)[0].shape == obs.shape


def test_bfloat16_networks_stay_close_to_float32():
    """Same float32 weights, float32 in and out; activations of 8 bits through a dozen layers: per cent, not more."""
    options = dict(out_channels=4, width=8, mults=(1,))
    exact, half = (networks.TemporalUNet(**options, compute_dtype=dtype) for dtype in (None, jnp.bfloat16))
    x, k = jax.random.normal(jax.random.key(0), (3, 8, 4)), jnp.array([0, 7, 19])
    params = {"params": random_params(exact, x, k)["params"]}
    want, got = (jax.jit(net.apply)(params, x, k) for net in (exact, half))
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 0 < error < 0.05
