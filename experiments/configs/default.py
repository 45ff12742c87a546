"""Every value of every stage, with its unit. The other files change a few of them.

python -m experiments.<stage> --config=experiments/configs/small.py --workdir=runs/small [--config.<field>=<value>]
"""

import dataclasses

from ml_collections import ConfigDict

from networld_jax.baselines import DEFAULTS
from networld_jax.presets import PRESETS, SAMPLERS
from networld_jax.types import LossConfig

TASKS = ("cbf", "rb", "ns")
TUNED = {
    "cbf": {
        "model": {"noise_aware_inverse_dynamics": True},
        "planner": {"guide_scale": 100.0, "inverse_dynamics_noise": 0.6},
    },
    "rb": {"planner": {"guide_scale": 30.0}},
    "ns": {"planner": {"guide_scale": 100.0}},
}
"""What differs from the `small` preset by task, chosen on validation instances with mixed data (docs/experiments.md: E4
and E13 for w, E20 for the noise-aware inverse model and its s)."""

LABEL = {"cbf": "neighbourhood", "rb": "neighbourhood", "ns": "own"}
"""Whose reward an agent's return counts: where agents hardly touch each other, neighbours' rewards are noise (E13)."""


def label_of(task: str) -> str:
    """The return label of a task; agents of an unknown one are taken to affect their neighbours."""
    return LABEL.get(task, LossConfig.label)


def use_preset(c: ConfigDict, name: str) -> ConfigDict:
    """Sets model, loss and planner to a preset of networld_jax.presets; any field may still be overridden after it.

    Raises ValueError for an unknown preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    preset = PRESETS[name]
    c.preset = name
    c.model = ConfigDict(dataclasses.asdict(preset.model))
    c.loss = ConfigDict(dataclasses.asdict(preset.loss))
    if c.loss.label == LossConfig.label:  # unless the preset is about another one
        c.loss.label = label_of(c.held_out)
    planner = dataclasses.asdict(preset.planner)
    planner["message_delay_steps"] = -1  # -1 = what the task declares
    c.planner = ConfigDict(planner)
    c.planner.sampler = next(key for key, fn in SAMPLERS.items() if fn is preset.sampler)
    c.planner.rank = "return"  # how candidates compare: "return" (classifier) or "action_value" (Q)
    c.planner.imagine = "diffusion"  # controls without a world model: "present" (z_1 = z_0), "noise" (z_1 = noise)
    c.planner.guidance = "return"  # sham controls of the same norm: "random", "value" (gradient of V), "flipped"
    return c


def use_baselines(c: ConfigDict) -> None:
    """Sets c.baselines: one budget for all, and per method every field of its dataclass (documented there)."""
    c.baselines = ConfigDict()
    c.baselines.methods = ("ma_bc", "ma_bc_mf")  # what the stage trains; "_mf" = hears its neighbours
    c.baselines.num_updates = 1000  # the same for every method; every schedule is scaled to it
    c.baselines.updates_per_dispatch = 250
    c.baselines.dispatches_per_checkpoint = 2
    for name, defaults in DEFAULTS.items():
        fields = dataclasses.asdict(defaults)
        del fields["num_updates"]
        c.baselines[name] = ConfigDict(fields)


def get_config(held_out: str = "rb") -> ConfigDict:
    """The `small` scale (2 CPU cores); `paper.py` holds the paper's sizes. `--config=<file>:cbf` holds out cbf."""
    c = ConfigDict()
    c.seed = 0  # of networks and training; instances come from frozen ranges and do not depend on it
    c.tasks = TASKS  # order fixes the rows of the task embedding
    c.held_out = held_out  # few-shot target; the others are the sources

    c.tracker = "none"  # where training metrics go beside metrics.jsonl: "none" or "tensorboard"
    c.mesh = ConfigDict()  # devices, of all hosts together; see docs/scaling.md
    c.mesh.data = -1  # over how many devices batches and datasets are split; -1 = all there are
    c.mesh.model = 1  # over how many devices of one host the channels of wide layers are split

    c.environment = ConfigDict()  # parameters changed per task, e.g. environment.ns.preset = "tiny"
    for task in c.tasks:
        c.environment[task] = ConfigDict()

    c.collect = ConfigDict()
    c.collect.tasks = ()  # which tasks to collect; empty = all of `tasks`
    c.collect.tier = "mixed"  # one of the tiers of networld_envs.experts
    c.collect.num_trajectories = ConfigDict({"cbf": 48, "rb": 96, "ns": 24})
    c.collect.num_steps = ConfigDict({"cbf": 100, "rb": 200, "ns": 100})  # environment steps per trajectory
    c.collect.num_parallel = 8  # trajectories simulated side by side per device; shards are written group by group
    c.collect.steps_per_dispatch = 50  # progress is shown after each
    c.collect.float64 = ("cbf",)  # tasks whose experts need double precision (deep nulls of FP beams)
    c.collect.reference_instances = 4  # train_eval instances for the manifest's random and expert scores
    c.collect.reference_steps = 100

    use_preset(c, "small")  # c.model, c.loss, c.planner: networld_jax.types documents every field

    c.pretrain = ConfigDict()
    c.pretrain.sources = ()  # source tasks; empty = all but the held-out one
    c.pretrain.num_trajectories = ConfigDict(dict.fromkeys(c.tasks, 0))  # of each source; 0 = all that were collected
    c.pretrain.data = "real"  # controls: "shuffled" (steps in random order), "autoregressive" (smooth noise observed)
    c.pretrain.few_shot_target = False  # a held-out task among the sources shows its few-shot data only
    c.pretrain.num_updates = 2000
    c.pretrain.sequences_per_task = 128  # agent windows per task and update (rounded to whole networks)
    c.pretrain.learning_rate = 1e-3  # cosine to zero
    c.pretrain.warmup_updates = 100
    c.pretrain.ema_decay = 0.995
    c.pretrain.updates_per_dispatch = 100
    c.pretrain.dispatches_per_checkpoint = 5

    c.adapt = ConfigDict()
    c.adapt.num_trajectories = 10  # few-shot data of the held-out task: trajectories ...
    c.adapt.num_steps = 0  # ... or total environment steps (0 = whole trajectories) ...
    c.adapt.num_topologies = 0  # ... spread evenly over so many trajectories (0 = over as few as hold them)
    c.adapt.imagined_share = 0.0  # of the training trajectories that an imagined actor makes in its learned simulator
    c.adapt.imagined_steps = 0  # of each of these; 0 = as many as a logged one has
    c.adapt.from_scratch = False  # ignore the pre-trained weights: the honest control
    c.adapt.num_updates = 1000
    c.adapt.sequences = 128
    c.adapt.learning_rate = 1e-3
    c.adapt.transfer = ("denoiser",)  # shared nets that keep their pre-trained weights; the others learn anew
    c.adapt.finetune_scale = 1.0  # learning rate of the shared nets that are kept relative to the new task's
    c.adapt.readout_scale = -1.0  # ... of their last layers; -1 = like the rest of them
    c.adapt.weight_decay = 0.0  # kernels shrink by learning_rate * weight_decay per update
    c.adapt.warmup_updates = 50
    c.adapt.ema_decay = 0.995
    c.adapt.updates_per_dispatch = 100
    c.adapt.dispatches_per_checkpoint = 5

    use_baselines(c)

    c.ensemble = ConfigDict()
    c.ensemble.num_members = 1  # policies of a row of the queue, trained from seeds of their own; the mean of their
    # actions is executed

    c.distill = ConfigDict()  # students of the guided planner, see networld_jax.distillation
    c.distill.model = "scratch"  # whose planner is the teacher: "adapt" or "scratch"
    c.distill.students = ("chain", "row")  # also "noisy_row"
    c.distill.hidden = (128, 128)  # of the row students
    c.distill.variants = ConfigDict()  # other settings of the planner itself, compared with the students
    c.distill.variants.ddpm = ConfigDict({"sampler": "ddpm", "num_steps": 20})
    c.distill.variants.six_evaluations = ConfigDict({"num_steps": 6})
    c.distill.variants.dpmpp_2m = ConfigDict({"sampler": "dpmpp_2m"})
    c.distill.variants.mean_of_4 = ConfigDict({"num_averaged": 4})
    c.distill.variants.warm_start = ConfigDict({"warm_start": 0.3, "num_steps": 2})
    c.distill.variants.two_evaluations = ConfigDict({"num_steps": 2})
    c.distill.num_updates = 1000
    c.distill.sequences = 128  # agent states per update (rounded to whole networks)
    c.distill.learning_rate = 1e-3
    c.distill.warmup_updates = 50
    c.distill.ema_decay = 0.995
    c.distill.updates_per_dispatch = 100
    c.distill.dispatches_per_checkpoint = 5

    c.scaling = ConfigDict()  # suite `scaling` of experiments.benchmark
    c.scaling.task = "cbf"  # whose observations and actions the agents have
    c.scaling.num_agents = (19, 64, 256, 1024, 3162, 10_000)
    c.scaling.chunk = 256  # agents planned for in one batch
    c.scaling.matrix_agents = 3162  # up to here the mean field is timed with an N x N matrix, too
    c.scaling.seconds = 30.0  # of interleaved calls, at least five of each
    c.scaling.mean_field_seconds = 1.0

    c.export = ConfigDict()
    c.export.platforms = ("cpu",)  # what an exported agent runs on: "cpu", "cuda", "rocm", "tpu"
    c.export.check_steps = 5  # steps of a validation network in which exported agents are compared with the planner

    c.evaluate = ConfigDict()
    c.evaluate.split = "test"
    c.evaluate.policies = ("networld",)  # plus any rule or expert of the task
    c.evaluate.num_instances = ConfigDict({"cbf": 32, "rb": 16, "ns": 16})
    c.evaluate.num_steps = ConfigDict({"cbf": 80, "rb": 200, "ns": 100})
    c.evaluate.burn_in_steps = ConfigDict({"cbf": 20, "rb": 100, "ns": 10})
    c.evaluate.num_parallel = 8  # instances simulated side by side per device
    return c
