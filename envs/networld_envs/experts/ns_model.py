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
from networld_envs.experts import ns_deadline
from networld_envs.ns_params import NSParams
from networld_envs.ns_slots import RB_HZ

LOADS = np.linspace(0.0, 1.0, 11)
URLLC_LOADS = np.array([0.0, 0.5, 1.0])
MAX_OTHERS = 48  # J is cut here
_VOLTE_SLOTS = 12  # spare slots of a VoLTE packet: 51 kb/s for 320 bit end after 12


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Tables of one parameter set. K = whole RBs in W."""

    num_rbs: int
    window_slots: int
    packets_per_slot: tuple[float, float, float]  # lambda_n per user
    one_rb: jax.Array  # [loads] probability that one RB carries a VoLTE packet in one slot
    video: jax.Array  # [loads, K + 1, J] success when J others share the k RBs, central cell
    urllc: jax.Array  # [loads, ns_deadline.RATES, K + 1] success when packets arrive at that rate, central cell
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
    video_bps = params.rules.rate_threshold_bps[1]
    video, one_rb = np.zeros((len(LOADS), num_rbs + 1)), np.zeros((len(LOADS), 1))
    for i, load in enumerate(LOADS):
        for b in range(1, num_rbs + 1):
            sinr = snr[:, 0] * shadow / (1 + load * inr_sum) / b
            rate = b * RB_HZ * float(params.mimo_factor) * np.log10(1 + sinr)
            video[i, b] = (rate >= video_bps).mean()
            if b == 1:
                one_rb[i] = (rate * slots.SLOT_S >= traffic.VOLTE_BITS).mean()
    return video, coupling, one_rb, _urllc_table(params, snr[:, 0], inr_sum, num_rbs)


def _urllc_table(params: NSParams, snr_rb: np.ndarray, inr: np.ndarray, num_rbs: int) -> np.ndarray:
    """[loads, ns_deadline.RATES, K + 1]"""
    cell = ns_deadline.Cell(
        snr_rb, inr, traffic.URLLC_BITS[params.urllc_size], params.rules.latency_limit_slots[2],
        params.rules.rate_threshold_bps[2], float(params.mimo_factor), float(params.shadow_std_db),
    )  # fmt: skip
    k = np.unique(np.round(num_rbs * np.linspace(0, 1, 12) ** 1.5).astype(int))  # denser where it is steep
    coarse = ns_deadline.success_table(cell, k, URLLC_LOADS)
    coarse = np.apply_along_axis(lambda row: np.interp(np.arange(num_rbs + 1), k, row), -1, coarse)
    loads = np.apply_along_axis(lambda column: np.interp(LOADS, URLLC_LOADS, column), 0, coarse)
    return np.maximum.accumulate(loads, axis=-1)


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
    video, coupling, one_rb, urllc = _tables(_Key(tuple(jax.tree.leaves([getattr(params, f) for f in fields])), params))
    others = np.arange(MAX_OTHERS + 1) + 1
    k = np.arange(video.shape[-1])[:, None]
    base, extra = k // others, (k % others) / others  # a share of the users gets one RB more
    video = video[..., base] * (1 - extra) + video[..., np.minimum(base + 1, k[-1])] * extra
    as_array = functools.partial(jnp.asarray, dtype=jnp.float32)
    rates = packets_per_slot(params.traffic_load)
    arrays = (as_array(x) for x in (one_rb[:, 0], video, urllc, coupling))
    return Model(k.size - 1, params.window_slots, rates, *arrays)


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


def between(table: jax.Array, position: jax.Array) -> jax.Array:
    """table [P, ...] at real positions [N] in 0..P - 1, linearly interpolated: [N, ...]."""
    low = jnp.clip(position.astype(jnp.int32), 0, table.shape[0] - 2)
    weight = (position - low).reshape(-1, *[1] * (table.ndim - 1))
    return table[low] * (1 - weight) + table[low + 1] * weight


def ssr_curves(model: Model, users: jax.Array, load: jax.Array) -> jax.Array:
    """[N, 3, K + 1] expected SSR of each slice for 0..K RBs; users [N, 3] (reals), load [N] felt around."""
    rate = jnp.asarray(model.packets_per_slot, users.dtype)
    arriving = rate[None, :] * users  # packets per slot
    position = jnp.clip(load, 0, 1) * (len(LOADS) - 1)
    k = jnp.arange(model.num_rbs + 1, dtype=users.dtype)
    volte = volte_ssr(rate[0], users[:, :1], k[None, :] * between(model.one_rb, position)[:, None])
    video = jnp.einsum("nkj,nj->nk", between(model.video, position), _poisson(arriving[:, 1]))
    rates = jnp.asarray(ns_deadline.RATES, users.dtype)
    at_rate = jnp.interp(arriving[:, 2], rates, jnp.arange(len(rates), dtype=users.dtype))
    urllc = jax.vmap(lambda table, at: between(table, at[None])[0])(between(model.urllc, position), at_rate)
    silent = jnp.exp(-arriving * model.window_slots)[..., None]
    return silent + (1 - silent) * jnp.stack([volte, video, urllc], axis=1)


def volte_ssr(rate: jax.Array, users: jax.Array, turns: jax.Array) -> jax.Array:
    """SSR of users that take turns: `rate` packets per user and slot, `turns` users emptied per slot.

    A round lasts C = users / turns - 1 / rate slots. Of the 1 + rate C packets of a turn the first one waited C slots,
    the others less: those that waited at most 12 slots meet the SLA.
    """
    cycle = jnp.maximum(users / jnp.maximum(turns, 1e-3) - 1 / rate, 1.0)
    in_time = rate * jnp.minimum(cycle, _VOLTE_SLOTS) + jax.nn.sigmoid(_VOLTE_SLOTS - cycle)
    return in_time / (1 + rate * cycle) * (turns > 0)


def expected_load(model: Model, users: jax.Array, rbs: jax.Array) -> jax.Array:
    """[N] share of RBs in use: sum_n k_n / K P(some packet), users and rbs [N, 3]."""
    lam = jnp.asarray(model.packets_per_slot, users.dtype)[None, :]
    return (rbs / model.num_rbs * (1 - jnp.exp(-lam * users))).sum(axis=-1)
