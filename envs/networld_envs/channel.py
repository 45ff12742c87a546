"""Narrowband multi-antenna channels between base stations and users: geometry, path loss, paths, correlated fading.

Axes beyond the common legend: `N` base stations i and users j (user n belongs to base station n), `K` antennas, `L`
paths, `M` fading coefficients of a link. The channel of a link is a fixed linear map of its M fading coefficients,

    h_ij(t) = sum_m g_ijm(t) response_ijm,      g(t+1) = rho g(t) + sqrt(1 - rho^2) e,   e ~ CN(0, 1),

with one coefficient per path (M = L), or, where K < L, with K equivalent ones that give h(t) exactly the same law
(`equivalent_responses`): a quarter fewer normals for the K = 3, L = 4 of this project.

Model: Ge, Liang, Joung, Sun, "Deep Reinforcement Learning for Distributed Dynamic MISO Downlink-Beamforming
Coordination", IEEE Trans. Commun. 68(10), 2020.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from networld_envs import prng


def complex_normal(key: chex.PRNGKey, shape: tuple[int, ...]) -> jax.Array:
    """CN(0, 1) draws of `shape`: independent real and imaginary parts of variance 1/2."""
    real, imag = prng.normal(key, (2, *shape)) * jnp.sqrt(0.5)
    return jax.lax.complex(real, imag)


def draw_users(key: chex.PRNGKey, bs_xy_m: jax.Array, min_distance_m: float, max_distance_m: float) -> jax.Array:
    """One user per base station: azimuth uniform, distance uniform in radius (not in area). [N, 2] m."""
    chex.assert_shape(bs_xy_m, (None, 2))
    azimuth_key, distance_key = jax.random.split(key)
    num_users = bs_xy_m.shape[0]
    azimuth_rad = jax.random.uniform(azimuth_key, (num_users,), maxval=2 * jnp.pi)
    distance_m = jax.random.uniform(distance_key, (num_users,), minval=min_distance_m, maxval=max_distance_m)
    offset_m = distance_m[:, None] * jnp.stack([jnp.cos(azimuth_rad), jnp.sin(azimuth_rad)], axis=-1)
    return bs_xy_m + offset_m


def path_loss_db(distance_m: jax.Array) -> jax.Array:
    """120.9 + 37.6 log10(d / 1 km) dB (3GPP urban macro at 2 GHz)."""
    return 120.9 + 37.6 * jnp.log10(distance_m / 1000.0)


def draw_path_gain(key: chex.PRNGKey, bs_xy_m: jax.Array, ue_xy_m: jax.Array, shadowing_db: float) -> jax.Array:
    """Linear power gain [N, N] from base station i to user j: path loss and independent log-normal shadowing.

    `shadowing_db` is the standard deviation in dB.
    """
    chex.assert_equal_shape([bs_xy_m, ue_xy_m])
    offset_m = ue_xy_m[None, :] - bs_xy_m[:, None]
    distance_m = jnp.sqrt(jnp.sum(offset_m**2, axis=-1))
    shadowing = shadowing_db * jax.random.normal(key, distance_m.shape)
    return 10.0 ** (-(path_loss_db(distance_m) + shadowing) / 10.0)


def azimuth_rad(bs_xy_m: jax.Array, ue_xy_m: jax.Array) -> jax.Array:
    """Direction [N, N] in [0, 2 pi) of user j seen from base station i."""
    chex.assert_equal_shape([bs_xy_m, ue_xy_m])
    offset_m = ue_xy_m[None, :] - bs_xy_m[:, None]
    return jnp.mod(jnp.arctan2(offset_m[..., 1], offset_m[..., 0]), 2 * jnp.pi)


def draw_path_angles(
    key: chex.PRNGKey, nominal_rad: jax.Array, num_paths: int, spread_rad: float, one_sided: bool
) -> jax.Array:
    """Departure angles [..., L] of a link's paths around its nominal direction [...], u ~ U(0, 1) per path:

    nominal + (u - 1/2) spread, or as in the published code (`one_sided`) nominal + (u/2 - 1) spread.
    """
    u = jax.random.uniform(key, (*nominal_rad.shape, num_paths))
    deviation = (0.5 * u - 1.0) if one_sided else (u - 0.5)
    return nominal_rad[..., None] + deviation * spread_rad


def steering_vectors(angle_rad: jax.Array, num_antennas: int) -> jax.Array:
    """exp(j pi k cos(angle)) / sqrt(K), k = 0..K-1: unit responses [..., K] of a half-wavelength array along x."""
    antenna = jnp.arange(num_antennas, dtype=angle_rad.dtype)
    phase_rad = jnp.pi * jnp.cos(angle_rad)[..., None] * antenna.reshape((1,) * angle_rad.ndim + (-1,))
    return jax.lax.complex(jnp.cos(phase_rad), jnp.sin(phase_rad)) / jnp.sqrt(float(num_antennas))


def equivalent_responses(responses: jax.Array) -> jax.Array:
    """K responses [..., K, K] with the same covariance sum_l a_l^* a_l^T as the L > K paths [..., L, K] they replace.

    They are the triangular factor of the QR decomposition of the [L, K] matrix of paths, by modified Gram-Schmidt. The
    Cholesky factor of the covariance is the same matrix, but the paths of a link are almost parallel and squaring them
    first would lose the smaller directions in float32.
    """
    num_antennas = responses.shape[-1]
    basis: list[jax.Array] = []
    columns = []
    for k in range(num_antennas):
        residual = responses[..., k]  # [..., L]
        entries = []
        for q in basis:
            projection = jnp.sum(q.conj() * residual, axis=-1)
            residual = residual - q * projection[..., None]
            entries.append(projection)
        norm = jnp.sqrt(jnp.sum(squared_magnitude(residual), axis=-1))
        basis.append(residual / jnp.where(norm > 0, norm, 1.0)[..., None])
        zeros = [jnp.zeros_like(entries[0] if entries else norm.astype(responses.dtype))] * (num_antennas - k - 1)
        columns.append(jnp.stack([*entries, norm.astype(responses.dtype), *zeros], axis=-1))
    return jnp.stack(columns, axis=-1)


def combine_paths(coefficients: jax.Array, responses: jax.Array) -> jax.Array:
    """h = sum_m g_m response_m: [..., M] and [..., M, K] to [..., K]. Multiply-and-sum: no reduced-precision matmul."""
    chex.assert_equal_shape_prefix([coefficients, responses], coefficients.ndim)
    return sum(coefficients[..., m, None] * responses[..., m, :] for m in range(responses.shape[-2]))


def fade(coefficients: jax.Array, innovation: jax.Array, correlation: float) -> jax.Array:
    """One slot of first-order autoregressive fading, rho g + sqrt(1 - rho^2) e; keeps unit variance."""
    chex.assert_equal_shape([coefficients, innovation])
    return correlation * coefficients + jnp.sqrt(1.0 - correlation**2) * innovation


def squared_magnitude(z: jax.Array) -> jax.Array:
    """|z|^2 without the square root that `abs` takes (and without its gradient at 0)."""
    return z.real**2 + z.imag**2
