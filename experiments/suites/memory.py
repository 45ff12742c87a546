"""Peak memory of every stage at the demo's sizes, each in a process of its own.

Training is cut to a few dispatches and scoring to a few steps: neither changes what a stage holds at once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_collections

from experiments import configs, measure, runtime
from experiments.benchmark import Row, row

# A forked process starts at its parent's peak, so the parent that asks must be a small one.
ASK = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[2:]); "
    "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)"
)


def peak_of(command: list[str], log: Path) -> tuple[int, float]:
    """(largest resident set in bytes, wall seconds) of a command. Raises UserError with the end of its output when it
    fails."""
    started, answer = time.monotonic(), log.with_suffix(".peak")
    with open(log, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(answer), *command], stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise runtime.UserError(f"{' '.join(command)} ended with {done.returncode}: {log.read_text()[-300:]}")
    return int(answer.read_text()) * measure.MAXRSS_BYTES, time.monotonic() - started


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Row]:
    """One row per stage."""
    c, rows = config.benchmark.memory, []
    options = [f"--config={Path(configs.__file__).parent / 'demo.py'}:{config.held_out}"]
    for stage in ("pretrain", "adapt", "baselines", "distill"):
        options += [f"--config.{stage}.num_updates={c.num_updates}"]
        options += [f"--config.{stage}.updates_per_dispatch={c.num_updates // 2}"]
    options += [f"--config.evaluate.num_steps.{config.held_out}={c.num_steps}", "--config.distill.model=adapt"]
    with tempfile.TemporaryDirectory(dir=workdir) as folder, runtime.progress("memory", len(c.stages)) as advance:
        for stage in c.stages:
            command = [sys.executable, "-m", f"experiments.{stage}", *options, f"--workdir={folder}"]
            peak_bytes, seconds = peak_of(command, Path(folder) / f"{stage}.log")
            sizes = {"configuration": "demo", "held_out": config.held_out, "num_updates": c.num_updates}
            rows.append(row(stage, peak_bytes / 2**20, "MiB at most", sizes=sizes, seconds=seconds))
            advance()
    return rows
