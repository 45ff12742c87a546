"""Small trained planners that come with the package, each with the score it is expected to reach.

>>> planner = load_pretrained("networld_rb_mixed")
>>> plans = nw.rollout(key, env, env.default_params, planner.policy, planner.policy_params, 100)

One folder per model (`checkpoints.save_model`: plain arrays and a signed description), written by
`python -m experiments.publish_pretrained`. `facts["expected"]` holds reward, score, instances and the command of the
row that measured it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from networld_envs.types import Policy
from networld_jax import checkpoints, planning
from networld_jax.presets import SAMPLERS
from networld_jax.schedules import cosine_schedule
from networld_jax.types import PlannerConfig
from networld_jax.world_model import WorldModel

FOLDER = Path(__file__).parent


class Pretrained(NamedTuple):
    """A planner ready to act."""

    task: str
    policy: Policy
    policy_params: planning.PolicyParams
    world_model: WorldModel
    facts: dict[str, Any]  # origin, planner settings, expected score


def pretrained_names() -> tuple[str, ...]:
    """Models that this installation has."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{checkpoints.MODEL_FILE}")))


def load_pretrained(name: str, folder: Path = FOLDER) -> Pretrained:
    """A model by name. Raises ValueError naming the choices, CheckpointError for damaged files."""
    if not (Path(folder) / name / checkpoints.MODEL_FILE).exists():
        raise ValueError(f"unknown pretrained model {name!r}; choose one of {list(pretrained_names())}")
    world_model, params, stats, facts = checkpoints.load_model(Path(folder) / name)
    task, settings = facts["task"], facts["planner"]
    policy = planning.make_planner(
        world_model,
        cosine_schedule(world_model.config.diffusion_steps),
        task,
        PlannerConfig(**settings["config"]),
        sampler=SAMPLERS[settings["sampler"]],
    )
    return Pretrained(task, policy, planning.PolicyParams(params, stats[task]), world_model, facts)
