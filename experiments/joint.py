"""What base stations of `ns` could gain by deciding jointly: gate (c).

Cells meet through interference only, SINR_m = SNR_m / (1 + sum_j load_j INR_mj), and a cell's load is the share of its
RBs that somebody uses. An RB given to a slice that is often idle lowers the load felt next door. Users stand still
here (no movement, no session ends, instant allocation), so that an allocation can be judged by itself.

Independent: every BS maximises its own reward given the others' loads, cell after cell. Joint: every BS maximises the
sum of all rewards, cell after cell (coordinate ascent). Both once on the expert's model (`ns_model`) and once more,
from there, in simulated windows, where a cell moves `MOVE_RBS` between two slices if that raised the objective. All
allocations are then simulated in windows that none of them was chosen on.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.episodes import play
from networld_envs.experts import ns, ns_model
from networld_envs.experts.ns_model import Model
from networld_envs.ns_params import NUM_SLICES, NSParams
from networld_envs.types import Environment

PLAYED_WINDOWS = 60  # of the expert, before users stop
MODEL_SWEEPS, GRID_RBS = 3, 3
SIMULATED_SWEEPS, MOVE_RBS, MOVE_WINDOWS = 1, 3, 4
SETTLING_WINDOWS, JUDGED_WINDOWS = 2, 40


def frozen(params: NSParams) -> NSParams:
    """The same cells with users that stay and allocations that take effect at once."""
    return params.replace(is_instant=True, mobility_step_s=0.0, session_end_probability=0.0)


# --- on the model ---------------------------------------------------------------------------------------------------


def model_rewards(model: Model, users: jax.Array, rbs: jax.Array) -> jax.Array:
    """[N] expected reward of whole RBs [N, 3] int32 with users [N, 3], each cell under the load of the others."""
    load = ns_model.expected_load(model, users, rbs.astype(users.dtype))
    curves = ns_model.ssr_curves(model, users, ns_model.around_load(model, load))
    return jnp.take_along_axis(curves, rbs[..., None], axis=-1)[..., 0].mean(axis=-1)


def ascend_on_model(model: Model, users: jax.Array, is_joint: bool) -> jax.Array:
    """[N, 3] int32 RBs after `MODEL_SWEEPS` rounds over the cells, from equal shares."""
    splits = jnp.asarray(ns.all_splits(model.num_rbs, GRID_RBS), jnp.int32)
    num_cells = users.shape[0]

    def improve(i, rbs):
        cell = i % num_cells
        rewards = jax.lax.map(lambda split: model_rewards(model, users, rbs.at[cell].set(split)), splits)
        objective = rewards.sum(axis=-1) if is_joint else rewards[:, cell]
        return rbs.at[cell].set(splits[jnp.argmax(objective)])

    start = jnp.full((num_cells, NUM_SLICES), model.num_rbs // NUM_SLICES, jnp.int32)
    return jax.lax.fori_loop(0, MODEL_SWEEPS * num_cells, improve, start)


# --- in simulated windows -------------------------------------------------------------------------------------------


def simulated_rewards(env: Environment, params: NSParams, key, state, rbs: jax.Array, num_windows: int) -> jax.Array:
    """[windows, N] rewards of RBs [N, 3] that stay, after `SETTLING_WINDOWS` that are not counted."""
    action = ns.rbs_to_hz(rbs.astype(jnp.float32), params)

    def window(state, t):
        draws = env.draw(jax.random.fold_in(key, t), state, params)
        state, step = env.transition(state, action, draws, params)
        return state, step.reward

    return jax.lax.scan(window, state, jnp.arange(SETTLING_WINDOWS + num_windows))[1][SETTLING_WINDOWS:]


def ascend_in_simulation(rewards_fn, rbs: jax.Array, is_joint: bool) -> jax.Array:
    """[N, 3] int32 RBs: cell after cell takes the best of staying and of six moves; rewards_fn([C, N, 3]) -> [C, N]."""
    moves = np.zeros((7, NUM_SLICES), np.int32)
    for i, (giver, taker) in enumerate(itertools.permutations(range(NUM_SLICES), 2)):
        moves[1 + i, [giver, taker]] = -MOVE_RBS, MOVE_RBS
    rbs = np.asarray(rbs)
    for cell in list(range(len(rbs))) * SIMULATED_SWEEPS:
        candidates = np.repeat(rbs[None], len(moves), axis=0)
        candidates[:, cell] += moves
        candidates[(candidates < 0).any(axis=(1, 2))] = rbs  # not enough to give: stay
        rewards = np.asarray(rewards_fn(jnp.asarray(candidates)))
        objective = rewards.sum(axis=-1) if is_joint else rewards[:, cell]
        rbs = candidates[objective.argmax()]
    return jnp.asarray(rbs)


def compare(env: Environment, split: str, instance: int) -> dict[str, Any]:
    """Gate (c) on one instance: gain = better joint allocation - better independent one, mean reward over cells.

    "sem" is the standard error of that difference over `JUDGED_WINDOWS` simulated windows; `in_half_to_one` is the
    share of the expert's rewards within [0.5, 1) in the windows played before, `at_one` the share of those that are 1.
    """
    episode = play(env, ns.expert(env.default_params), {}, PLAYED_WINDOWS, split, instance)
    params, model = frozen(env.default_params), ns_model.make_model(env.default_params)
    state = jax.tree.map(jnp.asarray, episode.last_state)
    users = ns.user_counts(state.cell, state.users.slice_index, params)
    choose_key, judge_key = jax.random.split(jax.random.key(instance))
    simulate = functools.partial(simulated_rewards, env, params)
    # Key and state are arguments, not constants: every instance finds the same programs in the compilation cache.
    moved = jax.jit(jax.vmap(lambda k, s, r: simulate(k, s, r, MOVE_WINDOWS).mean(axis=0), in_axes=(None, None, 0)))
    stayed = jax.jit(lambda k, s, r: simulate(k, s, r, JUDGED_WINDOWS).mean(axis=-1))
    try_moves = functools.partial(moved, choose_key, state)
    judge = functools.partial(stayed, judge_key, state)
    judged, expected = {}, {}
    for name, is_joint in (("independent", False), ("joint", True)):
        on_model = jax.jit(functools.partial(ascend_on_model, model, is_joint=is_joint))(users)
        expected[name] = float(model_rewards(model, users, on_model).mean())
        simulated = ascend_in_simulation(try_moves, on_model, is_joint)
        judged[name] = {"model": np.asarray(judge(on_model)), "simulation": np.asarray(judge(simulated))}
    best = {name: max(rows.values(), key=np.mean) for name, rows in judged.items()}
    difference = best["joint"] - best["independent"]
    reward = np.asarray(episode.steps.reward)
    return {
        "gain": float(difference.mean()),
        "sem": float(difference.std(ddof=1) / np.sqrt(difference.size)),
        "expected_gain": expected["joint"] - expected["independent"],
        "rewards": {f"{a} by {b}": float(x.mean()) for a, rows in judged.items() for b, x in rows.items()},
        "in_half_to_one": float(((reward >= 0.5) & (reward < 1)).mean()),
        "at_one": float((reward == 1).mean()),
    }
