"""A stage of the toy run as a command of its own: `python tests/toy_stage.py <stage> --config=... --workdir=...`.

For tests of several processes, in which each must be a real process with its own command line.
"""

import importlib
import sys

import networld_envs
from experiments import runtime, settings
from networld_jax import checkpoints
from tests import tiny, toy_run

if __name__ == "__main__":
    module = importlib.import_module(f"experiments.{sys.argv.pop(1)}")
    make = settings.make_world_model  # linear maps in place of the shared nets, when made and when loaded
    settings.make_world_model = checkpoints.make_world_model = lambda *args: tiny.linear_nets(make(*args))
    networld_envs.ENVIRONMENTS.update(toy_run.TASKS)
    runtime.main(module.run, several_processes=True)
