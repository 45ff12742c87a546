"""Everything the results page claims: all methods, tasks, tiers and seeds, the controls, the ladder, the data axis.

    python -m experiments.queue --config=experiments/configs/evidence.py --workdir=runs/evidence
    python -m experiments.queue --config=experiments/configs/evidence.py:paper --workdir=runs/paper     (accelerator)

`--config.queue.groups="('controls',)"` chooses groups, `--config.queue.tasks`, `tiers`, `methods`, `seeds`, `splits`,
`sizes`, `cells` replace a group's own list. The preset `small` is made for 2 CPU cores: about a minute per run.
"""

from ml_collections import ConfigDict

from experiments import grids, methods
from experiments.configs import default, paper
from networld_jax.baselines import BASELINES

HEADLINE = (*BASELINES, "ma_dd_aware", "ma_cdmp", "networld_scratch", "networld", "idm_only", "idm_only_noise")
RIVALS = ("filtered_bc", "ma_dd", "diffusion_policy")
"""On each task the best rival on mixed data: four of it act as one, too, and it has as many seeds as ours."""
IN_FOURS = (*methods.ENSEMBLED, *RIVALS)

FEW_SHOT = {"rb": (1000,), "cbf": (180,), "ns": (120,)}  # environment steps: 4, 3 and 2 trajectories' worth
FEW = {"cbf": (180, 600), "rb": (250, 500), "ns": (120, 480)}  # where NetWorld was ahead of rivals as they are
SIZES = {"rb": (250, 500, 1500, 5000, 20000), "cbf": (60, 180, 600, 3840), "ns": (60, 120, 480, 1920)}
EXPERT = {
    "cbf": {"adapt": {"weight_decay": 1.0}, "planner": {"guide_scale": 30.0}},
    "rb": {
        "adapt": {"weight_decay": 1.0},
        "model": {"noise_aware_inverse_dynamics": True},
        "loss": {"inverse_dynamics_noise": 2.0},  # of what is not noise-aware: MA-DD, MA-CDMP
        "planner": {"guide_scale": 30.0, "inverse_dynamics_noise": 5.0},
    },
    "ns": {"adapt": {"weight_decay": 1.0}, "planner": {"guide_scale": 10.0}},
}
"""`default.TUNED` for expert data, where returns say less and actions follow more from the present (E15, E20, E21,
E23)."""

TOPOLOGIES = {  # (environment steps, over how many networks)
    "rb": ((1000, 4), (1000, 10), (1000, 20), (1000, 40)),
    "cbf": ((240, 4), (240, 8), (240, 24), (240, 30)),  # 8 slots each, the least that holds a window
    "ns": ((240, 4), (240, 8), (240, 24)),
}


def group(methods: tuple[str, ...], **fields) -> ConfigDict:
    """Defaults of a group: mixed data, three seeds, test instances, all target data, the end of training."""
    g = ConfigDict()
    g.methods = methods
    g.tasks = ()  # empty = all
    g.tiers = ("mixed",)
    g.seeds = (0, 1, 2)
    g.splits = ("test",)
    g.cells = (("own+mf", "task"),)  # (obs_set, label); "task" = its label in default.py; (("best", "best"),) = the
    # best on validation so far
    g.sizes = ConfigDict()  # task -> environment steps, or (steps, topologies); empty = all target data
    g.updates = (1.0,)  # shares of training at which to score
    g.variants = ""  # of experiments/grids.py: "all" settings of a method, too; or, instead of it, the "finalists" on
    # validation so far, the "best" of these
    g.update(fields)
    return g


def small(c: ConfigDict) -> None:
    """2 CPU cores."""
    c.collect.num_trajectories = ConfigDict({"cbf": 64, "rb": 80, "ns": 32})
    c.collect.num_steps = ConfigDict({"cbf": 60, "rb": 250, "ns": 60})
    c.collect.num_parallel = 16
    headline = {"cbf": 32, "rb": 40, "ns": 16}
    c.pretrain.num_trajectories = ConfigDict(headline)
    c.queue.target_trajectories = ConfigDict(headline)
    c.pretrain.num_updates = 1000
    c.adapt.num_updates = 1000
    c.baselines.num_updates = 1000
    c.evaluate.num_instances = ConfigDict({"cbf": 32, "rb": 16, "ns": 16})
    c.evaluate.num_steps = ConfigDict({"cbf": 100, "rb": 200, "ns": 60})
    c.evaluate.burn_in_steps = ConfigDict({"cbf": 20, "rb": 100, "ns": 10})
    c.evaluate.num_parallel = 32


def get_config(preset: str = "small") -> ConfigDict:
    """`--config=experiments/configs/evidence.py:paper` takes the paper's sizes."""
    if preset not in ("small", "paper"):
        raise ValueError(f"preset must be 'small' or 'paper', got {preset!r}")
    c = default.get_config() if preset == "small" else paper.get_config()

    c.queue = ConfigDict()
    c.queue.preset = preset
    c.queue.groups = ("headline",)
    c.queue.tasks = c.queue.tiers = c.queue.methods = c.queue.seeds = c.queue.splits = ()  # not empty: replace the
    c.queue.sizes = c.queue.cells = ()  # group's own
    c.queue.only = ""  # the name of one run
    c.queue.dry_run = False  # print the list and the estimate, run nothing
    c.queue.default_cell = ("own+mf", "task")  # where "best" is asked for and no validation row exists
    c.queue.settings = ConfigDict({"mixed": default.TUNED, "expert": EXPERT})  # by tier and task; other tiers: mixed's
    c.queue.target_trajectories = ConfigDict(dict.fromkeys(c.tasks, 0))  # target data of the headline; 0 = all
    if preset == "small":
        small(c)
    else:
        c.collect.num_trajectories = ConfigDict(dict.fromkeys(c.tasks, 300))
        c.pretrain.num_trajectories = ConfigDict(dict.fromkeys(c.tasks, 100))

    rules = ("rules", "behaviour", "best_behaviour")
    five = (0, 1, 2, 3, 4)
    c.groups = ConfigDict()
    c.groups.headline = group((*rules, *HEADLINE), tiers=("mixed", "expert"))
    c.groups.headline_seeds = group(("networld", "networld_scratch", *RIVALS), seeds=five)
    four = (("own", "own"), ("own+mf", "own"), ("own", "neighbourhood"), ("own+mf", "neighbourhood"))
    everywhere = ("mixed", "expert")
    searched, scored_on = tuple(grids.GRIDS), {"tiers": everywhere, "splits": ("validation",)}
    c.groups.tuning = group(searched, **scored_on, seeds=(0,), variants="all")
    c.groups.tuning_finals = group(searched, **scored_on, seeds=(1, 2), variants="finalists")
    c.groups.tuned = group(searched, tiers=everywhere, variants="best")
    c.groups.tuned_seeds = group(("networld_scratch", "ma_iql", *RIVALS), variants="best", seeds=five)
    c.groups.tuned_fresh_seeds = group(
        ("networld_scratch", "ma_iql"), tasks=("cbf",), variants="best", seeds=(5, 6, 7, 8, 9)
    )
    c.groups.cells = group(HEADLINE, tiers=("mixed", "expert"), splits=("validation",), seeds=(0,), cells=four)
    c.groups.headline_best = group((*rules, *HEADLINE), tiers=("mixed", "expert"), cells=(("best", "best"),))
    few_shot = FEW_SHOT if preset == "small" else dict.fromkeys(c.tasks, (50_000,))
    c.groups.controls = group(
        ("networld", "networld_scratch", "scratch_long", "random_unet", "networld_frozen", "networld_shuffled",
         "networld_autoregressive", *methods.single_source(tuple(c.tasks)), "networld_joint", "idm_only",
         "idm_only_noise", "scratch_idm_only", "ma_bc", "filtered_bc", "multi_task_bc"),
        sizes=ConfigDict(few_shot),
    )  # fmt: skip
    axis = ("networld", "networld_scratch", "ma_bc", "filtered_bc", "ma_iql", "multi_task_bc")
    steps = SIZES if preset == "small" else dict.fromkeys(c.tasks, (500, 1500, 5000, 15_000, 50_000, 150_000, 500_000))
    c.groups.sizes = group(axis, sizes=ConfigDict(steps))
    few = FEW if preset == "small" else {task: amounts[:2] for task, amounts in steps.items()}
    c.groups.sizes_tuned = group(("filtered_bc", "rc_bc", "ma_iql"), sizes=ConfigDict(few), variants="best")
    c.groups.topologies = group(axis[:3], sizes=ConfigDict(TOPOLOGIES) if preset == "small" else ConfigDict())
    trained_alike = ("idm_only", "idm_only_noise", "ma_dd_aware")  # as networld, networld and ma_dd
    learners = tuple(name for name in HEADLINE if name not in trained_alike)
    c.groups.curves = group(learners, updates=(0.1, 0.2, 0.4, 0.7, 1.0))
    c.groups.guidance = group(
        ("networld_scratch", "scratch_w0", "scratch_w1", "scratch_w3", "scratch_w10", "scratch_w100",
         "scratch_w300", "scratch_w1000",
         "scratch_surprise_w10", "scratch_surprise_w30", "scratch_surprise_w100", "scratch_surprise_w300",
         "scratch_surprise_w1000", "scratch_surprise_w3000",
         "scratch_sham_random", "scratch_sham_value", "scratch_sham_flipped", "scratch_idm_only",
         "scratch_idm_only_noise"),
    )  # fmt: skip
    c.groups.planning = group(
        ("networld_scratch", "scratch_best_of_4", "scratch_best_of_4_q", "scratch_ddim_1", "scratch_ddim_5",
         "scratch_dpmpp_2m", "scratch_ddpm_20", "scratch_noise_1", "scratch_mean_of_4", "scratch_shared_trunk",
         "scratch_messages_float32", "scratch_delay_2", "scratch_delay_5", "scratch_loss_30"),
    )  # fmt: skip
    c.groups.training = group(
        ("networld_scratch", "scratch_h2", "scratch_h4", "scratch_h16", "scratch_h32", "scratch_idm_clean",
         "scratch_idm_latent_noise",
         "scratch_idm_noise_1", "scratch_centred", "scratch_advantage", "scratch_imagined", "scratch_imagined_short",
         "scratch_mlp_encoder", "scratch_mlp_joint",
         "scratch_predict_noise", "scratch_hear_quantised", *(f"scratch_decay_{d:g}" for d in methods.DECAYS)),
    )  # fmt: skip
    trust = tuple(f"scratch_trust_{s:g}" for s in methods.TRUST)
    c.groups.trust = group(("networld_scratch", *trust), tiers=("mixed", "expert"))
    shifts = tuple(f"scratch_shift_{shift:g}" for shift in methods.SHIFTS)
    c.groups.shift = group(("networld_scratch", *shifts), tiers=("mixed", "expert"))
    c.groups.ensembles = group((*(methods.ensemble_of(name) for name in IN_FOURS), *IN_FOURS))
    at_rates = lambda name, rates: tuple(methods.finetuned(name, rate) for rate in rates)  # noqa: E731
    slowly = at_rates("networld", methods.FINETUNE_SCALES)
    c.groups.adaptation = group(("networld", "networld_frozen", *slowly), sizes=ConfigDict(few_shot))
    learning = (1.0, *filter(None, methods.FINETUNE_SCALES))
    rates = tuple(at for name in methods.PRETRAINED_ON for at in at_rates(name, learning))
    amounts = ConfigDict(few_shot)
    c.groups.adaptation_rate = group(("networld_scratch", *rates), sizes=amounts, splits=("validation",))
    c.groups.adaptation_controls = group(("networld_scratch", "random_unet", *rates), sizes=amounts, seeds=five)
    bottom, whole = methods.LADDER[0].method, methods.LADDER[-1].cell
    upper = tuple(rung.method for rung in methods.LADDER if rung.method != bottom)
    c.groups.ladder_bottom = group((bottom,), cells=tuple(r.cell for r in methods.LADDER if r.method == bottom))
    c.groups.ladder = group(upper, cells=(whole,))  # also where the task's label is another
    c.groups.ceiling = group(("simulator_planner",), tasks=("rb", "cbf"))
    c.groups.paper_reading = group(("networld", "paper_reading"))
    return c
