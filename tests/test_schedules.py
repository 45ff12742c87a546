"""Noise schedules against the published tables and against float64."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import schedules

DATA = pathlib.Path(__file__).parent / "data"
DIFFUSER = np.load(DATA / "diffuser_vectors.npz")
SOLVERS = np.load(DATA / "solver_reference.npz")

NAMES = {  # ours -> Diffuser's buffers
    "betas": "betas",
    "alphas_bar": "alphas_cumprod",
    "alphas_bar_previous": "alphas_cumprod_prev",
    "signal": "sqrt_alphas_cumprod",
    "sigma": "sqrt_one_minus_alphas_cumprod",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance_clipped": "posterior_log_variance_clipped",
    "posterior_mean_coef1": "posterior_mean_coef1",
    "posterior_mean_coef2": "posterior_mean_coef2",
}


@pytest.mark.parametrize("name", NAMES)
def test_cosine_schedule_matches_diffuser(name):
    reference = DIFFUSER[f"sched/{NAMES[name]}"]
    for schedule in (schedules.cosine_schedule(12), schedules.schedule_from_betas(DIFFUSER["sched/betas"])):
        assert schedule.num_steps == 12
        # the reference itself is float32; the log at k = 0 is of magnitude 46
        np.testing.assert_allclose(getattr(schedule, name), reference, rtol=2e-6, atol=1e-6)


def test_levels_match_cleandiffuser():
    given = schedules.schedule_from_levels(SOLVERS["alpha"], SOLVERS["sigma"])
    np.testing.assert_allclose(given.signal, SOLVERS["alpha"], atol=1e-6)
    np.testing.assert_allclose(given.sigma, SOLVERS["sigma"], atol=1e-6)
    built = schedules.cosine_levels(20)
    np.testing.assert_allclose(built.signal, SOLVERS["alpha"], atol=1e-6)
    # the reference computes 1 - alpha^2 = 4e-5 in float32, half an ulp of 1 is 3e-8: sigma_0 is uncertain by 5e-6
    np.testing.assert_allclose(built.sigma, SOLVERS["sigma"], atol=5e-6)


def linear_betas():
    return np.linspace(1e-4, 0.02, 1000)


def cosine_betas():
    f = np.cos((np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


@pytest.mark.parametrize(
    "schedule, betas",
    [(schedules.linear_schedule(1000), linear_betas()), (schedules.cosine_schedule(50), cosine_betas())],
    ids=["linear", "cosine"],
)
def test_everything_follows_from_betas_in_float64(schedule, betas):
    alphas_bar = np.cumprod(1 - betas)
    previous = np.append(1.0, alphas_bar[:-1])
    # betas are differences of two float32 half log-SNRs of size 5: 1e-6 absolute; from float32 alphas_bar they would be
    # off by 6e-4 relative where they are smallest (1e-4)
    for name, expected in {
        "betas": betas,
        "posterior_variance": betas * (1 - previous) / (1 - alphas_bar),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1 - alphas_bar),
        "posterior_mean_coef2": (1 - previous) * np.sqrt(1 - betas) / (1 - alphas_bar),
    }.items():
        np.testing.assert_allclose(getattr(schedule, name), expected, rtol=2e-4, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(schedule.alphas_bar, alphas_bar, rtol=1e-5)
    np.testing.assert_allclose(schedule.sigma, np.sqrt(1 - alphas_bar), rtol=2e-6)


def test_posterior_variance_is_exactly_zero_at_the_last_step():
    schedule = schedules.cosine_schedule(20)
    assert float(schedule.posterior_variance[0]) == 0.0
    assert float(schedule.posterior_log_variance_clipped[0]) == pytest.approx(np.log(1e-20))


def test_level_reaches_from_clean_data_to_pure_noise():
    schedule = schedules.cosine_schedule(5)
    clean, first, noise = (schedule.level(jnp.int32(k)) for k in (-1, 0, 5))
    assert (float(clean.signal), float(clean.sigma), float(clean.half_log_snr)) == (1.0, 0.0, np.inf)
    assert (float(noise.signal), float(noise.sigma), float(noise.half_log_snr)) == (0.0, 1.0, -np.inf)
    assert float(first.signal) == float(schedule.signal[0]) and float(first.sigma) == float(schedule.sigma[0])


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: schedules.cosine_schedule(0), "num_steps must be at least 1, got 0"),
        (lambda: schedules.schedule_from_betas([0.1, 1.0]), "every entry in"),
        (lambda: schedules.schedule_from_levels([0.9], [0.9]), "signal\\*\\*2"),
        (lambda: schedules.schedule_from_levels([0.6, 0.8], [0.8, 0.6]), "from clean to noisy"),
        (lambda: schedules.schedule_from_levels([0.6, 0.8], [0.8]), "shapes"),
    ],
)
def test_impossible_schedules_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
