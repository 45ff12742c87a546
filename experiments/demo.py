"""The paper's idea end to end on CPU: data -> pre-train on two tasks -> few-shot adapt to the third -> plan -> evaluate
-> figures.

    make demo                      held-out task rb
    make demo HELD_OUT=cbf         or ns
    python -m experiments.demo --config=experiments/configs/demo.py --workdir=runs/demo --publish     also into results/

Every stage resumes: interrupted and started again, the demo goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import ml_collections

from experiments import adapt, baselines, collect, figures, pretrain, runtime, settings
from experiments.evaluate import ANCHORS, score_all
from experiments.tables import print_table
from networld_jax import checkpoints, planning
from networld_jax.files import write_atomically

RULES = {
    "cbf": ("random", "mrt", "slnr_full_power", "static_beams", "local_fp", "warm_fp10"),
    "rb": ("random", "share", "queue", "share_plus_3", "mf_rule", "realisable_anchor", "expert"),
    "ns": ("random", "equal", "demand_proportional", "constant", "expert"),
}
"""Rows of the table beside the learned policies: random, simple rules, the realisable anchor, the expert."""


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs all stages and prints the table; returns the content of demo.json."""
    started = time.monotonic()
    task = config.held_out
    settings.environments(config)  # a bad held-out task shows before any work
    collect.run(config, workdir)
    pretrain.run(config, workdir)
    adapt.run(config, workdir)
    scratch = ml_collections.ConfigDict(config)
    scratch.adapt.from_scratch = True
    adapt.run(scratch, workdir)
    rows = evaluate_all(config, workdir)
    paths = figures.run(config, workdir)
    result = {
        "held_out": task,
        "policies": rows,
        "seconds": round(time.monotonic() - started, 1),
        "seed": config.seed,
        **runtime.provenance(),
    }
    write_atomically(Path(workdir) / "demo.json", json.dumps(result, indent=1).encode())
    show(config, rows, paths, result["seconds"])
    return result


def evaluate_all(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Scores of rules, clones, the inverse model alone, NetWorld from scratch and few-shot, on the same instances."""
    task = config.held_out
    env = settings.environment(config, task)
    policies = {name: (settings.rule_policy(task, env, name), {}) for name in RULES[task]}
    policies |= baselines.run(config, workdir)

    world_model, params, stats, _ = checkpoints.load_model(adapt.adapt_dir(workdir, task, False) / "model")
    _, scratch_params, scratch_stats, _ = checkpoints.load_model(adapt.adapt_dir(workdir, task, True) / "model")
    alone = settings.make_planner(config, world_model, task, imagine_fn=planning.repeat_present(world_model))
    planner = settings.make_planner(config, world_model, task)
    few_shot = planning.PolicyParams(params, stats[task])
    policies["inverse_model_alone"] = (alone, few_shot)
    policies["networld_scratch"] = (planner, planning.PolicyParams(scratch_params, scratch_stats[task]))
    policies["networld_few_shot"] = (planner, few_shot)

    return score_all(config, workdir, env, policies)


def show(config: ml_collections.ConfigDict, rows: dict[str, Any], paths: list[Path], seconds: float) -> None:
    """The table, the figures, the time."""
    ordered = sorted(rows.items(), key=lambda item: item[1]["reward"])
    table = [
        (name, f"{r['reward']:.3f} ± {r['sem']:.3f}", f"{r['score']:.2f} ± {r['score_sem']:.2f}") for name, r in ordered
    ]
    first = ordered[0][1]
    low, high = ANCHORS[config.held_out]
    title = f"{config.held_out}: {first['instances']} unseen instances x {first['steps']} steps, few-shot data only"
    print_table(runtime.console, title, ("policy", "reward ± s.e.", f"score (0 {low}, 1 {high})"), table)
    for path in paths:
        runtime.console.print(f"figure: {path}", highlight=False)
    runtime.console.print(f"done in {seconds:.0f} s on {runtime.device_name()}", highlight=False)


def publish(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """results/demo.json and docs/figures/."""
    write_atomically(Path("results/demo.json"), (Path(workdir) / "demo.json").read_bytes())
    target = Path("docs/figures")
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((Path(workdir) / "figures").glob("*.png")):
        shutil.copy(path, target / path.name)


if __name__ == "__main__":
    runtime.main(run, publish)
