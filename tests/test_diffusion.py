"""Diffusion maths against Bayes' rule in float64 and Diffuser's loss weights."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import diffusion, schedules

SCHEDULE = schedules.cosine_schedule(12)
FIXTURE = np.load(pathlib.Path(__file__).parent / "data" / "diffuser_vectors.npz")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_noising_and_its_inverses():
    x0, noise, k = normal(0, 4, 8, 3), normal(1, 4, 8, 3), jnp.array([0, 3, 7, 10])
    x = diffusion.q_sample(x0, k, noise, SCHEDULE)
    scale = [
        np.sqrt(np.asarray(a, np.float64))[np.asarray(k)][:, None, None]
        for a in (FIXTURE["sched/alphas_cumprod"], 1 - FIXTURE["sched/alphas_cumprod"].astype(np.float64))
    ]
    np.testing.assert_allclose(x, scale[0] * x0 + scale[1] * noise, atol=2e-6)
    # dividing by signal = 0.13 at k = 10 multiplies float32 rounding by 8
    np.testing.assert_allclose(diffusion.predict_x0(x, k, noise, SCHEDULE), x0, atol=1e-5)
    np.testing.assert_allclose(diffusion.predict_noise(x, k, x0, SCHEDULE), noise, atol=1e-5)


def test_posterior_is_the_product_of_the_two_gaussians():
    x0, x = (np.asarray(normal(seed, 11, 1, 1), np.float64) for seed in (2, 3))
    k = np.arange(1, 12)
    betas, previous = (FIXTURE[f"sched/{name}"][1:].astype(np.float64) for name in ("betas", "alphas_cumprod_prev"))
    # x_k | x_{k-1} ~ N(sqrt(1-b) x_{k-1}, b) times x_{k-1} | x0 ~ N(sqrt(abar') x0, 1 - abar'): precisions add
    precision = (1 - betas) / betas + 1 / (1 - previous)
    weighted = np.sqrt(1 - betas) / betas * x[:, 0, 0] + np.sqrt(previous) / (1 - previous) * x0[:, 0, 0]
    mean, log_variance = diffusion.posterior(jnp.float32(x0), jnp.float32(x), jnp.asarray(k), SCHEDULE)
    np.testing.assert_allclose(mean[:, 0, 0], weighted / precision, atol=2e-6)
    np.testing.assert_allclose(log_variance[:, 0, 0], -np.log(precision), atol=1e-5)


def test_one_step_per_scene_equals_one_per_agent():
    x0, noise, k = normal(4, 2, 3, 8, 5), normal(5, 2, 3, 8, 5), jnp.array([1, 6])
    shared = diffusion.q_sample(x0, k, noise, SCHEDULE)
    chex.assert_trees_all_equal(shared, diffusion.q_sample(x0, jnp.tile(k[:, None], (1, 3)), noise, SCHEDULE))
    chex.assert_trees_all_equal(shared, jax.vmap(diffusion.q_sample, (0, 0, 0, None))(x0, k, noise, SCHEDULE))


def test_loss_weights_match_diffuser_below_the_first_row():
    weights = diffusion.loss_weights(16, 10, discount=0.97, first_row_weight=10.0)
    np.testing.assert_allclose(weights[1:], FIXTURE["loss_weights"][1:], rtol=1e-6)
    np.testing.assert_allclose(weights[0, :3], FIXTURE["loss_weights"][0, :3], rtol=1e-6)  # Diffuser: actions only


def test_loss_ignores_the_first_row_and_padded_channels():
    prediction, target = normal(6, 2, 8, 6), normal(7, 2, 8, 6)
    mask = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    weights = diffusion.loss_weights(8, 6, next_row_weight=5.0, channel_mask=mask)
    gradient = jax.grad(lambda p: diffusion.denoising_loss(p, target, weights).sum())(prediction)
    live = np.zeros((8, 6), bool)
    live[1:, np.asarray(mask) == 1] = True
    assert np.all((np.abs(gradient) > 0) == live[None])
    # padding a task's channels does not change its loss
    kept = np.flatnonzero(mask)
    unpadded = diffusion.denoising_loss(
        prediction[..., kept], target[..., kept], diffusion.loss_weights(8, 4, next_row_weight=5.0)
    )
    padded = diffusion.denoising_loss(prediction, target, weights)
    chex.assert_shape(padded, (2,))
    np.testing.assert_allclose(padded, unpadded, rtol=1e-6)


def test_row_weights_by_hand():
    weights = diffusion.loss_weights(4, 1, discount=0.5, next_row_weight=3.0)[:, 0]
    mean = (1 + 0.5 + 0.25 + 0.125) / 4
    np.testing.assert_allclose(weights, [0.0, 3 * 0.5 / mean, 0.25 / mean, 0.125 / mean], rtol=1e-6)


def test_mismatched_shapes_are_refused():
    with pytest.raises(AssertionError):
        diffusion.q_sample(jnp.zeros((2, 8, 3)), jnp.zeros(3, jnp.int32), jnp.zeros((2, 8, 3)), SCHEDULE)
    with pytest.raises(AssertionError):
        diffusion.denoising_loss(jnp.zeros((2, 8, 3)), jnp.zeros((2, 8, 3)), jnp.ones((8, 1)))
