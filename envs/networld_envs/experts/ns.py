"""Policies of the `ns` task: rules of thumb, a causal expert, oracles, and the mixtures that collect offline data.

Expert and oracles decide on the fluid model of `ns_model`. What they know:

| policy | users now | users later | load around |
|---|---|---|---|
| expert | estimated from the BS's own counts and satisfaction | extrapolated | neighbours' messages |
| greedy_oracle | exact | exact, next window | exact |
| lookahead_oracle | exact | exact, `LOOKAHEAD` windows | exact |

"Exact" follows the moving crowds; which sessions will end is known to nobody.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from networld_envs import ns_mobility as mobility
from networld_envs.experts import ns_model
from networld_envs.experts.ns_model import Model
from networld_envs.ns import reset
from networld_envs.ns_params import NUM_SLICES, NSParams
from networld_envs.ns_slots import RB_HZ
from networld_envs.ns_window import NSState, draw, transition
from networld_envs.policies import disturbed, mixture, stateless
from networld_envs.types import Policy

LOOKAHEAD = 16  # windows of the oracle
EXPERT_WINDOWS = 8  # windows that the expert plans with the users that it expects
TREND = 0.5  # how much of the last change the expert extrapolates
SMOOTHING = 0.5  # weight of its older counts
LEARNING_RATE = 0.2  # of what the expert learns about the links of its cell
SEGMENT_WINDOWS = 25  # the mixed tier redraws each agent's policy this often
PERTURB_PROBABILITY = 0.2
PERTURB_CONCENTRATION = 30.0
# Best common split (VoLTE, video, URLLC) of the default task: fit_constant(params, instance_keys("ns", "data", 16)).
CONSTANT_SHARES = (6 / 27, 10 / 27, 11 / 27)


# --- rules ----------------------------------------------------------------------------------------------------------


def random_split(params: NSParams) -> Policy:
    """Uniform on the simplex, anew in every window."""

    def act(key, obs, adjacency, env_state):
        del adjacency, env_state
        return params.bandwidth_hz * jax.random.dirichlet(key, jnp.ones(NUM_SLICES), obs.shape[:1])

    return stateless(act)


def constant_split(shares, params: NSParams) -> Policy:
    """The same split always: shares [3] for all or [N, 3]."""
    shares = jnp.asarray(shares, jnp.float32)

    def act(key, obs, adjacency, env_state):
        del key, adjacency, env_state
        wanted = shares if shares.ndim == 2 else jnp.broadcast_to(shares[None, :], (obs.shape[0], NUM_SLICES))
        return params.bandwidth_hz * wanted

    return stateless(act)


def given_split(params: NSParams) -> Policy:
    """The shares [N, 3] that come as policy parameters, e.g. `hindsight_shares`."""

    def act(key, shares, carry, obs, adjacency, env_state):
        del key, obs, adjacency, env_state
        return params.bandwidth_hz * shares, carry

    return Policy(init=lambda key, num_agents: (), act=act)


def demand_proportional(params: NSParams) -> Policy:
    """Bandwidth in proportion to the packets of the last window."""

    def act(key, obs, adjacency, env_state):
        del key, adjacency, env_state
        demand = obs[:, 3:6] + 1e-3
        return params.bandwidth_hz * demand / demand.sum(axis=-1, keepdims=True)

    return stateless(act)


# --- decisions on the model -----------------------------------------------------------------------------------------


def rbs_to_hz(rbs: jax.Array, params: NSParams) -> jax.Array:
    """Hz for whole RBs that sum to K; what is left of W goes to the slices evenly."""
    rest = (params.bandwidth_hz - rbs.sum(axis=-1, keepdims=True) * RB_HZ) / NUM_SLICES
    return rbs * RB_HZ + rest


def all_splits(num_rbs: int, step: int = 1) -> np.ndarray:
    """[splits, 3] whole RBs that sum to num_rbs, in steps."""
    levels = range(0, num_rbs + 1, step)
    return np.array([(a, b, num_rbs - a - b) for a in levels for b in levels if a + b <= num_rbs])


def curve_scores(curves: jax.Array, splits: np.ndarray) -> jax.Array:
    """[N, splits] expected reward out of the expected SSR [N, 3, K + 1] of every slice."""
    return sum(curves[:, n, splits[:, n]] for n in range(NUM_SLICES)) / NUM_SLICES


def split_scores(model: Model, users: jax.Array, load: jax.Array, splits: np.ndarray) -> jax.Array:
    """[N, splits] expected reward; users [N, 3], load [N] felt around."""
    return curve_scores(ns_model.ssr_curves(model, users, load), splits)


def best_split(curves: jax.Array, params: NSParams) -> jax.Array:
    """[N, 3] Hz: the split that maximises the expected reward, SSR curves [N, 3, K + 1]."""
    splits = all_splits(curves.shape[-1] - 1)
    best = jnp.argmax(curve_scores(curves, splits), axis=-1)
    return rbs_to_hz(jnp.asarray(splits, jnp.float32)[best], params)


def _reachable(alloc_hz: jax.Array, splits: np.ndarray, params: NSParams) -> jax.Array:
    """[N, splits] bool: can be in force in the next window."""
    if params.is_instant:
        return jnp.ones((alloc_hz.shape[0], len(splits)), bool)
    target = rbs_to_hz(jnp.asarray(splits, jnp.float32), params)
    change = jnp.abs(target[None, :, :] - alloc_hz[:, None, :]).max(axis=-1)
    nearest = change <= change.min(axis=-1, keepdims=True) + 1.0  # something is always reachable
    return (change <= params.max_change_hz + 1.0) | nearest


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Splits whose steps respect the change limit, for plans over several windows."""

    splits: np.ndarray  # [splits, 3] RBs
    successors: np.ndarray  # [splits, 7] splits that can follow, the split itself included


def make_grid(num_rbs: int, params: NSParams) -> Grid:
    """A triangular grid; from each point to its neighbours no slice changes by more than `max_change_hz`."""
    step = int(np.clip(float(params.max_change_hz) // RB_HZ, 1, 4))
    splits = all_splits(num_rbs, step)
    apart = np.abs(splits[:, None] - splits[None]).max(axis=-1)
    order = np.argsort(apart, axis=-1, kind="stable")[:, :7]
    near = np.take_along_axis(apart, order, axis=-1) <= step
    return Grid(splits, np.where(near, order, np.arange(len(splits))[:, None]))


def plan(grid: Grid, scores: jax.Array, alloc_hz: jax.Array, params: NSParams) -> jax.Array:
    """[N, 3] Hz: first split of the best path through scores [H, N, splits] from alloc_hz [N, 3], by dynamic
    programming."""

    def backward(value, score):
        return score + value[:, grid.successors].max(axis=-1), None

    value, _ = jax.lax.scan(backward, jnp.zeros_like(scores[0]), scores, reverse=True)
    value = jnp.where(_reachable(alloc_hz, grid.splits, params), value, -1.0)
    return rbs_to_hz(jnp.asarray(grid.splits, jnp.float32)[jnp.argmax(value, axis=-1)], params)


# --- the causal expert ----------------------------------------------------------------------------------------------


def estimated_users(model: Model, arrivals: jax.Array) -> jax.Array:
    """[N, 3] users of each slice out of the packets [N, 3] of a window."""
    per_user = jnp.asarray(model.packets_per_slot, arrivals.dtype) * model.window_slots
    return arrivals / per_user[None, :]


def neighbour_load(model: Model, load: jax.Array, adjacency: jax.Array) -> jax.Array:
    """[N] load around out of the 1-hop neighbours' loads [N]; cells further away are taken to be like them."""
    weights = model.coupling * adjacency
    heard = jnp.maximum(weights.sum(axis=-1), 1e-6)
    return (weights @ load) / heard * model.coupling.sum(axis=-1)


@struct.dataclass
class ExpertMemory:
    """What the expert remembers of the last window, and what its cell has taught it."""

    shift: jax.Array  # [N, 3] logits to add to the model's SSR
    users: jax.Array  # [N, 3] smoothed counts
    rbs: jax.Array  # [N, 3] RBs in force in the window that is being counted
    around: jax.Array  # [N] load felt in it
    t: jax.Array  # [] int32


def _logit(ssr: jax.Array) -> jax.Array:
    inner = jnp.clip(ssr, 0.01, 0.99)
    return jnp.log(inner) - jnp.log1p(-inner)


def shifted(ssr: jax.Array, shift: jax.Array) -> jax.Array:
    """sigmoid(logit ssr + shift), also where ssr is 0 or 1."""
    odds = jnp.exp(shift)
    return ssr * odds / (1 - ssr + ssr * odds)


def learn_links(
    model: Model, memory: ExpertMemory, users: jax.Array, arrivals: jax.Array, ssr: jax.Array
) -> jax.Array:
    """[N, 3] `shift` after a window with these users, arrivals and satisfaction, [N, 3] each.

    With S the model's SSR for the window, where packets arrived and the slice had an RB,

        shift += LEARNING_RATE (clip(logit ssr - logit S, -3, 3) - shift)

    It is what the model cannot know: how good the links of this cell's users are (a crowd next door that spills over
    the border, a crowd close to the BS).
    """
    curves = ns_model.ssr_curves(model, users, memory.around)
    expected = jax.vmap(jax.vmap(lambda curve, rbs: ns_model.between(curve, rbs[None])[0]))(curves, memory.rbs)
    error = jnp.clip(_logit(ssr) - _logit(expected), -3, 3) - memory.shift
    informative = (arrivals > 0) & (memory.rbs > 0.5) & (memory.t > 0)
    return memory.shift + LEARNING_RATE * jnp.where(informative, error, 0)


def expert(params: NSParams) -> Policy:
    """Counts -> users, extrapolated to the window that the action decides -> best path of splits if they stayed.

    The model's SSR is corrected by what the BS has seen of its own links so far, `learn_links`. Each BS broadcasts one
    float, the load it expects to cause.
    """
    if params.observation != "full":
        return constant_split(CONSTANT_SHARES, params)
    model = ns_model.make_model(params)
    grid = make_grid(model.num_rbs, params)
    ahead = 1 if params.is_instant else 2

    def init(key, num_agents):
        del key
        zeros = jnp.zeros((num_agents, NUM_SLICES))
        return ExpertMemory(zeros, zeros, zeros, jnp.zeros(num_agents), jnp.int32(0))

    def act(key, policy_params, memory, obs, adjacency, env_state):
        del key, policy_params, env_state
        arrivals, share, ssr = obs[:, 3:6], obs[:, 9:12], obs[:, 12:15]
        before, last = estimated_users(model, obs[:, 0:3]), estimated_users(model, arrivals)
        rbs = share * model.num_rbs
        served = memory.replace(rbs=rbs) if params.is_instant else memory
        shift = learn_links(model, served, last, arrivals, ssr)
        smoothed = jnp.where(memory.t > 0, SMOOTHING * memory.users + (1 - SMOOTHING) * last, last)
        users = jnp.maximum(smoothed + TREND * ahead * (last - before), 0)
        load = ns_model.expected_load(model, last, rbs)
        around = neighbour_load(model, load, adjacency)
        curves = shifted(ns_model.ssr_curves(model, users, around), shift[..., None])
        if params.is_instant:
            action = best_split(curves, params)
        else:
            scores = curve_scores(curves, grid.splits)
            scores = jnp.broadcast_to(scores[None], (EXPERT_WINDOWS, *scores.shape))
            action = plan(grid, scores, share * params.bandwidth_hz, params)
        return action, ExpertMemory(shift, smoothed, rbs, around, memory.t + 1)

    return Policy(init, act, information="one_hop", message_bytes=4)


# --- oracles --------------------------------------------------------------------------------------------------------


def user_counts(cell: jax.Array, slice_index: jax.Array, params: NSParams) -> jax.Array:
    """[N, 3] users per BS and slice; cell and slice_index [U]."""
    counts = jnp.zeros((params.num_cells, NUM_SLICES))
    return counts.at[cell, slice_index].add(1.0)


def _known_users(state: NSState, params: NSParams, num_windows: int) -> jax.Array:
    """[windows, N, 3] users per cell and slice in windows t, t + 1, ..., unless sessions end or crowds turn."""
    unknown = jnp.full((4, 3 * params.hotspots_per_slice), 0.5)

    def window(carry, i):
        users, hotspots = carry
        if params.traces is not None:
            row = (state.trace_start + state.t + i) % params.traces.position_m.shape[0]
            users = users.replace(position_m=params.traces.position_m[row])
        else:
            hotspots = mobility.move_hotspots(hotspots, unknown, params)
            users = mobility.move_users(users, hotspots, params)
        cell = mobility.nearest_cell(users.position_m, params)
        return (users, hotspots), user_counts(cell, users.slice_index, params)

    return jax.lax.scan(window, (state.users, state.hotspots), jnp.arange(num_windows))[1]


def greedy_oracle(params: NSParams) -> Policy:
    """The reachable split that is best in the one window that the action decides."""
    model = ns_model.make_model(params)
    splits = all_splits(model.num_rbs)

    def act(key, obs, adjacency, env_state):
        del key, obs, adjacency
        decided = 0 if params.is_instant else 1
        users = _known_users(env_state, params, decided + 1)[decided]
        scores = split_scores(model, users, ns_model.around_load(model, env_state.load), splits)
        scores = jnp.where(_reachable(env_state.alloc_hz, splits, params), scores, -1.0)
        return rbs_to_hz(jnp.asarray(splits, jnp.float32)[jnp.argmax(scores, axis=-1)], params)

    return stateless(act, information="global")


def lookahead_oracle(params: NSParams, num_windows: int = LOOKAHEAD) -> Policy:
    """Dynamic programming over the next windows, on a grid of splits whose steps are the change limit.

    Exact users, load around as it is now. With instant allocation windows do not interact: the greedy oracle.
    """
    if params.is_instant:
        return greedy_oracle(params)
    model = ns_model.make_model(params)
    grid = make_grid(model.num_rbs, params)

    def act(key, obs, adjacency, env_state):
        del key, obs, adjacency
        users = _known_users(env_state, params, num_windows + 1)[1:]
        load = ns_model.around_load(model, env_state.load)
        scores = jax.lax.map(lambda u: split_scores(model, u, load, grid.splits), users)  # [H, N, splits]
        return plan(grid, scores, env_state.alloc_hz, params)

    return stateless(act, information="global")


# --- fitted constants -----------------------------------------------------------------------------------------------


def _episode_scores(key: jax.Array, params: NSParams, num_steps: int, burn_in_steps: int = 0) -> jax.Array:
    """[N, splits] mean expected reward of every constant split over the true users and interference of an episode.

    The episode is the one that a rollout of the instance `key` meets (`networld_jax.rollout`), run with equal shares.
    """
    model = ns_model.make_model(params)
    splits = all_splits(model.num_rbs)
    reset_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    state, _ = reset(reset_key, params)
    equal = jnp.full((params.num_cells, NUM_SLICES), params.bandwidth_hz / NUM_SLICES)

    def window(carry, t):
        state, total = carry
        _, step_key = jax.random.split(jax.random.fold_in(key, 1 + t))
        state, _ = transition(state, equal, draw(step_key, state, params), params)
        users = user_counts(state.cell, state.users.slice_index, params)
        scores = split_scores(model, users, ns_model.around_load(model, state.load), splits)
        return (state, total + jnp.where(t >= burn_in_steps, scores, 0)), None

    total = jnp.zeros((params.num_cells, len(splits)))
    (_, total), _ = jax.lax.scan(window, (state, total), jnp.arange(burn_in_steps + num_steps))
    return total / num_steps


def fit_constant(params: NSParams, keys: jax.Array, num_steps: int = 60) -> np.ndarray:
    """[3] shares of the best common split over the episodes `keys`, e.g. instance_keys("ns", "data", 16)."""
    run = jax.jit(functools.partial(_episode_scores, params=params, num_steps=num_steps))
    scores = np.mean([np.asarray(run(key)).mean(axis=0) for key in keys], axis=0)
    splits = all_splits(ns_model.make_model(params).num_rbs)
    return splits[scores.argmax()] / splits[0].sum()


def hindsight_shares(key: jax.Array, params: NSParams, num_steps: int, burn_in_steps: int = 0) -> jax.Array:
    """[N, 3] shares: every BS's best constant split for the instance `key`, chosen with its whole episode known."""
    splits = all_splits(ns_model.make_model(params).num_rbs)
    best = jnp.argmax(_episode_scores(key, params, num_steps, burn_in_steps), axis=-1)
    return jnp.asarray(splits / splits[0].sum(), jnp.float32)[best]


# --- tables and tiers -----------------------------------------------------------------------------------------------


def policies(params: NSParams) -> dict[str, Policy]:
    """The rows of every table; the hindsight constant, which needs whole episodes, is `given_split`."""
    return {
        "random": random_split(params),
        "equal": constant_split(np.full(NUM_SLICES, 1 / NUM_SLICES), params),
        "demand_proportional": demand_proportional(params),
        "constant": constant_split(CONSTANT_SHARES, params),
        "expert": expert(params),
        "greedy_oracle": greedy_oracle(params),
        "lookahead_oracle": lookahead_oracle(params),
    }


def tiers(params: NSParams) -> dict[str, Policy]:
    """Data-collecting policies."""
    rows = policies(params)
    members = [rows[name] for name in ("random", "equal", "demand_proportional", "constant", "expert")]

    def perturb(key, action):
        shares = action / params.bandwidth_hz
        return params.bandwidth_hz * jax.random.dirichlet(key, PERTURB_CONCENTRATION * jnp.maximum(shares, 1e-3))

    return {
        "expert": rows["expert"],
        "medium": rows["constant"],
        "mixed": mixture(members, SEGMENT_WINDOWS, perturb, PERTURB_PROBABILITY),
        "noisy_expert": disturbed(rows["expert"], rows["random"]),
    }
