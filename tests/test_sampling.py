"""Samplers against closed forms: Gaussian data with the exact predictor makes every chain linear and Gaussian."""

import functools
import itertools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import diffusion, sampling, schedules
from tests import parity

FIXTURE = np.load(pathlib.Path(__file__).parent / "data" / "solver_reference.npz")
SCHEDULE = schedules.cosine_schedule(20)
SAMPLERS = {
    "ddpm": sampling.sample_ddpm,
    "ddim": sampling.sample_ddim,
    "dpm_1": sampling.sample_dpm_1,
    "dpmpp_1": sampling.sample_dpmpp_1,
    "dpmpp_2m": sampling.sample_dpmpp_2m,
    "sde_dpmpp_1": sampling.sample_sde_dpmpp_1,
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def nonlinear(x, k):
    """Some predictor that depends on x and k."""
    return jnp.tanh(x) * (0.5 + 0.02 * k[:, None, None].astype(x.dtype))


def exact_predictor(schedule, mean, std):
    """E[x0 | x_k] for x0 ~ N(mean, std^2), independent entries."""

    def predict(x, k):
        signal, sigma = (values[k][:, None, None] for values in (schedule.signal, schedule.sigma))
        gain = signal * std**2 / (signal**2 * std**2 + sigma**2)
        return mean + gain * (x - signal * mean)

    return predict


# ------------------------------------------------------------------------------------------------ closed forms


def gaussian_chain(name, mean, std, num_steps):
    """Mean and variance of the sampler's result in float64, from the definition of each update; ends at clean data."""
    f = np.cos((np.arange(21) / 20 + 0.008) / 1.008 * np.pi / 2) ** 2
    alphas_bar = np.append(1.0, np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999)))  # index k+1, 0 = clean
    levels = np.append(np.floor(np.linspace(19, 0, num_steps)).astype(int), -1)
    m, v = 0.0, 1.0
    for here, there in itertools.pairwise(levels):
        ab, ab_next = alphas_bar[here + 1], alphas_bar[there + 1]
        gain = np.sqrt(ab) * std**2 / (ab * std**2 + 1 - ab)  # x0_hat = mean + gain (x - sqrt(ab) mean)
        if name in ("ddpm", "sde_dpmpp_1"):  # posterior of a jump whose beta is 1 - ab / ab_next
            beta = 1 - ab / ab_next
            of_x0 = beta * np.sqrt(ab_next) / (1 - ab)
            of_x = np.sqrt(1 - beta) * (1 - ab_next) / (1 - ab)
            added = beta * (1 - ab_next) / (1 - ab)
        else:  # same noise, less of it
            of_x = np.sqrt((1 - ab_next) / (1 - ab))
            of_x0 = np.sqrt(ab_next) - of_x * np.sqrt(ab)
            added = 0.0
        slope = of_x + of_x0 * gain
        m = slope * m + of_x0 * (mean - gain * np.sqrt(ab) * mean)
        v = slope**2 * v + added
    return m, v


@pytest.mark.parametrize(
    "name, num_steps", [("ddpm", None), ("ddpm", 7), ("ddim", 5), ("dpmpp_1", 5), ("sde_dpmpp_1", 7)]
)
def test_gaussian_data_keep_their_mean_and_variance(name, num_steps):
    mean, std, batch, shape = 1.5, 0.7, 2000, (8, 4)
    sampler = jax.jit(
        lambda k: SAMPLERS[name](k, exact_predictor(SCHEDULE, mean, std), SCHEDULE, shape, num_steps=num_steps)
    )
    x = np.asarray(sampler(keys(batch)), np.float64)
    expected_mean, expected_variance = gaussian_chain(name, mean, std, num_steps or 20)
    z_mean = (x.mean() - expected_mean) / np.sqrt(expected_variance / x.size)
    z_variance = (x.var() - expected_variance) / (expected_variance * np.sqrt(2 / x.size))
    assert abs(z_mean) < 4 and abs(z_variance) < 4  # two-sided 6e-5; an index off by one gives tens


@pytest.mark.parametrize("name, order", [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order):
    """Against the exact probability-flow solution of Gaussian data, on levels even in half log-SNR."""
    mean, std = 1.5, 0.7
    with jax.enable_x64(True):
        half_log_snr = np.linspace(3.0, -3.0, 161)
        alphas_bar = 1 / (1 + np.exp(-2 * half_log_snr))
        schedule = schedules.schedule_from_levels(np.sqrt(alphas_bar), np.sqrt(1 - alphas_bar), dtype=jnp.float64)
        start = jax.random.normal(jax.random.key(0), (1, 3, 4, 2), jnp.float64)
        predict = exact_predictor(schedule, mean, std)
        sd = np.sqrt(alphas_bar * std**2 + 1 - alphas_bar)
        exact = np.sqrt(alphas_bar[0]) * mean + sd[0] / sd[-1] * (start[0] - np.sqrt(alphas_bar[-1]) * mean)
        errors = []
        for num_steps in (40, 80):
            levels = np.arange(160, -1, -160 // num_steps)
            x = SAMPLERS[name](None, predict, schedule, (4, 2), levels=levels, noise=start)
            errors.append(np.abs(x - exact).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_ddim_and_both_first_order_solvers_are_one_map():
    results = [
        SAMPLERS[name](keys(3), nonlinear, SCHEDULE, (8, 2), num_steps=6, clip=2.0)
        for name in ("ddim", "dpm_1", "dpmpp_1")
    ]
    # dpm_1 stretches x by signal'/signal, up to 100 at the first jump, before it subtracts: 100 float32 ulp
    np.testing.assert_allclose(results[1], results[0], atol=5e-5)
    np.testing.assert_allclose(results[2], results[0], atol=5e-6)


def test_ddpm_over_all_levels_is_the_posterior_chain():
    noise = jax.random.normal(jax.random.key(3), (20, 2, 8, 3))
    _, chain = sampling.sample_ddpm(None, nonlinear, SCHEDULE, (8, 3), noise=noise, return_chain=True)
    x = noise[0]
    for i, k in enumerate(range(19, -1, -1)):
        level = jnp.full(2, k)
        mean, log_variance = diffusion.posterior(nonlinear(x, level), x, level, SCHEDULE)
        x = mean + (jnp.exp(0.5 * log_variance) * noise[i + 1] if k else 0.0)
        np.testing.assert_allclose(chain[i + 1], x, atol=1e-5)


def test_sde_solver_draws_what_ddpm_draws():
    ddpm, sde = (SAMPLERS[name](keys(3), nonlinear, SCHEDULE, (8, 2)) for name in ("ddpm", "sde_dpmpp_1"))
    np.testing.assert_allclose(ddpm, sde, atol=1e-5)


# ------------------------------------------------------------------------------------------------ published solvers


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("num_steps", [5, 10])
@pytest.mark.parametrize("solver", parity.SOLVERS)
def test_solvers_match_cleandiffuser(solver, num_steps, weight):
    A, c = FIXTURE["A"], FIXTURE["c"]
    x = parity.solver_loop(
        solver,
        lambda x, n: jnp.tanh(x @ A) * (0.5 + 0.02 * n),
        lambda x, n: jnp.cos(x) * c[None] * (1 + 0.01 * n),
        FIXTURE["alpha"],
        FIXTURE["sigma"],
        FIXTURE[f"steps_S{num_steps}"],
        FIXTURE[f"x0/{solver}/S{num_steps}/w0.0/noise"],
        FIXTURE["cond0"],
        weight,
        "x0",
    )
    # a float64 re-implementation agrees with the float32 reference to 3e-6
    np.testing.assert_allclose(x, FIXTURE[f"x0/{solver}/S{num_steps}/w{weight}/x"], atol=1e-5)


def test_noise_prediction_guidance_is_the_folded_form():
    """eps <- eps - w sigma grad, the published form, equals x0 <- x0 + w sigma^2 / signal grad."""
    noise = jax.random.normal(jax.random.key(0), (1, 2, 8, 3))
    options = dict(noise=noise, levels=range(15, -1, -3))
    grad_fn, scale = lambda x, k: jnp.cos(x), 0.3

    def shifted_noise(x, k):
        return nonlinear(x, k) - scale * SCHEDULE.sigma[k][:, None, None] * grad_fn(x, k)

    published = sampling.from_noise_prediction(shifted_noise, SCHEDULE)
    folded = sampling.guided(
        sampling.from_noise_prediction(nonlinear, SCHEDULE),
        grad_fn,
        sampling.sigma_squared_over_signal(SCHEDULE, scale),
    )
    results = [sampling.sample_ddim(None, fn, SCHEDULE, (8, 3), **options) for fn in (published, folded)]
    np.testing.assert_allclose(*results, atol=1e-5)


# ------------------------------------------------------------------------------------------------ properties


@every_sampler
def test_the_clamp_holds_after_every_step(name):
    first = jax.random.normal(jax.random.key(9), (3, 2))
    x, chain = SAMPLERS[name](
        keys(3),
        nonlinear,
        SCHEDULE,
        (8, 4),
        num_steps=5,
        condition_fn=sampling.clamp_first_row(first, offset=1),
        return_chain=True,
    )
    chex.assert_shape(chain, (6, 3, 8, 4))
    chex.assert_trees_all_equal(chain[:, :, 0, 1:3], jnp.tile(first[None], (6, 1, 1)))
    chex.assert_trees_all_equal(chain[-1], x)
    assert len(np.unique(chain[:, 0, 0, 0])) == 6  # the other channels do move


@every_sampler
def test_a_plan_depends_on_its_own_key_only(name):
    sampler = jax.jit(
        functools.partial(SAMPLERS[name], predict_fn=nonlinear, schedule=SCHEDULE, shape=(8, 2), num_steps=4)
    )
    together = sampler(keys(5))
    chex.assert_trees_all_equal(sampler(keys(5)[::-1]), together[::-1])
    np.testing.assert_allclose(sampler(keys(5)[2:3]), together[2:3], atol=1e-6)  # another shape, other vector lanes
    assert np.abs(together[0] - together[1]).max() > 1e-2


@pytest.mark.usefixtures("full_compile")
@every_sampler
def test_zero_guidance_is_no_guidance_bit_for_bit(name):
    grad_fn = jax.grad(lambda x, k: jnp.sum(jnp.sin(3 * x)))
    sample = functools.partial(SAMPLERS[name], keys(3), schedule=SCHEDULE, shape=(8, 2), num_steps=4)
    plain, zero, some = (
        sample(predict_fn=fn)
        for fn in (
            nonlinear,
            *(sampling.guided(nonlinear, grad_fn, sampling.sigma_squared(SCHEDULE, w)) for w in (0.0, 1.0)),
        )
    )
    chex.assert_trees_all_equal(zero, plain)
    assert np.abs(some - plain).max() > 1e-2


def test_guidance_factors():
    k = jnp.arange(20)
    signal, sigma = np.asarray(SCHEDULE.signal), np.asarray(SCHEDULE.sigma)
    np.testing.assert_allclose(sampling.sigma_squared(SCHEDULE, 3.0)(k), 3 * sigma**2, rtol=1e-6)
    published = np.asarray(sampling.sigma_squared_over_signal(SCHEDULE, 1.0)(k))
    np.testing.assert_allclose(
        published[[2, 5, 10, 15, 19]], [0.061, 0.240, 0.905, 2.95, 406], rtol=0.01
    )  # spec figures
    capped = sampling.sigma_squared_over_signal(SCHEDULE, 2.0, cap=1.0)(k)
    np.testing.assert_allclose(capped, 2 * np.minimum(sigma**2 / signal, 1.0), rtol=1e-6)


def test_gradient_shift_is_clamped_ascent_above_its_stop():
    first = jnp.full((2, 3), 7.0)
    x = jax.random.normal(jax.random.key(0), (2, 8, 3))
    shift = sampling.gradient_shift(
        lambda x, k: -x,
        SCHEDULE,
        guide_scale=0.5,
        num_guide_steps=3,
        stop_below=4,
        condition_fn=sampling.clamp_first_row(first),
    )
    for k in (3, 4, 19):
        size = 0.5 * float(SCHEDULE.posterior_variance[k])
        expected = x if k < 4 else (x * (1 - size) ** 3).at[:, 0].set(first)
        np.testing.assert_allclose(shift(x, jnp.full(2, k)), expected, rtol=1e-5)
    mixed = shift(x, jnp.array([3, 4]))  # plans at different levels
    np.testing.assert_allclose(mixed[0, 1:], x[0, 1:], rtol=1e-6)
    assert np.abs(mixed[1, 1:] - x[1, 1:]).max() > 1e-2


@pytest.mark.parametrize("num_steps", [1, 3, 6, 20, None])
def test_num_steps_counts_evaluations(num_steps):
    visited = []

    def record(x, k):
        visited.append(int(k[0]))
        return 0.5 * x

    with jax.disable_jit():
        sampling.sample_ddim(keys(1), record, SCHEDULE, (2, 1), num_steps=num_steps)
    assert visited[0] == 19 and len(visited) == (num_steps or 20)
    assert visited == sorted(set(visited), reverse=True) and (num_steps == 1 or visited[-1] == 0)


def test_the_whole_loop_holds_one_copy_of_the_predictor():
    def predict(x, k):
        return jnp.tan(x)

    program = str(jax.make_jaxpr(lambda k: sampling.sample_ddpm(k, predict, SCHEDULE, (4, 2)))(keys(2)))
    assert program.count("= tan ") == 1


def test_recorded_noise_replays_the_keys():
    plan_keys = keys(3)
    draw = jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), (8, 2)), in_axes=(0, None))
    recorded = jnp.stack([draw(plan_keys, i) for i in range(20)])
    replayed = sampling.sample_ddpm(None, nonlinear, SCHEDULE, (8, 2), noise=recorded)
    np.testing.assert_allclose(replayed, sampling.sample_ddpm(plan_keys, nonlinear, SCHEDULE, (8, 2)), atol=1e-6)


def test_noise_scales_and_clip():
    sample = functools.partial(sampling.sample_ddpm, keys(2), nonlinear, SCHEDULE, (8, 2), return_chain=True)
    _, usual = sample()
    _, cold = sample(initial_noise_scale=0.5)
    np.testing.assert_allclose(cold[0], 0.5 * usual[0], rtol=1e-6)
    quiet, quiet_chain = sample(initial_noise_scale=0.0, step_noise_scale=0.0)
    assert np.all(quiet == 0.0) and np.all(quiet_chain == 0.0)  # tanh(0) = 0 and nothing is drawn
    x, _ = sampling.sample_ddpm(keys(2), lambda x, k: 9 * x, SCHEDULE, (8, 2), clip=1.5, return_chain=True)
    assert np.abs(x).max() == 1.5


def test_pre_step_moves_what_the_denoiser_sees():
    shifted = sampling.sample_ddim(keys(2), nonlinear, SCHEDULE, (4, 2), num_steps=1, pre_step_fn=lambda x, k: x + 1.0)
    start = sampling.sample_ddim(keys(2), lambda x, k: x, SCHEDULE, (4, 2), num_steps=1)
    np.testing.assert_allclose(shifted, nonlinear(start + 1.0, jnp.full(2, 19)), atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 21}, "num_steps must be between 1 and the schedule's 20 levels, got 21"),
        ({"num_steps": 0}, "got 0"),
        ({"levels": [3, 5, 0]}, "levels must fall"),
        ({"levels": [20, 5, 0]}, "levels must fall from at most 19"),
        ({"noise": jnp.zeros((3, 1, 4, 2))}, r"noise must be \[>= 20, B, 4, 2\]"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampling.sample_ddpm(keys(1), nonlinear, SCHEDULE, (4, 2), **options)


def test_keys_must_be_typed_and_one_per_plan():
    for wrong in (None, jax.random.key(0), jnp.zeros((2, 2), jnp.uint32)):
        with pytest.raises(ValueError, match="one per plan"):
            sampling.sample_ddim(wrong, nonlinear, SCHEDULE, (4, 2))


# ------------------------------------------------------------------------------------------------ warm start


def test_a_warm_start_is_the_noised_guess():
    """The first x is signal_k guess + sigma_k scale noise; one exact step from there has a closed form."""
    mean, std, first = 1.5, 0.7, 6
    guess = jax.random.normal(jax.random.key(1), (3, 8, 2))
    noise = jax.random.normal(jax.random.key(2), (1, 3, 8, 2))
    x, chain = sampling.sample_ddim(
        None,
        exact_predictor(SCHEDULE, mean, std),
        SCHEDULE,
        (8, 2),
        levels=[first, -1],
        noise=noise,
        initial_x0=guess,
        initial_noise_scale=0.5,
        return_chain=True,
    )
    ab = np.float64(SCHEDULE.alphas_bar[first])
    start = np.sqrt(ab) * guess + np.sqrt(1 - ab) * 0.5 * noise[0]
    np.testing.assert_allclose(chain[0], start, atol=1e-6)
    gain = np.sqrt(ab) * std**2 / (ab * std**2 + 1 - ab)
    np.testing.assert_allclose(x, mean + gain * (start - np.sqrt(ab) * mean), atol=1e-5)


def test_joint_guidance_equals_separate_guidance():
    """One pass for prediction and gradient, or two: the same numbers."""
    score = lambda x, k: jnp.sum(jnp.sin(x), axis=(1, 2))  # noqa: E731
    factor = sampling.sigma_squared(SCHEDULE, 0.7)
    separate = sampling.guided(nonlinear, jax.grad(lambda x, k: score(x, k).sum()), factor)
    joint = sampling.guided_jointly(sampling.value_and_gradient(lambda x, k: (nonlinear(x, k), score(x, k))), factor)
    one, other = (sampling.sample_ddim(keys(3), fn, SCHEDULE, (8, 2), num_steps=5) for fn in (separate, joint))
    np.testing.assert_array_equal(one, other)
    plain = sampling.sample_ddim(keys(3), nonlinear, SCHEDULE, (8, 2), num_steps=5)
    assert np.abs(plain - one).max() > 0.01
