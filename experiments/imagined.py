"""Training data out of a learned simulator: what a population of the imagined actor's kind would see and earn.

A return logged in a mixed population is not what a population of one's own earns (docs/experiments.md, E28). So the
imagined actor is trained on the logged data first, then it acts in its own simulator from logged moments on, and its
trajectories are what the world model learns from, alone or beside the logged ones. The shorter they are, the closer
they stay to what was logged: a simulator's errors add up (`adapt.imagined_steps`).
"""

from __future__ import annotations

from pathlib import Path

import jax
import ml_collections
import numpy as np

from experiments import baselines, settings, train_loop
from experiments.memo import Memo
from networld_envs.types import TaskSpec
from networld_jax import datasets
from networld_jax.baselines.imagined_actor import simulator_of
from networld_jax.learned_environment import make_learned_environment
from networld_jax.rollout import rollout
from networld_jax.types import Trajectories

ACTOR = "imagined_actor"


def number_imagined(share: float, num_logged: int) -> int:
    """How many imagined trajectories make up `share` of all; of 1, as many as there are logged ones.

    Raises ValueError outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"adapt.imagined_share must lie in [0, 1], got {share}; 0 trains on logged data alone")
    return num_logged if share == 1.0 else round(num_logged * share / (1.0 - share))


def depends_on(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Sections, beside those of adaptation, that its training data depend on."""
    return ("baselines",) if config.adapt.imagined_share else ()


def with_imagined(
    config: ml_collections.ConfigDict, directory: Path, data: Trajectories, spec: TaskSpec, memo: Memo
) -> Trajectories:
    """`data` with imagined trajectories, `adapt.imagined_share` of all (1: instead of them). With
    `adapt.imagined_steps` they are so long, as many as make up the same number of steps, and logged ones are cut
    alike. The actor is trained, or resumed, in `directory`/imagined_actor.

    Raises ValueError for a share outside [0, 1], for more steps than the logged trajectories have, and in a job of
    several processes.
    """
    share, length = config.adapt.imagined_share, data.reward.shape[1]
    num_steps = config.adapt.imagined_steps or length
    if num_steps > length:
        raise ValueError(
            f"adapt.imagined_steps must be at most {length}, what a logged trajectory has, got {num_steps}; 0 takes all"
        )
    count = number_imagined(share, data.reward.shape[0] * (length // num_steps))
    if not count:
        return data
    if jax.process_count() > 1:
        raise ValueError(
            f"adapt.imagined_share must be 0 in a job of several processes, got {share}: baselines train in one"
        )
    train_loop.check_updates(config.baselines, "baselines")
    method, stats = f"{ACTOR}{baselines.MEAN_FIELD}", settings.task_stats(config, data, spec)
    policy, parameters = baselines.train_baseline(config, directory / ACTOR, method, spec, data, stats, memo=memo)
    simulator = simulator_of(spec, baselines.baseline_config(config, method))
    members = parameters.params["simulator"]
    env = make_learned_environment(spec, simulator, members, parameters.stats, data, num_steps)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), count)

    @jax.jit
    def imagine(keys, env_params, parameters):
        return jax.vmap(lambda key: rollout(key, env, env_params, policy, parameters, num_steps))(keys)

    imagined = jax.tree.map(np.asarray, imagine(keys, env.default_params, parameters))
    return imagined if share == 1.0 else datasets.concatenate([datasets.chop(data, num_steps), imagined])
