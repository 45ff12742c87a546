"""Every rule of every task on the fixed test instances.

python -m experiments.calibrate --config=experiments/configs/calibrate.py --workdir=runs/calibrate --publish
"""

from ml_collections import ConfigDict

from experiments.configs import default


def get_config() -> ConfigDict:
    """32 instances of cbf and rb, 16 of ns, whose oracles are slow: give them more steps with more patience."""
    c = default.get_config()
    c.calibrate = ConfigDict()
    c.calibrate.tasks = c.tasks
    c.calibrate.with_variants = True
    c.calibrate.variants = ConfigDict()  # name ("<task> <what>") -> the task with changed parameters
    rules = {
        "cbf": ("random", "mrt", "slnr_full_power", "local_fp", "local_fp_floor", "warm_fp10"),
        "rb": ("random", "queue", "share_plus_3", "mf_rule", "expert"),
    }
    for name, overrides in (
        ("cbf global prices", {"price_scope": "global"}),
        ("rb M=2", {"mini_slots_per_rb": 2}),
        ("rb M=4", {"mini_slots_per_rb": 4}),
        ("rb free signalling", {"mini_slots_per_rb": None}),
        ("rb light load", {"rho": 0.85}),
        ("rb heavy load", {"rho": 1.15}),
        ("rb independent bursts", {"cluster_correlation": 0.0}),
        ("rb half duplex", {"half_duplex": True}),
        ("rb two-hop head", {"head_scope": "two_hop"}),
    ):
        task = name.split()[0]
        c.calibrate.variants[name] = ConfigDict({"task": task, "overrides": overrides, "policies": rules[task]})
    c.calibrate.percentiles = ("rate", "reward")  # per-agent metrics whose 10th percentile over agents is reported
    c.evaluate.num_instances = ConfigDict({"cbf": 32, "rb": 32, "ns": 16})
    c.evaluate.num_steps = ConfigDict({"cbf": 200, "rb": 500, "ns": 100})
    c.evaluate.burn_in_steps = ConfigDict({"cbf": 20, "rb": 100, "ns": 20})
    c.evaluate.num_parallel = 16
    return c
