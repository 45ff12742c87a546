"""A fluid model of network slicing: expected SSR of a window from user counts, RBs and the interference around.

Packets of slice n arrive at rate lambda_n per user and slot, so with u users a packet meets J ~ Poisson(lambda_n u)
others and gets k / (J + 1) of its slice's k RBs. It succeeds with probability F_n(b, load) on b RBs, over positions,
shadowing and size, when every other BS uses the share `load` of its RBs. Then

    video, URLLC:  SSR = E_J [ F_n(k / (J + 1), load) ]          VoLTE: 1 - rho exp(-22 (1 - rho)), rho = lambda u / k

(video has to be fast in its first slot, URLLC has to finish in it; VoLTE has 12 slots: a queue's tail).
No packet: SSR 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from networld_envs import ns_mobility as mobility
from networld_envs import ns_slots as slots
from networld_envs import ns_traffic as traffic
from networld_envs.ns import NSParams
from networld_envs.ns_slots import RB_HZ

LOADS = np.linspace(0.0, 1.0, 11)
MAX_OTHERS = 48  # J is cut here
_VOLTE_SLOTS = 11  # spare slots of a VoLTE packet: 51 kb/s for 320 bit end after 12


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Tables of one parameter set. K = whole RBs in W."""

    num_rbs: int
    window_slots: int
    packets_per_slot: tuple[float, float, float]  # lambda_n per user
    shared: jax.Array  # [loads, 2, K + 1, J] success of video and URLLC when J others share the k RBs, central cell
    coupling: jax.Array  # [N, N] share of the central cell's full interference that BS j causes in cell m at full load


def _cell_users(params: NSParams, num: int, rng: np.random.Generator) -> np.ndarray:
    """[num, 2] offsets uniform in a hexagon of the layout (nearest to the origin among the six neighbours)."""
    angle = np.deg2rad(np.arange(6) * 60.0 - 30.0)
    around = params.inter_site_m * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    points = rng.uniform(-params.cell_radius_m, params.cell_radius_m, (4 * num, 2))
    inside = (points @ around.T <= (around**2).sum(-1) / 2).all(axis=-1)
    return points[inside][:num]


@functools.lru_cache(maxsize=8)
def _tables(params_key, num_samples: int = 4000):
    params = params_key.params
    rng = np.random.default_rng(0)
    users = _cell_users(params, num_samples, rng)
    num_rbs = int(params.bandwidth_hz // RB_HZ)
    centres = params.centres_m
    snr = np.asarray(mobility.snr_per_rb(jnp.asarray(users, jnp.float32), params), np.float64)
    inr_sum = snr[:, 1:].sum(axis=1) * (RB_HZ / params.bandwidth_hz) * (1.0 if params.has_interference else 0.0)
    coupling = np.zeros((len(centres), len(centres)))
    if params.has_interference and len(centres) > 1:
        for m, centre in enumerate(centres):
            to_users = np.asarray(mobility.snr_per_rb(jnp.asarray(users + centre, jnp.float32), params), np.float64)
            share = to_users * (RB_HZ / params.bandwidth_hz) / inr_sum[:, None]
            coupling[m] = share.mean(axis=0) * (np.arange(len(centres)) != m)
        coupling /= coupling[0].sum()
    shadow = 10 ** (-float(params.shadow_std_db) * rng.standard_normal(len(users)) / 10)
    size = rng.choice(traffic.URLLC_BITS[params.urllc_size], len(users))
    video_bps, urllc_bps = params.rules.rate_threshold_bps[1:]
    success = np.zeros((2, len(LOADS), num_rbs + 1))
    for i, load in enumerate(LOADS):
        for b in range(1, num_rbs + 1):
            sinr = snr[:, 0] * shadow / (1 + load * inr_sum) / b
            rate = b * RB_HZ * float(params.mimo_factor) * np.log10(1 + sinr)
            success[0, i, b] = (rate >= video_bps).mean()
            success[1, i, b] = ((rate * slots.SLOT_S >= size) & (rate >= urllc_bps)).mean()
    return success, coupling


@dataclasses.dataclass(frozen=True)
class _Key:
    """Hashable stand-in for params: the fields that the tables depend on."""

    values: tuple
    params: NSParams = dataclasses.field(compare=False, hash=False)


def packets_per_slot(traffic_load: tuple[float, ...]) -> tuple[float, ...]:
    """lambda_n, one over the mean gap in whole slots (midpoint rule on the inverse distribution function)."""
    uniform = jnp.asarray((np.arange(1 << 16) + 0.5) / (1 << 16), jnp.float32)
    gaps = [traffic.gap_slots(jnp.full(uniform.shape, n), uniform, traffic_load) for n in range(3)]
    return tuple(1 / float(np.mean(np.asarray(gap), dtype=np.float64)) for gap in gaps)


def make_model(params: NSParams) -> Model:
    """The model of concrete (untraced) parameters."""
    with jax.ensure_compile_time_eval():  # also when called inside a trace
        return _make_model(params)


def _make_model(params: NSParams) -> Model:
    fields = ("num_cells", "cell_radius_m", "urllc_size", "has_interference", "rules", "bandwidth_hz", "mimo_factor",
              "tx_power_dbw", "antenna_gain_db", "noise_dbw_hz", "shadow_std_db")  # fmt: skip
    success, coupling = _tables(_Key(tuple(jax.tree.leaves([getattr(params, f) for f in fields])), params))
    others = np.arange(MAX_OTHERS + 1) + 1
    k = np.arange(success.shape[-1])[:, None]
    base, extra = k // others, (k % others) / others  # a share of the users gets one RB more
    shared = success[..., base] * (1 - extra) + success[..., np.minimum(base + 1, k[-1])] * extra
    as_array = functools.partial(jnp.asarray, dtype=jnp.float32)
    rates = packets_per_slot(params.traffic_load)
    shared = as_array(np.moveaxis(shared, 0, 1))
    return Model(success.shape[-1] - 1, params.window_slots, rates, shared, as_array(coupling))


def _leading(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.reshape((1,) * (like.ndim - 1) + x.shape)


def _poisson(mean: jax.Array) -> jax.Array:
    """[..., MAX_OTHERS + 1] probabilities of 0, 1, ..., the last one takes the rest."""
    j = jnp.arange(MAX_OTHERS)
    log_factorial = jnp.asarray([math.lgamma(i + 1) for i in range(MAX_OTHERS)], mean.dtype)
    safe = jnp.maximum(mean[..., None], 1e-9)
    p = jnp.exp(_leading(j, safe) * jnp.log(safe) - safe - _leading(log_factorial, safe))
    return jnp.concatenate([p, jnp.maximum(1 - p.sum(-1, keepdims=True), 0)], axis=-1)


def around_load(model: Model, load: jax.Array) -> jax.Array:
    """[N] load felt in each cell, from the loads [N] of all."""
    return model.coupling @ load


def ssr_curves(model: Model, users: jax.Array, load: jax.Array) -> jax.Array:
    """[N, 3, K + 1] expected SSR of each slice for 0..K RBs; users [N, 3] (reals), load [N] felt around."""
    lam = jnp.asarray(model.packets_per_slot, users.dtype)[None, :]
    k = jnp.arange(model.num_rbs + 1)
    position = jnp.clip(load, 0, 1) * (len(LOADS) - 1)
    low = jnp.minimum(position.astype(jnp.int32), len(LOADS) - 2)
    weight = (position - low)[:, None, None, None]
    shared = model.shared[low] * (1 - weight) + model.shared[low + 1] * weight
    p = _poisson(lam[:, 1:] * users[:, 1:])
    fast = jnp.einsum("nskj,nsj->nsk", shared, p)
    rho = lam[:, :1] * users[:, :1] / jnp.maximum(k, 1)[None, :]
    volte = jnp.where(rho < 1, 1 - rho * jnp.exp(-2 * _VOLTE_SLOTS * (1 - rho)), 0.0) * (k > 0)[None, :]
    ssr = jnp.concatenate([volte[:, None], fast], axis=1)
    silent = jnp.exp(-lam * users * model.window_slots)[..., None]
    return silent + (1 - silent) * ssr


def expected_load(model: Model, users: jax.Array, rbs: jax.Array) -> jax.Array:
    """[N] share of RBs in use: sum_n k_n / K P(some packet), users and rbs [N, 3]."""
    lam = jnp.asarray(model.packets_per_slot, users.dtype)[None, :]
    return (rbs / model.num_rbs * (1 - jnp.exp(-lam * users))).sum(axis=-1)
