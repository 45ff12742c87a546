"""Parity entry points: NumPy in, NumPy out, public functions only. Sizes are read from the inputs, never assumed.

Called by the tests with the fixtures in tests/data, and by anyone with fixtures of other sizes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from networld_jax import networks, sampling, schedules, transforms

# ---------------------------------------------------------------------------------------------------- diffusion core


def two_hot(y, bins):
    """Two-hot weights [m, M] of values y [m] over ascending bins [M]."""
    return np.asarray(transforms.two_hot(jnp.asarray(y), jnp.asarray(bins)))


def from_two_hot(logits, bins):
    """Raw-space mean [m] of softmax(logits [m, M]) over bins [M]."""
    return np.asarray(transforms.from_two_hot(jnp.asarray(logits), jnp.asarray(bins)))


def diffuser_unet(weights, x, t):
    """Output [B, H, D] of Diffuser's temporal U-Net; `weights` as in the fixture after "unet/"."""
    params = nested_params(weights)
    width, mults = _width_and_mults(params)
    unet = networks.TemporalUNet(params["final_conv"]["bias"].shape[0], width, mults, layout="diffuser")
    return np.asarray(jax.jit(unet.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t, jnp.int32)))


def diffuser_value(weights, x, t):
    """Output [B, 1] of Diffuser's value network; `weights` as in the fixture after "value/"."""
    params = nested_params(weights)
    width, mults = _width_and_mults(params)
    value = networks.ReturnClassifier(width, mults, layout="diffuser", num_outputs=params["fc1"]["bias"].shape[0])
    return np.asarray(jax.jit(value.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t, jnp.int32)))


def diffuser_guided_loop(
    weights,
    schedule,
    cond0,
    x_init_noise,
    step_noise,
    n_guide_steps,
    scale,
    t_stopgrad,
    scale_grad_by_std,
    predict_epsilon,
    clip_denoised,
    action_dim,
):
    """Diffuser's guided reverse process -> (chain [T+1, B, H, D], trajectories and values sorted by falling value).

    The value is the guide's last evaluation at t = 0, before its last update and the last denoising step.
    """
    unet, value = (nested_params(weights, prefix) for prefix in ("unet/", "value/"))
    width, mults = _width_and_mults(unet)
    denoiser = networks.TemporalUNet(unet["final_conv"]["bias"].shape[0], width, mults, layout="diffuser")
    classifier = networks.ReturnClassifier(*_width_and_mults(value), layout="diffuser")
    schedule = schedules.schedule_from_betas(schedule["betas"])
    noise = jnp.concatenate([jnp.asarray(x_init_noise)[None], jnp.asarray(step_noise)])
    condition_fn = sampling.clamp_first_row(jnp.asarray(cond0), offset=action_dim)

    def value_fn(x, k):
        return classifier.apply({"params": value}, x, k)[..., 0]

    def predict_fn(x, k):
        return denoiser.apply({"params": unet}, x, k)

    def guide(num_guide_steps):
        return sampling.gradient_shift(
            jax.grad(lambda x, k: value_fn(x, k).sum()),
            schedule,
            guide_scale=scale,
            num_guide_steps=num_guide_steps,
            stop_below=t_stopgrad,
            scale_by_variance=scale_grad_by_std,
            condition_fn=condition_fn,
        )

    @jax.jit
    def sample(noise):
        x, chain = sampling.sample_ddpm(
            None,
            sampling.from_noise_prediction(predict_fn, schedule) if predict_epsilon else predict_fn,
            schedule,
            noise.shape[2:],
            condition_fn=condition_fn,
            pre_step_fn=guide(n_guide_steps),
            noise=noise,
            clip=1.0 if clip_denoised else None,
            return_chain=True,
        )
        first_level = jnp.zeros(x.shape[0], jnp.int32)
        values = value_fn(guide(n_guide_steps - 1)(chain[-2], first_level), first_level)
        order = jnp.argsort(-values)
        return chain, x[order], values[order]

    return tuple(np.asarray(result) for result in sample(noise))


SOLVERS = {
    "ddpm": functools.partial(sampling.sample_ddpm, variance_floor=1e-8),
    "ddim": sampling.sample_ddim,
    "ode_dpmsolver_1": sampling.sample_dpm_1,
    "ode_dpmsolver++_1": sampling.sample_dpmpp_1,
    "ode_dpmsolver++_2M": sampling.sample_dpmpp_2m,
    "sde_dpmsolver++_1": sampling.sample_sde_dpmpp_1,
}


def solver_loop(solver, predict_fn, log_prob_grad_fn, alpha, sigma, level_idx, noise, cond0, w, kind):
    """CleanDiffuser's solver loop -> x [B, H, D]: evaluated at rising `level_idx` read backwards, ends at level_idx[0].

    Runs without jit, so that `predict_fn(x, n)` and `log_prob_grad_fn(x, n)` get the level as a Python integer.
    """
    schedule = schedules.schedule_from_levels(alpha, sigma)
    noise = jnp.asarray(noise)

    def at_integer_level(fn):
        return lambda x, k: jnp.asarray(fn(x, int(k[0])))

    predict = at_integer_level(predict_fn)
    if kind == "eps":
        predict = sampling.from_noise_prediction(predict, schedule)
    factor_fn = sampling.sigma_squared_over_signal(schedule, w)
    with jax.disable_jit():
        x = SOLVERS[solver](
            None,
            sampling.guided(predict, at_integer_level(log_prob_grad_fn), factor_fn),
            schedule,
            noise.shape[2:],
            levels=np.asarray(level_idx)[::-1],
            noise=noise,
            condition_fn=sampling.clamp_first_row(jnp.asarray(cond0)),
        )
    return np.asarray(x)


def nested_params(weights, prefix=""):
    """Flat {"down0_0/block0/conv/kernel": array} -> the nested parameters of networld_jax.networks, names unchanged."""
    params = {}
    for name, array in weights.items():
        if name.startswith(prefix):
            *path, leaf = name.removeprefix(prefix).split("/")
            node = params
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = jnp.asarray(array)
    return params


def _width_and_mults(params):
    """Base width and channel multipliers of a Diffuser network, from the shapes of its parameters."""
    width = params["time_mlp"]["fc1"]["bias"].shape[0]
    depth = sum(name.startswith("down") and name.endswith("_0") for name in params)
    return width, tuple(params[f"down{i}_0"]["block1"]["gn_scale"].shape[0] // width for i in range(depth))
