"""Noise schedules: how much signal and noise x_k = signal_k x0 + sigma_k noise holds at each diffusion step k.

Steps run from k = 0 (almost clean) to k = K-1 (almost pure noise). A variance-preserving schedule is one number per
step; stored is half the log signal-to-noise ratio, lambda_k = log(signal_k / sigma_k), from which
alphas_bar and 1 - alphas_bar are both exact in float32 (stored betas would cost 1 - alphas_bar up to four digits at the
clean end).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike, DTypeLike


class Level(NamedTuple):
    """One noise level; the fields broadcast with each other."""

    signal: jax.Array  # factor of x0, sqrt(alphas_bar)
    sigma: jax.Array  # factor of the noise, sqrt(1 - alphas_bar)
    half_log_snr: jax.Array  # log(signal / sigma); infinite for clean data, -infinite for pure noise


@struct.dataclass
class NoiseSchedule:
    """Variance-preserving noise schedule over K steps; everything but `half_log_snr` is derived.

    Notation of Ho et al. 2020: beta_k is the variance added in step k, alphas_bar_k = prod_{i<=k} (1 - beta_i).
    """

    half_log_snr: jax.Array  # [K] lambda_k = log(signal_k / sigma_k), falling in k

    @property
    def num_steps(self) -> int:
        """K."""
        return self.half_log_snr.shape[0]

    @property
    def alphas_bar(self) -> jax.Array:
        """[K] signal^2."""
        return jax.nn.sigmoid(2 * self.half_log_snr)

    @property
    def alphas_bar_previous(self) -> jax.Array:
        """[K] alphas_bar_{k-1}; the step before the first is clean data (1)."""
        return jax.nn.sigmoid(2 * self._half_log_snr_previous)

    @property
    def signal(self) -> jax.Array:
        """[K] sqrt(alphas_bar), the factor of x0 in x_k."""
        return jnp.sqrt(self.alphas_bar)

    @property
    def sigma(self) -> jax.Array:
        """[K] sqrt(1 - alphas_bar), the factor of the noise in x_k."""
        return jnp.sqrt(jax.nn.sigmoid(-2 * self.half_log_snr))

    @property
    def betas(self) -> jax.Array:
        """[K] 1 - alphas_bar_k / alphas_bar_{k-1}."""
        log_ratio = jax.nn.log_sigmoid(2 * self.half_log_snr) - jax.nn.log_sigmoid(2 * self._half_log_snr_previous)
        return -jnp.expm1(log_ratio)

    @property
    def posterior_variance(self) -> jax.Array:
        """[K] variance of q(x_{k-1} | x_k, x0): beta_k (1 - alphas_bar_{k-1}) / (1 - alphas_bar_k); 0 at k = 0."""
        sigma_previous_squared = jax.nn.sigmoid(-2 * self._half_log_snr_previous)
        return -sigma_previous_squared * jnp.expm1(2 * (self.half_log_snr - self._half_log_snr_previous))

    @property
    def posterior_log_variance_clipped(self) -> jax.Array:
        """[K] log posterior_variance, with 1e-20 in place of smaller variances."""
        return jnp.log(jnp.maximum(self.posterior_variance, 1e-20))

    @property
    def posterior_mean_coef1(self) -> jax.Array:
        """[K] factor of x0 in the mean of q(x_{k-1} | x_k, x0): beta_k sqrt(alphas_bar_{k-1}) / (1 - alphas_bar_k)."""
        one_minus_ratio = -jnp.expm1(2 * (self.half_log_snr - self._half_log_snr_previous))
        return jnp.sqrt(self.alphas_bar_previous) * one_minus_ratio

    @property
    def posterior_mean_coef2(self) -> jax.Array:
        """[K] factor of x_k in that mean: sqrt(1 - beta_k) (1 - alphas_bar_{k-1}) / (1 - alphas_bar_k)."""
        sigma_previous_squared = jax.nn.sigmoid(-2 * self._half_log_snr_previous)
        return jnp.sqrt(1 - self.betas) * sigma_previous_squared / self.sigma**2

    def level(self, k: jax.Array) -> Level:
        """The noise level of step k [...]; k = -1 is clean data, k = K pure noise."""
        ends = jnp.array([-jnp.inf, jnp.inf], self.half_log_snr.dtype)
        half_log_snr = jnp.concatenate([self.half_log_snr, ends])[k]  # index -1 wraps to the last entry
        signal_squared, sigma_squared = jax.nn.sigmoid(2 * half_log_snr), jax.nn.sigmoid(-2 * half_log_snr)
        return Level(jnp.sqrt(signal_squared), jnp.sqrt(sigma_squared), half_log_snr)

    @property
    def _half_log_snr_previous(self) -> jax.Array:
        return jnp.concatenate([jnp.full_like(self.half_log_snr[:1], jnp.inf), self.half_log_snr[:-1]])


def schedule_from_levels(signal: ArrayLike, sigma: ArrayLike, dtype: DTypeLike = jnp.float32) -> NoiseSchedule:
    """The schedule with given signal and noise scales, both [K], signal^2 + sigma^2 = 1, signal / sigma falling.

    Raises:
      ValueError: unless the scales are positive, variance preserving to 1e-3 and ordered from clean to noisy.
    """
    signal, sigma = np.asarray(signal, np.float64), np.asarray(sigma, np.float64)
    if signal.ndim != 1 or signal.shape != sigma.shape or signal.size == 0:
        raise ValueError(f"signal and sigma must be arrays [K], K >= 1, got shapes {signal.shape} and {sigma.shape}")
    if not (np.all(signal > 0) and np.all(sigma > 0) and np.allclose(signal**2 + sigma**2, 1, atol=1e-3)):
        raise ValueError("signal and sigma must be positive with signal**2 + sigma**2 = 1 at every level")
    half_log_snr = np.log(signal) - np.log(sigma)
    if not np.all(np.diff(half_log_snr) < 0):
        raise ValueError("levels must be ordered from clean to noisy: signal / sigma must fall strictly")
    return NoiseSchedule(jnp.asarray(half_log_snr, dtype))


def schedule_from_betas(betas: ArrayLike, dtype: DTypeLike = jnp.float32) -> NoiseSchedule:
    """The schedule with noise variances `betas` [K], each in (0, 1): alphas_bar = cumprod(1 - betas)."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not (np.all(betas > 0) and np.all(betas < 1)):
        raise ValueError(f"betas must be an array [K] with every entry in (0, 1), got {betas}")
    log_alphas_bar = np.cumsum(np.log1p(-betas))
    half_log_snr = (log_alphas_bar - np.log(-np.expm1(log_alphas_bar))) / 2
    return NoiseSchedule(jnp.asarray(half_log_snr, dtype))


def cosine_schedule(
    num_steps: int, s: float = 0.008, max_beta: float = 0.999, dtype: DTypeLike = jnp.float32
) -> NoiseSchedule:
    """Cosine schedule (Nichol & Dhariwal 2021) with the grid of Diffuser (Janner et al. 2022).

    u_i = i (K+1)/K for i = 0..K (the K+1 points span [0, K+1], not [0, K]), f_i = cos^2(pi/2 (u_i/(K+1) + s)/(1+s)),
    beta_k = min(1 - f_{k+1} / f_k, max_beta).

    Args:
      num_steps: K, at least 1.
      s: offset that keeps the first betas from vanishing.
      max_beta: cap of the last beta, which is 1 without it.
    """
    _check_num_steps(num_steps)
    u = np.linspace(0, 1, num_steps + 1)
    f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return schedule_from_betas(np.clip(1 - f[1:] / f[:-1], None, max_beta), dtype)


def linear_schedule(
    num_steps: int, beta_first: float = 1e-4, beta_last: float = 0.02, dtype: DTypeLike = jnp.float32
) -> NoiseSchedule:
    """betas rising linearly (Ho et al. 2020); both ends are meant for K = 1000, scaled by 1000 / K, at most 0.999."""
    _check_num_steps(num_steps)
    betas = np.linspace(beta_first, beta_last, num_steps) * (1000 / num_steps)
    return schedule_from_betas(np.minimum(betas, 0.999), dtype)


def cosine_levels(
    num_steps: int,
    s: float = 0.008,
    time_first: float = 1e-3,
    time_max: float = 0.9946,
    dtype: DTypeLike = jnp.float32,
) -> NoiseSchedule:
    """Continuous cosine schedule read at K evenly spaced times, as discretised by CleanDiffuser (Dong et al. 2024).

    signal_k = cos(pi/2 (min(t_k, time_max) + s)/(1+s)) / cos(pi/2 s/(1+s)), t_k from `time_first` to 1. Unlike
    `cosine_schedule` its first level is nearly clean (alphas_bar = 0.99996), which suits ODE samplers that stop there.
    """
    _check_num_steps(num_steps)
    time = np.minimum(np.linspace(time_first, 1, num_steps), time_max)
    signal = np.cos(np.pi / 2 * (time + s) / (1 + s)) / np.cos(np.pi / 2 * s / (1 + s))
    return schedule_from_levels(signal, np.sqrt(1 - signal**2), dtype)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
