"""Gates (a) and (b) of `ns` on the expert's fluid model: seconds per parameter set, to search for one.

    python -m experiments.gates_on_model --config=experiments/configs/ns_gates.py --workdir=runs/ns_gates_on_model \\
      [--config.environment.ns.bandwidth_hz=1e7] [--publish]

Users move as in the simulator; a split earns what `experts.ns_model` expects of it under the load that equal splits
cause. Every policy starts from the equal split, as episodes do (one that starts from the best constant hides how far a
greedy one stays from it), and moves on the expert's grid: one step per window, in force a window later. Judges the
environment as configured and each of `config.gates.variants`; `experiments.gates` is the judgement by simulation.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import gates, runtime, settings
from experiments.tables import markdown_table, print_table, replace_blocks
from networld_envs import ns_mobility
from networld_envs.experts import ns, ns_model
from networld_envs.instances import instance_keys
from networld_envs.ns import reset
from networld_envs.ns_params import NUM_SLICES, NSParams
from networld_envs.ns_window import advance_users, draw
from networld_jax.files import write_atomically

CONFIGURED = "as configured"
COLUMNS = ("equal", "hindsight_constant", "expert", "greedy_oracle", "lookahead_oracle", "unlimited")


def users_of_episode(key: jax.Array, params: NSParams, num_windows: int) -> jax.Array:
    """[T, N, 3] users per BS and slice in the windows of an episode, without serving a packet."""
    state, _ = reset(jax.random.fold_in(key, 0), params)

    def window(state, t):
        draws = draw(jax.random.fold_in(key, 1 + t), state, params)
        users, hotspots, log_mix, _ = advance_users(state, draws, params)
        cell = ns_mobility.nearest_cell(users.position_m, params)
        counts = ns.user_counts(cell, users.slice_index, params)
        return state.replace(users=users, hotspots=hotspots, log_mix=log_mix, t=state.t + 1), counts

    return jax.lax.scan(window, state, jnp.arange(num_windows))[1]


def rewards_on_model(
    key: jax.Array, params: NSParams, num_windows: int, burn_in_windows: int = 0
) -> dict[str, jax.Array]:
    """Mean reward of the policies of `COLUMNS`, over `num_windows` after `burn_in_windows` in which only users move.

    "unlimited" may take any split at once, knowing the users.
    """
    model = ns_model.make_model(params)
    grid = ns.make_grid(model.num_rbs, params)
    equal = jnp.full((params.num_cells, NUM_SLICES), params.bandwidth_hz / NUM_SLICES)

    def window_scores(users):
        load = ns_model.expected_load(model, users, equal / params.bandwidth_hz * model.num_rbs)
        return ns.split_scores(model, users, ns_model.around_load(model, load), grid.splits)

    users = users_of_episode(key, params, burn_in_windows + num_windows + ns.LOOKAHEAD + 1)[burn_in_windows:]
    scores = jax.lax.map(window_scores, users)  # [T + look-ahead + 1, N, splits]
    splits_hz = ns.rbs_to_hz(jnp.asarray(grid.splits, jnp.float32), params)

    def play(seen):
        """Mean reward of following the best path through seen(t) [H, N, splits] in every window t."""

        def window(alloc_hz, t):
            in_force = jnp.argmin(jnp.abs(splits_hz[None] - alloc_hz[:, None]).sum(-1), axis=-1)
            reward = jnp.take_along_axis(scores[t], in_force[:, None], axis=-1).mean()
            return ns.plan(grid, seen(t), alloc_hz, params), reward

        return jax.lax.scan(window, equal, jnp.arange(num_windows))[1].mean()

    def repeated(t):
        last = scores[jnp.maximum(t - 1, 0)]
        return jnp.broadcast_to(last[None], (ns.EXPERT_WINDOWS, *last.shape))

    judged = scores[:num_windows]
    nearest_equal = int(np.abs(grid.splits - model.num_rbs / NUM_SLICES).max(-1).argmin())
    return {
        "equal": judged[..., nearest_equal].mean(),
        "hindsight_constant": judged.mean(0).max(-1).mean(),
        "expert": play(repeated),
        "greedy_oracle": play(lambda t: scores[t + 1][None]),
        "lookahead_oracle": play(lambda t: jax.lax.dynamic_slice_in_dim(scores, t + 1, ns.LOOKAHEAD)),
        "unlimited": judged.max(-1).mean(),
    }


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, dict[str, float]]:
    """{variant: {policy: mean reward}}; goes on where it stopped."""
    path = Path(workdir) / "ns_gates_on_model.json"
    runtime.save_config(config, workdir, "gates_on_model", ("environment", "evaluate", "gates"))
    results = json.loads(path.read_text()) if path.exists() else {}
    protocol = settings.protocol(config, "ns")
    keys = instance_keys("ns", config.evaluate.split, protocol.num_instances)
    variants = {CONFIGURED: {}} | {name: dict(changes) for name, changes in config.gates.variants.items()}
    with runtime.progress("gates on the model", len(variants)) as advance:
        for name, changes in variants.items():
            if name not in results:
                play = functools.partial(
                    rewards_on_model,
                    params=settings.environment(config, "ns", **changes).default_params,
                    num_windows=protocol.num_steps,
                    burn_in_windows=protocol.burn_in_steps,
                )
                rewards = jax.lax.map(jax.jit(play), keys)
                results[name] = {policy: float(values.mean()) for policy, values in rewards.items()}
                write_atomically(path, json.dumps(results, indent=1).encode())
            advance(1)
    header, lines = rows(results)
    print_table(runtime.console, "gates on the model", header[:3], [line[:3] for line in lines])
    return results


def rows(results: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: a parameter set, its gates (a) and (b), the mean rewards."""
    lines = []
    for name, reward in results.items():
        differences = (reward[high] - reward[low] for high, low in gates.PAIRS.values())
        shown = (*differences, *(reward[policy] for policy in COLUMNS))
        lines.append((name, *(f"{value:.3f}" for value in shown)))
    return ("parameters", *(f"({gate})" for gate in gates.PAIRS), *COLUMNS), lines


def with_table(page: str, stored: dict[str, Any]) -> str:
    """docs/environments_ns.md with the table of results/ns_gates_on_model.json in its place."""
    content = (
        f"{stored['instances']} {stored['split']} instances x {stored['steps']} windows on the model, by\n"
        f"`{stored['provenance']['command']}`:\n\n" + markdown_table(*rows(stored["rewards"]))
    )
    return replace_blocks(page, {"gates on the model": content}, str(gates.PAGE))


def publish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """results/ns_gates_on_model.json and its table in docs/environments_ns.md."""
    protocol = settings.protocol(config, "ns")
    stored = {
        "rewards": json.loads((Path(workdir) / "ns_gates_on_model.json").read_text()),
        "split": config.evaluate.split,
        "instances": protocol.num_instances,
        "steps": protocol.num_steps,
        "provenance": runtime.provenance(),
    }
    page = with_table(gates.PAGE.read_text(), stored)
    write_atomically(Path("results/ns_gates_on_model.json"), json.dumps(stored, indent=1).encode())
    write_atomically(gates.PAGE, page.encode())


if __name__ == "__main__":
    runtime.main(run, publish)
