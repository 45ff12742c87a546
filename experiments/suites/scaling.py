"""Planning against the number of agents: time and memory of one decision of all of them, and of the mean field alone.

Agents sit on a hexagonal lattice and hear at most six neighbours. They plan in chunks of equal size, so the memory of
the nets does not grow. Weights are untrained; no branch depends on them. Also writes <workdir>/scaling.png.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import ml_collections
import numpy as np

from experiments import measure, settings, train_loop
from experiments.benchmark import Row, row
from networld_envs.types import TaskSpec
from networld_jax import datasets, normalisation, planning, sharding
from networld_jax.mean_field import Neighbours, mean_field, neighbours_from_edges
from networld_jax.world_model import WorldModel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MAX_NEIGHBOURS = 6


def hexagonal_edges(num_agents: int) -> np.ndarray:
    """Directed edges [E, 2] between touching cells of a rhombic patch of the hexagonal lattice, both ways."""
    side = int(np.ceil(np.sqrt(num_agents)))
    cell = np.arange(num_agents)
    line, place = np.divmod(cell, side)
    found = []
    for down, right in ((0, 1), (1, 0), (1, -1)):
        other = (line + down) * side + place + right
        inside = (place + right >= 0) & (place + right < side) & (other < num_agents)
        found.append(np.stack([cell, other], -1)[inside])
    one_way = np.concatenate(found)
    return np.concatenate([one_way, one_way[:, ::-1]])


def untrained(model: WorldModel, spec: TaskSpec) -> planning.PolicyParams:
    """Random weights, and constants out of random data within the task's ranges."""
    rng, steps = np.random.default_rng(0), 4 * model.config.horizon
    action = rng.uniform(spec.action_low, spec.action_high, (1, steps, 1, spec.action_dim))
    data = datasets.from_arrays(
        rng.normal(size=(1, steps + 1, 1, spec.obs_dim)),
        np.round(action) if spec.action_kind == "integer" else action,
        rng.normal(size=(1, steps, 1)),
        np.zeros((1, 1)),
    )
    params = train_loop.make_init(model)(jax.random.key(0))
    return planning.PolicyParams(params, normalisation.task_stats(data, spec, model.config))


def decision(
    config: ml_collections.ConfigDict, model: WorldModel, task: str, num_agents: int, map_fn: planning.MapFn
) -> Callable[..., jax.Array]:
    """(key, policy params, obs [N, O], graph) -> actions [N, A]: encode, exchange, plan, decode for all agents."""
    policy = settings.make_planner(config, model, task, map_fn=map_fn)

    def decide(key, params, obs, graph):
        init_key, act_key = jax.random.split(key)
        return policy.act(act_key, params, policy.init(init_key, num_agents), obs, graph, None)[0]

    return decide


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Row]:
    """All rows of the suite."""
    c = config.scaling
    env = settings.environment(config, c.task)
    model = settings.world_model(config, {c.task: env})
    weights = untrained(model, env.spec)
    plans = plan_rows(config, model, env.spec, weights)
    fields = mean_field_rows(config, model.config.latent_dim)
    save_plot(Path(workdir) / "scaling.png", plans, fields)
    return plans + fields + device_rows(config, model, env.spec, weights)


def case(spec: TaskSpec, num_agents: int) -> tuple[jax.Array, Neighbours]:
    """Observations of all agents and their graph."""
    obs = jax.random.normal(jax.random.key(num_agents), (num_agents, spec.obs_dim))
    lists = neighbours_from_edges(hexagonal_edges(num_agents), num_agents, MAX_NEIGHBOURS)
    return obs, jax.tree.map(jnp.asarray, lists)


def plan_rows(
    config: ml_collections.ConfigDict, model: WorldModel, spec: TaskSpec, weights: planning.PolicyParams
) -> list[Row]:
    """Time and memory of one decision against N (ratios per agent), and the power of N that fits the times."""
    c, key = config.scaling, jax.random.key(0)
    programs, calls = {}, {}
    for n in c.num_agents:
        arguments = (key, weights, *case(spec, n))
        fn = decision(config, model, spec.name, n, planning.in_chunks(c.chunk))
        programs[n] = measure.compiled(fn, *arguments)
        calls[n] = lambda program=programs[n], arguments=arguments: program.call(*arguments)
    times = measure.interleaved(calls, c.seconds)
    first = c.num_agents[0]
    per_agent = {n: times[n].median / n for n in c.num_agents}
    rows = [
        row(
            f"decision of {n} agents",
            1e3 * times[n].median,
            "ms",
            baseline=None if n == first else f"decision of {first} agents",
            ratio=None if n == first else per_agent[first] / per_agent[n],
            sizes={"agents": n, "chunk": c.chunk, "task": spec.name, "neighbours": MAX_NEIGHBOURS},
            p95=1e3 * times[n].p95,
            memory_bytes=programs[n].memory_bytes,
            trace_s=programs[n].trace_s,
            compile_s=programs[n].compile_s,
        )
        for n in c.num_agents
    ]
    sizes = [n for n in c.num_agents if n >= c.chunk]
    if len(sizes) > 1:
        power = np.polyfit(np.log(sizes), np.log([times[n].median for n in sizes]), 1)[0]
        rows.append(row("decision time, power of N", float(power), "", sizes={"agents": sizes, "chunk": c.chunk}))
    return rows


def mean_field_rows(config: ml_collections.ConfigDict, latent_dim: int) -> list[Row]:
    """The mean field by neighbour lists against the N x N matrix: time up to `matrix_agents`, memory at every N."""
    c, rows = config.scaling, []
    for n in c.num_agents:
        z = jax.random.normal(jax.random.key(n), (n, latent_dim))
        lists = neighbours_from_edges(hexagonal_edges(n), n, MAX_NEIGHBOURS)
        by_lists = measure.compiled(mean_field, z, jax.tree.map(jnp.asarray, lists))
        by_matrix = measure.compiled(mean_field, z, jax.ShapeDtypeStruct((n, n), jnp.float32))
        calls = {"lists": lambda: by_lists.call(z, lists)}  # noqa: B023
        if n <= c.matrix_agents:
            matrix = np.zeros((n, n), np.float32)
            matrix[tuple(hexagonal_edges(n).T)] = 1.0
            matrix = jnp.asarray(matrix)
            calls["matrix"] = lambda: by_matrix.call(z, matrix)  # noqa: B023
        times = measure.interleaved(calls, c.mean_field_seconds)
        sizes = {"agents": n, "latent": latent_dim, "neighbours": MAX_NEIGHBOURS}
        by_matrix_name = f"mean field of {n} agents, N x N matrix"
        if "matrix" in times:
            seconds, memory_bytes = times["matrix"].median, by_matrix.memory_bytes
            rows.append(row(by_matrix_name, 1e3 * seconds, "ms", sizes=sizes, memory_bytes=memory_bytes))
        rows.append(
            row(
                f"mean field of {n} agents",
                1e3 * times["lists"].median,
                "ms",
                baseline=by_matrix_name if "matrix" in times else None,
                ratio=times["matrix"].median / times["lists"].median if "matrix" in times else None,
                sizes=sizes,
                p95=1e3 * times["lists"].p95,
                memory_bytes=by_lists.memory_bytes,
                matrix_memory_bytes=by_matrix.memory_bytes,
            )
        )
    return rows


def device_rows(
    config: ml_collections.ConfigDict, model: WorldModel, spec: TaskSpec, weights: planning.PolicyParams
) -> list[Row]:
    """The largest N on all devices against one; nothing with a single device."""
    c, mesh, key = config.scaling, settings.mesh(config), jax.random.key(0)
    if mesh is None:
        return []
    n = c.num_agents[-1]
    obs, graph = case(spec, n)
    chunks = planning.in_chunks(c.chunk)
    one = jax.jit(decision(config, model, spec.name, n, chunks))
    many = jax.jit(decision(config, model, spec.name, n, sharding.over_agents(mesh, chunks)))
    everywhere = sharding.copy_to_all(mesh, (key, weights, obs, graph))
    calls: dict[str, Callable[[], Any]] = {
        "one": lambda: one(key, weights, obs, graph),
        "many": lambda: many(*everywhere),
    }
    same = bool(jnp.array_equal(*(jnp.asarray(np.asarray(call())) for call in calls.values())))
    times = measure.interleaved(calls, c.seconds)
    return [
        row(
            f"decision of {n} agents on {mesh.size} devices",
            1e3 * times["many"].median,
            "ms",
            baseline=f"decision of {n} agents",
            ratio=times["one"].median / times["many"].median,
            sizes={"agents": n, "chunk": c.chunk, "devices": mesh.size},
            p95=1e3 * times["many"].p95,
            same_bits=same,
        )
    ]


def save_plot(path: Path, plans: list[Row], fields: list[Row]) -> None:
    """Time and memory against N, with the straight line of a linear cost through the largest N."""
    plans = [r for r in plans if "p95" in r]
    fields = [r for r in fields if "p95" in r]
    agents = np.array([r["sizes"]["agents"] for r in plans])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    times = np.array([r["value"] for r in plans])
    left.loglog(agents, times, "o-", color="tab:red", label="decision of all agents")
    left.loglog(agents, times[-1] * agents / agents[-1], "--", color="0.5", label="linear in N")
    left.loglog(agents, [r["value"] for r in fields], "s-", color="tab:blue", label="of it: mean field (lists)")
    left.set_ylabel("ms")
    for rows, name, label, colour in (
        (plans, "memory_bytes", "decision, lists", "tab:red"),
        (fields, "memory_bytes", "mean field, lists", "tab:blue"),
        (fields, "matrix_memory_bytes", "mean field, N x N matrix", "tab:olive"),
    ):
        right.loglog(agents, [r[name] / 2**20 for r in rows], "o-", color=colour, label=label)
    right.set_ylabel("MiB")
    for axis in (left, right):
        axis.set_xlabel("agents N")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
