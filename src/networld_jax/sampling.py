"""Samplers: from pure noise to a trajectory x0 [B, H, C] by one scan over falling noise levels.

All samplers share one signature and take x0-predictors; `from_noise_prediction` wraps a network that predicts noise.
Guidance wraps the predictor (`guided`), clamping known entries is a function of x (`condition_fn`). In the notation
of Lu et al. 2022, x_k = signal_k x0 + sigma_k noise and lambda_k = log(signal_k / sigma_k); in every update below
`here` is the level of x, `there` the one it moves to, h = lambda_there - lambda_here > 0.

By default the levels are spread evenly from K-1 to 0 and the last jump goes from level 0 to clean data, so that the
result is the last prediction of x0. Explicit `levels` may stop anywhere, for example at level 0 without that last
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from networld_jax.diffusion import predict_x0
from networld_jax.schedules import Level, NoiseSchedule

PredictFn = Callable[[jax.Array, jax.Array], jax.Array]  # (x [B, H, C], k [B] int32) -> x0 [B, H, C]
PredictAndGradFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # (x, k) -> (x0, gradient like x)
FactorFn = Callable[[jax.Array], jax.Array]  # k [B] -> [B]


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments of every sampler; the value after the dash is the default."""

    condition_fn: Callable[[jax.Array], jax.Array]  # x -> x, applied at the start and after every step; identity
    num_steps: int | None  # network evaluations, 1..K, levels spread evenly; all K
    levels: Sequence[int] | None  # S+1 falling steps instead: evaluated at all but the last, -1 = clean; from num_steps
    pre_step_fn: Callable[[jax.Array, jax.Array], jax.Array] | None  # (x, k [B]) -> x before each evaluation; None
    noise: jax.Array | None  # recorded draws [1 + draws, B, H, C]: the initial x, then one per noisy step; from keys
    initial_noise_scale: float  # factor of the initial noise, low-temperature sampling; 1
    initial_x0: jax.Array | None  # [B, H, C] start from it, noised to the first level, and not from pure noise; None
    step_noise_scale: float  # factor of the noise of every step; 1
    clip: float | None  # x0 predictions are clipped to [-clip, clip], after guidance; None
    return_chain: bool  # also return x at every level [S+1, B, H, C], the initial one first; False


class Jump(NamedTuple):
    """What one update may use beside x and the prediction of x0."""

    before: Level  # the level before `here`; pure noise at the first step
    here: Level
    there: Level
    x0_before: jax.Array  # [B, H, C] the previous prediction; 0 at the first step
    noise: jax.Array  # [B, H, C] standard normal, scaled; 0 where the sampler draws none


def sample_ddpm(
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    *,
    variance_floor: float = 0.0,
    **options: Unpack[SamplingOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Ancestral sampling (Ho et al. 2020): draws x_there from q(x_there | x_here, x0). No noise in the last step.

    x' = signal' x0 + sigma' e^-h noise_hat + sigma' sqrt(1 - e^-2h) z, where noise_hat is the noise that x0 implies.
    Over all K levels this is mean and variance of `diffusion.posterior`.

    Args:
      keys: [B] typed keys, one per plan: the noise of plan b depends on keys[b] only, so that one exported agent
        draws what it drew in the batch. May be None if `noise` is given.
      predict_fn: (x [B, H, C], k [B] int32) -> x0 [B, H, C].
      schedule: K noise levels.
      shape: (H, C).
      variance_floor: added to the variance of the noise_hat term; CleanDiffuser has 1e-8.
      **options: see `SamplingOptions`.

    Returns:
      x [B, H, C], or (x, chain [S+1, B, H, C]) with `return_chain`.

    Raises:
      ValueError: keys that are not typed [B], num_steps outside 1..K, levels that do not fall, too few recorded draws.
    """

    def update(x: jax.Array, x0: jax.Array, jump: Jump) -> jax.Array:
        decay = jnp.exp(jump.here.half_log_snr - jump.there.half_log_snr)
        kept = jnp.sqrt(jnp.square(jump.there.sigma * decay) + variance_floor)
        fresh = jump.there.sigma * jnp.sqrt(1 - jnp.square(decay))
        return jump.there.signal * x0 + kept * _implied_noise(x, x0, jump.here) + fresh * jump.noise

    return _reverse(update, keys, predict_fn, schedule, shape, noisy_steps="all but the last", **options)


def sample_ddim(
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    **options: Unpack[SamplingOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """DDIM (Song et al. 2021, eta = 0): x' = signal' x0 + sigma' noise_hat. Deterministic after the initial noise.

    Arguments and result as in `sample_ddpm`.
    """

    def update(x: jax.Array, x0: jax.Array, jump: Jump) -> jax.Array:
        return jump.there.signal * x0 + jump.there.sigma * _implied_noise(x, x0, jump.here)

    return _reverse(update, keys, predict_fn, schedule, shape, noisy_steps="none", **options)


def sample_dpm_1(
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    **options: Unpack[SamplingOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """DPM-Solver of order 1 (Lu et al. 2022), noise form: x' = signal'/signal x - sigma' (e^h - 1) noise_hat.

    The same map as `sample_ddim`, rounded differently. Arguments and result as in `sample_ddpm`.
    """

    def update(x: jax.Array, x0: jax.Array, jump: Jump) -> jax.Array:
        stretch = jump.there.signal / jump.here.signal
        sigma_gain = stretch * jump.here.sigma - jump.there.sigma  # sigma' (e^h - 1), finite also at clean data
        return stretch * x - sigma_gain * _implied_noise(x, x0, jump.here)

    return _reverse(update, keys, predict_fn, schedule, shape, noisy_steps="none", **options)


def sample_dpmpp_1(
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    **options: Unpack[SamplingOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """DPM-Solver++ of order 1 (Lu et al. 2022b), data form: x' = sigma'/sigma x - signal' (e^-h - 1) x0.

    The same map as `sample_ddim`. Arguments and result as in `sample_ddpm`.
    """

    def update(x: jax.Array, x0: jax.Array, jump: Jump) -> jax.Array:
        h = jump.there.half_log_snr - jump.here.half_log_snr
        return jump.there.sigma / jump.here.sigma * x - jump.there.signal * jnp.expm1(-h) * x0

    return _reverse(update, keys, predict_fn, schedule, shape, noisy_steps="none", **options)


def sample_dpmpp_2m(
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    **options: Unpack[SamplingOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """DPM-Solver++(2M) (Lu et al. 2022b): order 1 with x0 extrapolated from the previous prediction, order 2 in all.

    D = (1 + w) x0 - w x0_before, w = h / (2 h_before), then x' = sigma'/sigma x - signal' (e^-h - 1) D. The first
    step has no previous prediction, the jump to clean data (h infinite) no finite w: both are of order 1. Arguments
    and result as in `sample_ddpm`.
    """

    def update(x: jax.Array, x0: jax.Array, jump: Jump) -> jax.Array:
        h = jump.there.half_log_snr - jump.here.half_log_snr
        h_before = jump.here.half_log_snr - jump.before.half_log_snr  # infinite at the first step: weight 0
        weight = jnp.where(jnp.isinf(h), 0.0, h / (2 * h_before))
        extrapolated = (1 + weight) * x0 - weight * jump.x0_before
        return jump.there.sigma / jump.here.sigma * x - jump.there.signal * jnp.expm1(-h) * extrapolated

    return _reverse(update, keys, predict_fn, schedule, shape, noisy_steps="none", **options)


def sample_sde_dpmpp_1(
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    **options: Unpack[SamplingOptions],
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """SDE-DPM-Solver++ of order 1: x' = sigma'/sigma e^-h x - signal' (e^-2h - 1) x0 + sigma' sqrt(1 - e^-2h) z.

    The same law as `sample_ddpm`, except that explicit levels which stop above clean data get noise in the last step
    too. Arguments and result as in `sample_ddpm`.
    """

    def update(x: jax.Array, x0: jax.Array, jump: Jump) -> jax.Array:
        h = jump.there.half_log_snr - jump.here.half_log_snr
        shrunk = jump.there.sigma / jump.here.sigma * jnp.exp(-h) * x
        fresh = jump.there.sigma * jnp.sqrt(-jnp.expm1(-2 * h)) * jump.noise
        return shrunk - jump.there.signal * jnp.expm1(-2 * h) * x0 + fresh

    return _reverse(update, keys, predict_fn, schedule, shape, noisy_steps="all", **options)


def from_noise_prediction(predict_fn: PredictFn, schedule: NoiseSchedule) -> PredictFn:
    """The x0-predictor of a network that predicts the noise: (x - sigma_k noise) / signal_k."""
    return lambda x, k: predict_x0(x, k, predict_fn(x, k), schedule)


def guided(predict_fn: PredictFn, grad_fn: PredictFn, factor_fn: FactorFn) -> PredictFn:
    """Predictor with guidance folded in: x0 + factor(k) grad(x, k), for any sampler (Dhariwal & Nichol 2021, alg. 2).

    Args:
      predict_fn: (x, k) -> x0.
      grad_fn: (x, k) -> gradient of the score to raise with respect to x, evaluated at the same x as the denoiser.
      factor_fn: k [B] -> [B], see `sigma_squared`, `sigma_squared_over_signal`.
    """

    return guided_jointly(lambda x, k: (predict_fn(x, k), grad_fn(x, k)), factor_fn)


def guided_jointly(predict_and_grad_fn: PredictAndGradFn, factor_fn: FactorFn) -> PredictFn:
    """`guided` for networks that share work: predict_and_grad_fn(x, k) -> (x0, gradient), in one pass."""

    def predict(x: jax.Array, k: jax.Array) -> jax.Array:
        x0, gradient = predict_and_grad_fn(x, k)
        return x0 + factor_fn(k)[:, None, None] * gradient

    return predict


def value_and_gradient(both_fn: PredictAndGradFn) -> PredictAndGradFn:
    """(x0, gradient of the sum of scores) out of both_fn(x, k) -> (x0, score [B]).

    One forward pass; backwards goes only through what the score depends on.
    """

    def predict(x: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(x):
            x0, score = both_fn(x, k)
            return score.sum(), x0

        (_, x0), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return x0, gradient

    return predict


def preconditioned(both_fn: PredictAndGradFn, metric: jax.Array) -> PredictAndGradFn:
    """The gradient times a diagonal `metric` [C]. With the variances S of x0 given the present every channel moves as
    far as the data let it: the mean of N(mu, S) tilted by exp(w J) is mu + w S grad J for a linear J."""

    def predict(x: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        x0, gradient = both_fn(x, k)
        return x0, gradient * metric[None, None, :]

    return predict


def sigma_squared(schedule: NoiseSchedule, guide_scale: float | jax.Array) -> FactorFn:
    """Guidance factor guide_scale sigma_k^2: at most `guide_scale`, vanishing towards clean data."""
    return lambda k: guide_scale * jnp.square(schedule.sigma[k])


def sigma_squared_over_signal(
    schedule: NoiseSchedule, guide_scale: float | jax.Array, cap: float = jnp.inf
) -> FactorFn:
    """Guidance factor guide_scale min(sigma_k^2 / signal_k, cap), classifier guidance as published for these solvers.

    Uncapped it is dominated by the noisiest level (406 at k = 19 of a 20-step cosine schedule, 3 at k = 15).
    """
    return lambda k: guide_scale * jnp.minimum(jnp.square(schedule.sigma[k]) / schedule.signal[k], cap)


def gradient_shift(
    grad_fn: PredictFn,
    schedule: NoiseSchedule,
    *,
    guide_scale: float | jax.Array,
    num_guide_steps: int = 2,
    stop_below: int = 2,
    scale_by_variance: bool = True,
    condition_fn: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> PredictFn:
    """Diffuser's guidance (Janner et al. 2022) as a `pre_step_fn`: ascends the score before the denoiser sees x.

    num_guide_steps times: x <- condition_fn(x + guide_scale [posterior_variance_k] grad(x, k)), where k >= stop_below.

    Args:
      grad_fn: (x [B, H, C], k [B]) -> gradient like x.
      schedule: for the posterior variance.
      guide_scale: factor of the gradient.
      num_guide_steps: gradient steps per denoising step.
      stop_below: no guidance at steps k < stop_below; the gradient is not computed there.
      scale_by_variance: multiply by the posterior variance.
      condition_fn: the clamp, applied after every gradient step.
    """

    def ascend(x: jax.Array, k: jax.Array) -> jax.Array:
        size = jnp.where(k >= stop_below, guide_scale, 0.0).astype(x.dtype)
        if scale_by_variance:
            size = size * schedule.posterior_variance[k]
        body = lambda _, x: condition_fn(x + size[:, None, None] * grad_fn(x, k))  # noqa: E731
        return jax.lax.fori_loop(0, num_guide_steps, body, x)

    return lambda x, k: jax.lax.cond(jnp.any(k >= stop_below), ascend, lambda x, k: x, x, k)


def clamp_first_row(first: jax.Array, offset: int = 0) -> Callable[[jax.Array], jax.Array]:
    """A `condition_fn` that overwrites x[:, 0, offset:offset+F] with the known `first` [B, F]."""
    return lambda x: x.at[:, 0, offset : offset + first.shape[-1]].set(first)


def several(num: int, keys: jax.Array, *rows: jax.Array) -> tuple[jax.Array, ...]:
    """(keys [S num], rows [S num, ...]) for `num` draws per row, key j of row s from `split(keys[s])`."""
    split = jax.vmap(lambda key: jax.random.split(key, num))(keys).reshape(-1)
    return split, *(jnp.repeat(row, num, axis=0) for row in rows)


def averaged(draw: Callable[..., jax.Array], num: int) -> Callable[..., jax.Array]:
    """The mean of `num` independent samples (`several`): draw(keys [S], *rows [S, ...]) -> x [S, ...], asked once for
    all of them. With 1 it is `draw` itself."""
    if num == 1:
        return draw

    def mean(keys, *rows):
        x = draw(*several(num, keys, *rows))
        return x.reshape(keys.shape[0], num, *x.shape[1:]).mean(axis=1)

    return mean


def sampling_levels(num_levels: int, num_steps: int | None = None) -> np.ndarray:
    """Levels [S+1] of `num_steps` = S evaluations: floor of S even numbers from K-1 down to 0, then -1 (clean data).

    Raises:
      ValueError: num_steps outside 1..K.
    """
    num_steps = num_levels if num_steps is None else num_steps
    if not 1 <= num_steps <= num_levels:
        raise ValueError(f"num_steps must be between 1 and the schedule's {num_levels} levels, got {num_steps}")
    return np.append(np.floor(np.linspace(num_levels - 1, 0, num_steps)).astype(np.int32), np.int32(-1))


def _reverse(
    update: Callable[[jax.Array, jax.Array, Jump], jax.Array],
    keys: chex.PRNGKey | None,
    predict_fn: PredictFn,
    schedule: NoiseSchedule,
    shape: tuple[int, int],
    *,
    noisy_steps: str,
    condition_fn: Callable[[jax.Array], jax.Array] = lambda x: x,
    num_steps: int | None = None,
    levels: Sequence[int] | None = None,
    pre_step_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    noise: jax.Array | None = None,
    initial_noise_scale: float = 1.0,
    initial_x0: jax.Array | None = None,
    step_noise_scale: float = 1.0,
    clip: float | None = None,
    return_chain: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """The reverse process: one scan whose body holds one copy of `predict_fn`."""
    levels = sampling_levels(schedule.num_steps, num_steps) if levels is None else _check_levels(levels, schedule)
    num_jumps = len(levels) - 1
    num_draws = {"none": 0, "all but the last": num_jumps - 1, "all": num_jumps}[noisy_steps]
    draw = _draw_fn(keys, noise, shape, num_draws, schedule.half_log_snr.dtype)

    def step(carry: tuple[jax.Array, jax.Array], jump: tuple[jax.Array, ...]):
        x, x0_before = carry
        i, k_before, k_here, k_there = jump
        k = jnp.full(x.shape[:1], k_here)
        if pre_step_fn is not None:
            x = pre_step_fn(x, k)
        x0 = predict_fn(x, k)
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
        z = jnp.where(i < num_draws, step_noise_scale, 0.0).astype(x.dtype) * draw(i + 1) if num_draws else 0.0 * x
        context = Jump(schedule.level(k_before), schedule.level(k_here), schedule.level(k_there), x0_before, z)
        x = condition_fn(update(x, x0, context))
        return (x, x0), (x if return_chain else None)

    first = initial_noise_scale * draw(0)
    if initial_x0 is not None:
        chex.assert_equal_shape([initial_x0, first])
        start = schedule.level(int(levels[0]))
        first = start.signal * initial_x0 + start.sigma * first
    first = condition_fn(first)
    befores = np.append(np.int32(schedule.num_steps), levels[:-2])
    jumps = tuple(jnp.asarray(column) for column in (np.arange(num_jumps), befores, levels[:-1], levels[1:]))
    (x, _), tail = jax.lax.scan(step, (first, jnp.zeros_like(first)), jumps)
    return (x, jnp.concatenate([first[None], tail])) if return_chain else x


def _implied_noise(x: jax.Array, x0: jax.Array, level: Level) -> jax.Array:
    return (x - level.signal * x0) / level.sigma


def _draw_fn(
    keys: chex.PRNGKey | None, noise: jax.Array | None, shape: tuple[int, int], num_draws: int, dtype: jnp.dtype
) -> Callable[[jax.Array], jax.Array]:
    """i -> the i-th standard normal array [B, H, C], recorded or drawn; 0 is the initial one, the last may repeat."""
    if noise is not None:
        if noise.ndim != 4 or noise.shape[2:] != tuple(shape) or noise.shape[0] < 1 + num_draws:
            raise ValueError(f"noise must be [>= {1 + num_draws}, B, {shape[0]}, {shape[1]}], got {noise.shape}")
        return lambda i: noise[jnp.minimum(i, num_draws)]
    if keys is None or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        got = "None" if keys is None else f"{keys.dtype} {keys.shape}"
        raise ValueError(f"keys must be typed keys [B], one per plan, got {got}; use jax.random.split(key, B)")

    def draw(i: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape, dtype))(keys)

    return draw


def _check_levels(levels: Sequence[int], schedule: NoiseSchedule) -> np.ndarray:
    """Levels as an int32 array; ValueError unless they fall (the last may repeat) within -1..K-1."""
    levels = np.asarray(levels, np.int32)
    is_valid = levels.ndim == 1 and len(levels) >= 2 and levels[0] < schedule.num_steps and levels[-1] >= -1
    falls = np.diff(levels)
    if not is_valid or np.any(falls[:-1] >= 0) or falls[-1] > 0:
        raise ValueError(
            f"levels must fall from at most {schedule.num_steps - 1} to at least -1 (clean), got {levels.tolist()}"
        )
    return levels
