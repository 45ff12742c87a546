"""Beam solvers: fractional programming (= WMMSE) steps, closed-form directions, discrete searches.

Normalised units (noise 1, |w| <= 1), index order [base station i, user j], amplitudes h_ij^T w_i. Everything follows
the dtype of its inputs: in float32 deep nulls need more than 24 bits and cost 0.03-0.08 bit/s/Hz, so expert data is
made under `jax.enable_x64`.

One fractional programming step (Shen, Yu, IEEE TSP 66(10), 2018; the same update as WMMSE): with S_n = h_nn^T w_n,
d = |S|^2, prices a_k = d_k / (IN_k (IN_k + d_k)),

    w_n <- (A_n + eta I)^-1 (S_n / IN_n) h_nn^*,   A_n = sum_k a_k h_nk^* h_nk^T over all k (n included),

eta >= 0 the smallest with |w_n| <= 1. The sum rate never falls.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from networld_envs.cbf_hermitian import hermitian_eigen
from networld_envs.cbf_links import (
    interference_price,
    leakage_matrices,
    off_diagonal,
    own,
    received_amplitude,
    unit,
)
from networld_envs.channel import squared_magnitude

FLOOR_NORM = 0.1  # a beam below a tenth of sqrt(P_max) is restarted: a silent cell is a fixed point of the update
NEWTON_STEPS = 8


def matched_filter(channel: jax.Array) -> jax.Array:
    """Maximum ratio transmission h^* / |h| at full power, [..., K]."""
    return unit(channel.conj())[0]


def power_constrained_solve(matrix: jax.Array, target: jax.Array) -> jax.Array:
    """(A + eta I)^-1 b with the smallest eta >= 0 that gives |w| <= 1; A [..., K, K] positive semidefinite, b [..., K].

    With eigenvalues lambda and q = Q^H b the norm is sqrt(sum |q|^2 / (lambda + eta)^2). Its reciprocal is concave and
    almost linear in eta, so Newton's method climbs to the root from below without a safeguard, starting at the largest
    eta that any single term asks for (within sqrt(K) of the norm).
    """
    chex.assert_equal(matrix.shape[:-1], target.shape)
    values, vectors = hermitian_eigen(matrix)
    projection = jnp.sum(vectors.conj() * target[..., :, None], axis=-2)
    size = jnp.sqrt(squared_magnitude(projection))
    tiny = jnp.finfo(size.dtype).tiny ** 0.25  # its square and cube stay representable
    values = jnp.maximum(values, 0.0) + tiny

    def newton(_, eta):
        shifted = values + eta[..., None]
        ratio = size / shifted
        norm_squared = jnp.sum(ratio**2, axis=-1)
        slope = jnp.maximum(jnp.sum(ratio**2 / shifted, axis=-1), tiny**2)
        step = norm_squared / slope * (jnp.sqrt(norm_squared) - 1.0)
        return jnp.maximum(eta + step, 0.0)

    eta = jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.max(jnp.maximum(size - values, 0.0), axis=-1))
    beam = jnp.sum(vectors * (projection / (values + eta[..., None]))[..., None, :], axis=-1)
    norm_squared = jnp.sum(squared_magnitude(beam), axis=-1)
    return beam * jax.lax.rsqrt(jnp.maximum(norm_squared, 1.0))[..., None]  # the last ulp of the constraint


def lift_silent(beam: jax.Array, channel: jax.Array) -> jax.Array:
    """Beams [N, K] with |w| < 0.1 replaced by 0.1 times the matched filter of the own channel [N, K]."""
    silent = jnp.sum(squared_magnitude(beam), axis=-1) < FLOOR_NORM**2
    return jnp.where(silent[:, None], FLOOR_NORM * matched_filter(channel), beam)


def fp_step(channel: jax.Array, beam: jax.Array) -> jax.Array:
    """One step on known channels [N, N, K], beams [N, K]: all cells update at once."""
    chex.assert_rank([channel, beam], [3, 2])
    amplitude = received_amplitude(channel, beam)
    received = squared_magnitude(amplitude)
    interference = 1.0 + jnp.sum(off_diagonal(received), axis=0)
    price = interference_price(own(received), interference)
    leakage = leakage_matrices(channel, price, jnp.ones_like(received))
    target = (own(amplitude) / interference)[:, None] * own(channel).conj()
    return power_constrained_solve(leakage, target)


def fractional_programming(channel: jax.Array, beam: jax.Array, num_iterations: int) -> jax.Array:
    """`num_iterations` steps from `beam`."""
    return jax.lax.fori_loop(0, num_iterations, lambda _, w: fp_step(channel, w), beam)


def statistical_step(own_moment: jax.Array, own_target: jax.Array, moment: jax.Array, beam: jax.Array) -> jax.Array:
    """The step with cross links known through second moments only.

    Args: own_moment [N, K, K] of the own link; own_target [N, K] (own_moment w, or h^* (h^T w) with the channel known);
    moment [N, N, K, K] with R_ij = E[h_ij^* h_ij^T]; beam [N, K].
    """
    spread = jnp.sum(moment * beam[:, None, None, :], axis=-1)  # R_ij w_i, [N, N, K]
    power = jnp.sum((beam.conj()[:, None, :] * spread).real, axis=-1)
    interference = 1.0 + jnp.sum(off_diagonal(power), axis=0)
    wanted = jnp.sum((beam.conj() * own_target).real, axis=-1)
    price = interference_price(wanted, interference)
    cross = jnp.where(jnp.eye(beam.shape[0], dtype=bool), 0.0, price[None, :])
    leakage = jnp.sum(cross[..., None, None] * moment, axis=1) + price[:, None, None] * own_moment
    return power_constrained_solve(leakage, own_target / interference[:, None])


def robust_wmmse(own_channel: jax.Array, moment: jax.Array, beam: jax.Array, num_iterations: int) -> jax.Array:
    """Own channel [N, K] known, cross links through their second moments [N, N, K, K]."""
    own_moment = own_channel.conj()[:, :, None] * own_channel[:, None, :]

    def step(_, w):
        target = jnp.sum(own_channel * w, axis=-1)[:, None] * own_channel.conj()
        return statistical_step(own_moment, target, moment, w)

    return jax.lax.fori_loop(0, num_iterations, step, beam)


def static_beams(moment: jax.Array, beam: jax.Array, num_iterations: int) -> jax.Array:
    """Beams for the statistics alone: own links, too, through second moments [N, N, K, K]."""
    own_moment = own(moment)

    def step(_, w):
        return statistical_step(own_moment, jnp.sum(own_moment * w[:, None, :], axis=-1), moment, w)

    return jax.lax.fori_loop(0, num_iterations, step, beam)


def local_fp_beam(
    channel: jax.Array, beam: jax.Array, interference: jax.Array, leakage: jax.Array, wanted: jax.Array | None = None
) -> jax.Array:
    """One step of a single base station from what it knows; leading axes are batch.

    Args:
      channel: [..., K] own h(t), up to a common phase (only |S| matters: the step fixes w up to that phase).
      beam: [..., K] own w(t-1); interference: [...] IN measured on (H(t), w(t-1)).
      leakage: [..., K, K] sum over k != n of a_k h_nk^* h_nk^T, slot t-1.
      wanted: [...] |h^T w|^2 if the phases of channel and beam are not consistent with each other.
    """
    if wanted is None:
        wanted = squared_magnitude(jnp.sum(channel * beam, axis=-1))
    price = interference_price(wanted, interference)
    own_leakage = price[..., None, None] * channel.conj()[..., :, None] * channel[..., None, :]
    target = (jnp.sqrt(wanted) / interference)[..., None] * channel.conj()
    return power_constrained_solve(leakage + own_leakage, target)


def action_gains(channel: jax.Array, directions: jax.Array, powers: jax.Array) -> jax.Array:
    """Received power [N, actions, N] at user k if base station n takes a discrete action; directions [actions, K]."""
    amplitude = sum(channel[:, None, :, k] * directions[None, :, None, k] for k in range(directions.shape[-1]))
    return powers[None, :, None] * squared_magnitude(amplitude)


def coordinate_ascent(gains: jax.Array, index: jax.Array, num_sweeps: int) -> jax.Array:
    """Cells in turn take the action of the largest sum rate, all others fixed: [N] from gains [N, actions, N]."""
    num_agents = gains.shape[0]
    agents = jnp.arange(num_agents)

    def visit(step, index):
        n = step % num_agents
        received = off_diagonal(gains[agents, index])
        others = jnp.where((agents == n)[:, None], 0.0, received)
        wanted = gains[agents, index, agents]
        mine = gains[n]  # [actions, N]
        interference = 1.0 + jnp.sum(others, axis=0)[None, :] + jnp.where(agents == n, 0.0, mine)
        numerator = jnp.where(agents == n, mine, wanted[None, :])
        sum_rate = jnp.sum(jnp.log2(1.0 + numerator / interference), axis=-1)
        return index.at[n].set(jnp.argmax(sum_rate).astype(index.dtype))

    return jax.lax.fori_loop(0, num_sweeps * num_agents, visit, index)


def best_response(
    own_gains: jax.Array, interference: jax.Array, gains: jax.Array, wanted: jax.Array, without: jax.Array
) -> jax.Array:
    """All cells at once take the action with the largest own reward over all victims, [N] indices.

    Args: own_gains [N, actions] on H(t); interference [N] current; from slot t-1: gains [N, actions, N],
    wanted [N], without [n, k] interference at user k without n.
    """
    rate = jnp.log2(1.0 + own_gains / interference[:, None])
    clean = jnp.log2(1.0 + wanted[None, :] / without)
    harmed = jnp.log2(1.0 + wanted[None, None, :] / (without[:, None, :] + gains))
    loss = clean[:, None, :] - harmed
    own_user = jnp.eye(gains.shape[0], dtype=bool)[:, None, :]
    return jnp.argmax(rate - jnp.sum(jnp.where(own_user, 0.0, loss), axis=-1), axis=-1)
