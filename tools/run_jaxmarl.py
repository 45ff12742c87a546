"""Runs a training script of a JaxMARL checkout, unmodified, on one of our environments.

    python -m tools.run_jaxmarl <checkout> baselines/IPPO/ippo_ff_mpe.py rb '{"episode_steps": 25}' log.jsonl LR=1e-3

The fourth argument is the environment's parameters; "team_reward": 0.1 among them gives every agent a tenth of the
mean reward, "local_reward": 0.05 a twentieth of its own. Two things stand in for what the script finds around it:
`jaxmarl.make` returns our environment whatever it is asked for, and `wandb` is a recorder that writes what the script
logs as JSON lines. Arguments after the log file go to the script (Hydra overrides).
"""

from __future__ import annotations

import importlib.machinery
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np

import networld_envs
from networld_envs.adapters.jaxmarl import local_reward, team_reward, to_jaxmarl
from networld_jax.transforms import symlog


def recorder(path: Path) -> types.ModuleType:
    """A module `wandb` whose log() appends the scalars of a dict, the mean of anything larger, to `path`."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", loader=None)

    def log(metrics: dict[str, Any], step: Any = None) -> None:
        del step
        row = {name: float(np.mean(np.asarray(value))) for name, value in metrics.items()}
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")

    module.log = log
    module.init = lambda **kwargs: None
    return module


def main(checkout: str, script: str, task: str, overrides: str, log_path: str, *arguments: str) -> None:
    """Runs the script in this process."""
    import jaxmarl

    path = (Path(checkout) / script).resolve()
    if not path.exists():
        sys.exit(f"error: {path} is missing; {checkout} should be a checkout of github.com/FLAIROx/JaxMARL")
    settings = json.loads(overrides)
    rewards = {"team_reward": team_reward, "local_reward": local_reward}
    reward_fn = next((make(settings.pop(name)) for name, make in rewards.items() if name in settings), None)
    env = to_jaxmarl(
        networld_envs.make(task, **settings), observation_fn=symlog, num_networks=64, reward_fn=reward_fn
    )
    jaxmarl.make = lambda name, **kwargs: env
    sys.modules["wandb"] = recorder(Path(log_path))
    name = "alg.ENV_NAME" if "QLearning" in script else "ENV_NAME"
    sys.argv = [str(path), f"{name}={env.name}", *arguments]
    runpy.run_path(str(path), run_name="__main__")
    jax.effects_barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
