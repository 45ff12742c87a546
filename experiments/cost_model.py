"""What a network of a million agents on a thousand hosts would cost, on paper, out of measured constants.

    python -m experiments.cost_model [results/benchmark.json]

Not measured, computed: hosts plan for equal, compact parts of a hexagonal network and exchange the messages of the
edges between them; a host does as many plans per second as the measured machine did, in parallel with the others.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.tables import markdown_table

FLOAT_BYTES = 4
DEGREE = 6  # neighbours in a hexagonal network
RESOLVED = 0.1  # of the loop's time


@dataclasses.dataclass(frozen=True)
class Constants:
    """What one host was measured to do for one task."""

    task: str
    planner: str
    plans_per_s: float
    bytes_per_plan: float  # working memory of the compiled planner per agent, weights and environment included
    message_bytes: int  # broadcast per agent and decision
    obs_dim: int
    action_dim: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A network of `agents` on `hosts`; per decision of every agent."""

    agents: int
    hosts: int
    seconds_per_decision: float  # one plan of every agent
    memory_bytes_per_host: float
    host_bytes_out: float  # messages a host sends to others
    air_bytes: int  # an agent's broadcast to its neighbours
    central_bytes: int  # instead: its observation to a central controller, its action back
    central_link_bytes: float  # at that controller


def boundary_messages(agents_per_host: float) -> float:
    """Messages that leave a compact hexagonal part of a hexagonal network.

    A hexagon of 3 r (r + 1) + 1 cells has 6 r cells on its rim; each rim cell is heard by one other part on average
    (corner cells by two), so about 6 r broadcasts leave.
    """
    radius = (math.sqrt(12 * agents_per_host - 3) - 3) / 6
    return max(6 * radius, 1.0)


def estimate(constants: Constants, agents: int, hosts: int) -> Estimate:
    """Scales measured constants; nothing but arithmetic. Raises ValueError for fewer agents than hosts."""
    if not 1 <= hosts <= agents:
        raise ValueError(f"need at least one host and one agent per host, got {hosts} hosts, {agents} agents")
    per_host = agents / hosts
    central = FLOAT_BYTES * (constants.obs_dim + constants.action_dim)
    return Estimate(
        agents=agents,
        hosts=hosts,
        seconds_per_decision=per_host / constants.plans_per_s,
        memory_bytes_per_host=per_host * constants.bytes_per_plan,
        host_bytes_out=boundary_messages(per_host) * constants.message_bytes if hosts > 1 else 0.0,
        air_bytes=constants.message_bytes,
        central_bytes=central,
        central_link_bytes=float(agents) * central,
    )


def constants_from(rows: Sequence[dict[str, Any]]) -> list[Constants]:
    """One entry per task and planner of the closed_loop suite, the time of the simulator taken off.

    A planner that takes less than `RESOLVED` of the loop's time is left out: that difference of two measurements says
    nothing.
    """
    found = []
    rows = [r for r in rows if r["suite"] == "closed_loop"]
    simulated = {r["name"].split(",")[0]: r["plans_per_s"] for r in rows if r["name"].endswith(", environment alone")}
    for r in rows:
        if "message_bytes_per_decision" in r:
            sizes, task = r["sizes"], r["name"].split(",")[0]
            agents = sizes["agents"] * sizes["environments"]
            seconds_per_plan = 1.0 / r["plans_per_s"] - 1.0 / simulated[task]
            if seconds_per_plan * r["plans_per_s"] < RESOLVED:
                continue
            found.append(
                Constants(
                    task=task,
                    planner=r["name"].split(", ")[1],
                    plans_per_s=1.0 / seconds_per_plan,
                    bytes_per_plan=r["memory_bytes"] / agents,
                    message_bytes=r["message_bytes_per_decision"],
                    obs_dim=sizes["obs_dim"],
                    action_dim=sizes["action_dim"],
                )
            )
    return found


def table(rows: Sequence[dict[str, Any]], agents: int = 10**6, hosts: int = 10**3) -> str:
    """Markdown: every measured task and planner at this size."""
    header = (
        "task, planner", "one decision of all", "memory per host", "sent per host and decision",
        "on the air per agent", "central execution per agent", "at the centre",
    )  # fmt: skip
    lines = []
    for constants in constants_from(rows):
        e = estimate(constants, agents, hosts)
        lines.append(
            (
                f"{constants.task}, {constants.planner}",
                f"{1e3 * e.seconds_per_decision:.3g} ms",
                f"{e.memory_bytes_per_host / 2**20:.3g} MiB",
                f"{e.host_bytes_out / 2**10:.3g} KiB",
                f"{e.air_bytes} B",
                f"{e.central_bytes} B",
                f"{e.central_link_bytes / 2**20:.3g} MiB",
            )
        )
    return markdown_table(header, lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else "results/benchmark.json").read_text())))
