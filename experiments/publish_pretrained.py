"""Puts a trained planner of a queue's folder into the package, with the score of its row.

    python -m experiments.publish_pretrained --config=experiments/configs/evidence.py --workdir=runs/evidence \\
        --config.queue.only=rb/mixed/networld_scratch/own+mf/neighbourhood/0/0/0/test/0

Writes src/networld_jax/pretrained/<method>_<task>_<tier>/. The run must be finished: its row is the expected score.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_collections

import networld_jax.pretrained
from experiments import rows, runtime, settings
from experiments.queue import Queue
from experiments.runs import parse_run
from networld_jax import checkpoints, training


def run(
    config: ml_collections.ConfigDict, workdir: Path, folder: Path = networld_jax.pretrained.FOLDER
) -> Path:
    """Copies one model; returns its folder. Raises UserError when the run has no row or its planner is a control."""
    if not config.queue.only:
        raise runtime.UserError("name the run with --config.queue.only=<run>, as in its row's command")
    queue, chosen = Queue(config, workdir), parse_run(config.queue.only)
    resolved, start = queue.row_start(chosen)
    row = next((row for row in rows.read(queue.file) if rows.identity(row) == rows.identity(start)), None)
    if row is None:
        raise runtime.UserError(f"{queue.file} has no row of {chosen.name}; run the queue with the same settings first")
    plain = (resolved.planner.imagine, resolved.planner.guidance, resolved.planner.rank)
    if queue.kind(chosen) != "world model" or plain != ("diffusion", "return", "return"):
        raise runtime.UserError(f"only world models with plain guidance are published, got {chosen.method}")
    world_model, params, stats, facts = checkpoints.load_model(queue.trained(chosen, resolved)[0])
    own = {group: {} for group in training.PER_TASK}  # what planning does not read stays behind
    own |= {group: {chosen.task: params[group][chosen.task]} for group in ("encoder", "inverse_dynamics")}
    name = f"{chosen.method}_{chosen.task}_{chosen.tier}"
    fields = ("reward", "score", "instance_rewards", "split", "target_transitions", "updates", "versions", "command")
    expected = {field: row[field] for field in fields}
    protocol = settings.protocol(resolved, chosen.task)
    checkpoints.save_model(
        Path(folder) / name,
        world_model,
        params | own,
        {chosen.task: stats[chosen.task]},
        task=chosen.task,
        tier=chosen.tier,
        planner={
            "config": dataclasses.asdict(settings.planner_config(resolved)),
            "sampler": resolved.planner.sampler,
        },
        expected=expected | {"protocol": dataclasses.asdict(protocol)},
        origin=facts,
    )
    size = sum(path.stat().st_size for path in (Path(folder) / name).iterdir()) / 1e6
    runtime.console.print(f"{Path(folder) / name}: {size:.1f} MB, expected reward {row['reward']:.3f}", highlight=False)
    return Path(folder) / name


if __name__ == "__main__":
    runtime.main(run)
