"""A picture of each environment: cells, users and beams; the resource-block grid; slice load and SLA over time."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import RegularPolygon

from experiments.episodes import play
from networld_envs import rb_mac
from networld_envs.channel import steering_vectors
from networld_envs.topology import hex_cells
from networld_envs.types import Environment, Policy

SLICE_NAMES = ("VoLTE", "video", "URLLC")


def _cell_outlines(axes: Axes, centres_m: np.ndarray, radius_m: float) -> None:
    """Hexagons whose edges face the neighbours at 30, 90, ... degrees."""
    for x, y in centres_m:
        axes.add_patch(
            RegularPolygon((x, y), 6, radius=radius_m, orientation=np.pi / 6, fill=False, edgecolor="0.8", lw=0.8)
        )
    axes.set_aspect("equal")
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")


def draw_cbf(env: Environment, policy: Policy, policy_params: Any, num_steps: int = 30) -> Figure:
    """Cells, users and the beam pattern |a(phi)^T w|^2 of every base station after `num_steps` slots; user colour =
    rate."""
    episode = play(env, policy, policy_params, num_steps)
    state, steps = episode.last_state, episode.steps
    params = env.default_params
    centres_m = np.asarray(params.bs_xy_m)
    figure, axes = plt.subplots(figsize=(6.4, 6))
    _cell_outlines(axes, centres_m, params.inter_site_m / np.sqrt(3))
    angle = np.linspace(0, 2 * np.pi, 181)
    responses = np.asarray(steering_vectors(jnp.asarray(angle), params.num_antennas))
    beams = np.asarray(state.direction) * np.sqrt(np.asarray(state.power))[:, None]
    reach_m = 0.5 * params.inter_site_m
    for (x, y), w in zip(centres_m, beams, strict=True):
        gain = np.abs(responses @ w) ** 2
        axes.fill(x + reach_m * gain * np.cos(angle), y + reach_m * gain * np.sin(angle), color="tab:blue", alpha=0.35)
    axes.plot(*centres_m.T, "^", color="0.3", markersize=5)
    users_m = np.asarray(state.topology.ue_xy_m)
    rate = steps.metrics["rate"][-1]
    dots = axes.scatter(*users_m.T, c=rate, cmap="viridis", s=35, zorder=3, edgecolor="white", linewidth=0.5)
    figure.colorbar(dots, label="rate of the user (bit/s/Hz)", shrink=0.8)
    axes.set_title(f"cbf: beams and users, mean rate {rate.mean():.2f} bit/s/Hz")
    return figure


def draw_rb(env: Environment, policy: Policy, policy_params: Any, num_steps: int = 60) -> Figure:
    """Left: nodes and links. Right: who holds which resource block of one frame (grey = signalling of node 0's
    view)."""
    episode = play(env, policy, policy_params, num_steps)
    state, steps = episode.last_state, episode.steps
    params, network = env.default_params, state.network
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(1, 1.4))
    alive = np.flatnonzero(network.alive)
    colours = plt.get_cmap("tab10").colors
    for i in alive:
        for j in alive:
            if j > i and network.one_hop[i, j]:
                left.plot(*network.position[[i, j]].T, color="0.85", linewidth=0.8, zorder=1)
        left.annotate("", network.position[network.receiver[i]], network.position[i],
                      arrowprops={"arrowstyle": "->", "color": colours[i % 10], "lw": 1.2})  # fmt: skip
        left.plot(*network.position[i], "o", color=colours[i % 10], markersize=9)
        left.annotate(str(i), network.position[i], textcoords="offset points", xytext=(6, 5), fontsize=8)
    left.set_aspect("equal")
    left.set_title("nodes, 1-hop graph, receivers")
    left.set_xlabel("x (communication ranges)")

    requests = jnp.asarray(steps.action[-1][:, 0]).astype(jnp.int32)
    two_hop, alive_mask = jnp.asarray(network.two_hop), jnp.asarray(network.alive)
    head = rb_mac.signalling_head(requests, two_hop, params)
    claims = rb_mac.reserve(requests, head, two_hop, jnp.asarray(network.receiver), alive_mask, jnp.int32(0), params)
    owned = np.asarray(rb_mac.unpack(claims, params.num_rbs))  # [N, RBs]
    grid = np.full((len(alive), params.num_rbs), -1)
    for row, i in enumerate(alive):
        grid[row, : int(head[i])] = -2
        grid[row, owned[i] > 0] = i
    palette = ListedColormap(["0.8", "white", *colours])
    right.imshow(grid, cmap=palette, norm=BoundaryNorm(np.arange(-2.5, 10.5), palette.N), aspect="auto")
    right.set_yticks(range(len(alive)), [f"node {i}: asks {int(requests[i])}" for i in alive])
    right.set_xlabel(f"resource block in time order ({params.num_channels} channels per slot); grey = signalling")
    right.set_title("grants of one frame (blocks are shared only beyond two hops)", fontsize=10)
    figure.tight_layout()
    return figure


def draw_ns(env: Environment, policy: Policy, policy_params: Any, num_steps: int = 100) -> Figure:
    """Left: users by slice and the load of every cell. Right: arrivals, allocation and SLA of one cell over time."""
    episode = play(env, policy, policy_params, num_steps)
    state, steps = episode.last_state, episode.steps
    params = env.default_params
    figure, axes = plt.subplot_mosaic([["map", "demand"], ["map", "share"], ["map", "sla"]], figsize=(11, 6))
    centres_m = hex_cells(params.num_cells, np.sqrt(3) * params.cell_radius_m)
    _cell_outlines(axes["map"], centres_m, params.cell_radius_m)
    for n, name in enumerate(SLICE_NAMES):
        chosen = np.asarray(state.users.slice_index) == n
        axes["map"].plot(*np.asarray(state.users.position_m)[chosen].T, ".", markersize=2, label=name)
    axes["map"].legend(markerscale=5, loc="upper right")
    axes["map"].set_title("users by slice")
    cell = int(np.argmin(steps.reward.mean(0)))
    axes["map"].plot(*centres_m[cell], "k*", markersize=12)
    names = list(env.spec.obs_names)
    for name in SLICE_NAMES:
        axes["demand"].plot(steps.obs[:, cell, names.index(f"arrivals_last_{name.lower()}")], label=name)
        axes["share"].plot(steps.obs[:, cell, names.index(f"alloc_{name.lower()}")])
        axes["sla"].plot(steps.metrics[f"ssr_{name.lower()}"][:, cell])
    axes["demand"].set_ylabel("arrivals\n(packets / window)")
    axes["demand"].set_yscale("symlog")
    axes["demand"].set_title(f"hardest cell ({cell}, star)")
    axes["share"].set_ylabel("allocation / W")
    axes["sla"].set_ylabel("SLA satisfaction")
    axes["sla"].set_xlabel("window")
    figure.tight_layout()
    return figure


PICTURES = {"cbf": draw_cbf, "rb": draw_rb, "ns": draw_ns}
