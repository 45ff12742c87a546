"""The queue's configuration over the toy environments, as small as it goes."""

import ml_collections

from experiments.configs import evidence
from tests import toy_run


def get_config() -> ml_collections.ConfigDict:
    c = toy_run.get_config()
    for name in ("queue", "groups"):
        c[name] = evidence.get_config()[name]
    c.queue.preset = "tiny"
    c.queue.target_trajectories = ml_collections.ConfigDict(dict.fromkeys(toy_run.TASKS, 3))
    tuned = {"mixed": {}, "expert": {task: {"planner": {"guide_scale": 10.0}} for task in toy_run.TASKS}}
    c.queue.settings = ml_collections.ConfigDict(tuned)
    c.pretrain.num_trajectories = ml_collections.ConfigDict(dict.fromkeys(toy_run.TASKS, 0))
    c.evaluate.num_instances.update(dict.fromkeys(toy_run.TASKS, 6))
    shown = ("rules", "behaviour", "best_behaviour", "ma_bc", "networld_scratch", "scratch_w0")
    c.groups.toy = evidence.group(shown, tiers=("expert",))
    c.groups.toy.tasks, c.groups.toy.seeds = ("busy_queues",), (0, 1)
    return c
