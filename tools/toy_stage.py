"""A stage over the toy networks of the tests: seconds instead of minutes, through the same code and command line.

python -m tools.toy_stage pretrain --config=tests/toy_run.py --workdir=runs/toy [--config.<field>=<value>]
"""

from __future__ import annotations

import importlib
import sys

import networld_envs
from experiments import runtime, settings
from tests import tiny, toy_run

STAGES = ("collect", "pretrain", "adapt", "baselines", "queue")


def install() -> None:
    """Makes the toy networks known; linear maps take the place of the shared nets, whose compilation takes longest."""
    networld_envs.ENVIRONMENTS.update(toy_run.TASKS)
    make = settings.make_world_model
    settings.make_world_model = lambda *args: tiny.linear_nets(make(*args))


def run(stage: str) -> None:
    """The stage with the flags of sys.argv."""
    install()
    runtime.main(importlib.import_module(f"experiments.{stage}").run)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        runtime.fail(f"stage must be one of {STAGES}, got {sys.argv[1:2]}")
    run(sys.argv.pop(1))
