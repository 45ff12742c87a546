"""Every method of the evidence by its name in the tables: what differs from the default configuration, nothing else.

A learned method is a handful of configuration changes, so that the comparison is between settings anyone can type at a
command line, and a new method is one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from experiments import grids
from experiments.configs import default
from networld_jax.baselines import BASELINES
from networld_jax.types import PlannerConfig


@dataclasses.dataclass(frozen=True)
class Method:
    """How a row comes about."""

    note: str  # one phrase for the tables
    kind: str  # "world model", "baseline" (a baseline of networld_jax.baselines), "rule", "behaviour", "ceiling"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # dotted configuration field -> value
    preset: str = ""  # start from this preset of networld_jax.presets instead of `small`
    cell: tuple[str, str] | None = None  # (obs_set, label) where the method fixes them

    def apply(self, config: ml_collections.ConfigDict) -> None:
        """Changes the configuration in place. Raises ValueError naming a field that does not exist."""
        if self.preset:
            default.use_preset(config, self.preset)
        for field, value in self.changes.items():
            set_field(config, field, value)


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """config.<a>.<b> = value. Raises ValueError for a field that the configuration lacks."""
    *folders, name = field.split(".")
    node = config
    for folder in folders:
        node = node.get(folder)
        if node is None:
            break
    if node is None or name not in node:
        raise ValueError(f"unknown configuration field {field!r}; experiments/configs/default.py lists them all")
    node[name] = value


SCRATCH = {"adapt.from_scratch": True}
ANCESTOR = {  # what MA-CDMP does not have
    "adapt.weight_decay": 0.0,
    "model.noise_aware_inverse_dynamics": False,
    "planner.inverse_dynamics_noise": PlannerConfig.inverse_dynamics_noise,
}


def scratch(note: str, preset: str = "", **changes: Any) -> Method:
    """A world model trained on the target data alone."""
    return Method(note, "world model", SCRATCH | _dotted(changes), preset)


def pretrained(note: str, **changes: Any) -> Method:
    """A world model pre-trained on sources and adapted."""
    return Method(note, "world model", _dotted(changes))


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}


NETWORLD = {
    "networld": pretrained("pre-trained on the other tasks, adapted to the target data"),
    "networld_scratch": scratch("the same model on the target data alone"),
    "idm_only": pretrained("networld's inverse model alone, z_1 = z_0", planner__imagine="present"),
    "idm_only_noise": pretrained("networld's inverse model alone, z_1 = noise", planner__imagine="noise"),
    "paper_reading": Method("the paper at its word", "world model", {}, "paper_reading", ("own+mf", "own")),
    "ma_cdmp": Method(
        "single-task ancestor: own return, target data",
        "world model",
        SCRATCH | ANCESTOR,
        "",
        ("own+mf", "own"),
    ),
}

CONTROLS = {
    "random_unet": scratch(
        "random shared nets, frozen; only their last layers are trained",
        adapt__finetune_scale=0.0,
        adapt__readout_scale=1.0,
    ),
    "networld_frozen": pretrained(
        "pre-trained shared nets, frozen but for their last layers",
        adapt__transfer=("denoiser", "classifier"),
        adapt__finetune_scale=0.0,
        adapt__readout_scale=1.0,
    ),
    "networld_shuffled": pretrained("pre-trained on time-shuffled trajectories", pretrain__data="shuffled"),
    "networld_autoregressive": pretrained("pre-trained on AR(1) noise", pretrain__data="autoregressive"),
}

FINETUNE_SCALES = (0.0, 0.1, 0.3)


def finetuned(name: str, scale: float) -> str:
    """The name of a pre-trained method whose shared nets adapt at `scale` times the rate; at 1 its own."""
    return name if scale == 1 else f"{name}_finetune_{scale:g}"


PRETRAINED_ON = ("networld", "networld_shuffled", "networld_autoregressive")
"""The same nets pre-trained on trajectories of other tasks, on their steps in random order, on noise."""
FINETUNED = {
    finetuned(name, scale): dataclasses.replace(
        single,
        note=f"{name} with shared nets fine-tuned at {scale:g} times the rate",
        changes={**single.changes, "adapt.finetune_scale": scale},
    )
    for name, single in (NETWORLD | CONTROLS).items()
    if name in PRETRAINED_ON
    for scale in FINETUNE_SCALES
}

TRUST = (0.3, 0.6, 1.2, 2.5, 5.0, 10.0)  # s at which noise-aware inverse models are decoded

SHIFTS = (0.05, 0.1, 0.2, 0.4)  # standard deviations of the data's actions

DECAYS = (1.0, 3.0, 10.0)  # 1000 updates at 1e-3 (cosine) leave exp(-decay / 2) of an idle kernel

ABLATIONS = {
    **{
        f"scratch_w{w:g}": scratch(f"guidance scale {w:g}", planner__guide_scale=w)
        for w in (0.0, 1.0, 3.0, 10.0, 100.0, 300.0, 1000.0)
    },
    **{
        f"scratch_surprise_w{w:g}": scratch(
            f"guidance in units of surprise, scale {w:g}", planner__guide_metric="surprise", planner__guide_scale=w
        )
        for w in (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
    },
    "scratch_sham_random": scratch("guidance along a random direction of equal norm", planner__guidance="random"),
    "scratch_sham_value": scratch("guidance by the state value alone", planner__guidance="value"),
    "scratch_sham_flipped": scratch("guidance down the gradient", planner__guidance="flipped"),
    "scratch_idm_only": scratch("inverse model alone, z_1 = z_0", planner__imagine="present"),
    "scratch_idm_only_noise": scratch("inverse model alone, z_1 = noise", planner__imagine="noise"),
    "scratch_idm_clean": scratch("inverse model trained without noise", loss__inverse_dynamics_noise=0.0),
    "scratch_idm_latent_noise": scratch(
        "noise of half a latent standard deviation in every channel",
        loss__inverse_dynamics_noise=0.5,
        loss__noise_unit="latent",
    ),
    "scratch_idm_noise_1": scratch("inverse model trained with noise 1", loss__inverse_dynamics_noise=1.0),
    **{
        f"scratch_trust_{s:g}": scratch(
            f"inverse model told which noise it gets, decoded at s = {s:g}",
            model__noise_aware_inverse_dynamics=True,
            planner__inverse_dynamics_noise=s,
        )
        for s in TRUST
    },
    "scratch_centred": scratch("classifier learns the advantage", loss__centred=True),
    "scratch_advantage": scratch("inverse model weighs actions by advantage", loss__advantage_weighting=1.0),
    "scratch_imagined": scratch(
        "trained on trajectories of an imagined actor, not guided", adapt__imagined_share=1.0, planner__guide_scale=0.0
    ),
    "scratch_imagined_short": scratch(
        "trained on 25 steps at a time of an imagined actor, not guided",
        adapt__imagined_share=1.0,
        adapt__imagined_steps=25,
        planner__guide_scale=0.0,
    ),
    "scratch_best_of_4": scratch("best of 4 plans by the classifier", planner__num_candidates=4),
    "scratch_best_of_4_q": scratch(
        "best of 4 plans by Q(z_0, m_0, a)", planner__num_candidates=4, planner__rank="action_value"
    ),
    "scratch_ddim_1": scratch("DDIM, 1 evaluation", planner__num_steps=1),
    "scratch_ddim_5": scratch("DDIM, 5 evaluations", planner__num_steps=5),
    "scratch_dpmpp_2m": scratch("DPM-Solver++(2M), 3 evaluations", planner__sampler="dpmpp_2m"),
    "scratch_ddpm_20": scratch("DDPM, all 20 levels", planner__sampler="ddpm", planner__num_steps=20),
    "scratch_noise_1": scratch("initial noise x 1", planner__initial_noise_scale=1.0),
    # Rows of the plan include the present one, so horizon 2 looks one step ahead. The label counts 8 steps throughout.
    "scratch_h2": scratch("2 rows: one step ahead", model__horizon=2, model__width_mults=(1,), loss__label_horizon=8),
    "scratch_h4": scratch("4 rows", model__horizon=4, loss__label_horizon=8),
    "scratch_h16": scratch("16 rows", model__horizon=16, loss__label_horizon=8),
    "scratch_h32": scratch("32 rows", model__horizon=32, loss__label_horizon=8),
    "scratch_mlp_encoder": scratch("3-layer encoder trained by inverse dynamics", model__encoder="mlp"),
    "scratch_mlp_joint": scratch(
        "3-layer encoder trained through the diffusion loss", model__encoder="mlp", loss__encoder_diffusion_grad=1.0
    ),
    **{f"scratch_decay_{d:g}": scratch(f"weight decay {d:g}", adapt__weight_decay=d) for d in DECAYS},
    "scratch_predict_noise": scratch("the denoiser predicts the noise", model__prediction="noise"),
    "scratch_shared_trunk": scratch("the classifier is a head on the denoiser's trunk", model__shared_trunk=True),
    "scratch_mean_of_4": scratch("the mean of 4 plans", planner__num_averaged=4),
    **{
        f"scratch_shift_{shift:g}": scratch(
            f"actions shifted by {shift:g} standard deviations of the data's", planner__action_shift_std=shift
        )
        for shift in SHIFTS
    },
    "scratch_hear_quantised": scratch(
        "trained on messages as they arrive: quantised", loss__message_bits=PlannerConfig.message_bits
    ),
    "scratch_messages_float32": scratch("messages in float32", planner__message_bits=0),
    "scratch_delay_2": scratch("messages 2 steps old, in training too", planner__message_delay_steps=2),
    "scratch_delay_5": scratch("messages 5 steps old, in training too", planner__message_delay_steps=5),
    "scratch_loss_30": scratch(
        "30 % of messages lost, windows without messages in training",
        planner__message_loss=0.3,
        loss__message_dropout=0.3,
    ),
}  # fmt: skip

FOUR = {"ensemble.num_members": 4}


def ensemble_of(method: str) -> str:
    """The name of four of a method acting as one."""
    return "scratch_ensemble" if method == "networld_scratch" else f"{method}_ensemble"


def ensembles(singles: Mapping[str, Method]) -> dict[str, Method]:
    """Four of each acting as one."""
    return {
        ensemble_of(name): dataclasses.replace(
            single, note=f"four of {name} acting as one", changes={**single.changes, **FOUR}
        )
        for name, single in singles.items()
    }


ENSEMBLED = ("networld_scratch", "networld", "scratch_decay_1")  # world models that also act in fours
ENSEMBLES = ensembles({name: (NETWORLD | ABLATIONS)[name] for name in ENSEMBLED})

TUNED_FROM = {variant: name for name in grids.GRIDS for variant in grids.variants(name)}
"""A setting that is tried for a method -> the method."""

VARIANT_OF = {  # variant of a baseline -> the entry of BASELINES behind it
    "ma_dd_clean": "ma_dd",
    "ma_dd_aware": "ma_dd",
    **{ensemble_of(name): name for name in BASELINES},
    **{variant: name for variant, name in TUNED_FROM.items() if name in BASELINES},
}

BARE = {name: Method(f"baseline {name}", "baseline") for name in BASELINES}
BASELINE_METHODS = {
    **BARE,
    "ma_dd_clean": Method(
        "ma_dd with an inverse model trained without noise",
        "baseline",
        {"baselines.ma_dd.inverse_dynamics_noise": 0.0},
    ),
    "ma_dd_aware": Method(
        "ma_dd with a noise-aware inverse model, decoded at networld's s",
        "baseline",
        {"baselines.ma_dd.noise_aware": True},
    ),
    **ensembles(BARE),
}


TRIED = {
    variant: dataclasses.replace(single, note=f"a setting tried for {name}", changes={**single.changes, **changes})
    for name, single in (NETWORLD | BARE).items()
    for variant, changes in grids.variants(name).items()
}


def baseline_of(method: str) -> str:
    """The entry of BASELINES behind a baseline's name."""
    return VARIANT_OF.get(method, method)


CEILING = {"simulator_planner": Method("one-step lookahead in the true simulator over the best rule", "ceiling")}


def single_source(tasks: tuple[str, ...]) -> dict[str, Method]:
    """Pre-training on one task only; for the held-out task itself, on all its data, the upper bound of pre-training."""
    return {
        f"networld_from_{task}": pretrained(f"pre-trained on {task} alone", pretrain__sources=(task,)) for task in tasks
    }


class Rung(NamedTuple):
    """One step from the Decision Diffuser to NetWorld."""

    change: str
    method: str
    cell: tuple[str, str] = ("own+mf", "neighbourhood")
    needs_noise_aware: bool = False  # is a rung only where NetWorld's inverse model is one for every noise


LADDER = (
    Rung("MA-DD, clean inverse model, own observation, own return", "ma_dd_clean", ("own", "own")),
    Rung("+ mean field", "ma_dd_clean", ("own+mf", "own")),
    Rung("+ neighbourhood label", "ma_dd_clean"),
    Rung("+ noise-robust inverse model", "ma_dd"),
    Rung("+ one inverse model for every noise", "ma_dd_aware", needs_noise_aware=True),
    Rung("classifier instead of classifier-free guidance", "networld_scratch"),
    Rung("+ other tasks, trained together", "networld_joint"),
    Rung("pre-trained, then adapted", "networld"),
)
"""One change per rung."""


def table(config: ml_collections.ConfigDict) -> dict[str, Method]:
    """All learned methods of a configuration by name."""
    both = config.pretrain.num_updates + config.adapt.num_updates
    longer = {"scratch_long": scratch("from scratch for pre-training's updates as well", adapt__num_updates=both)}
    joint = {
        "networld_joint": pretrained(
            "all tasks trained together, no adaptation",
            pretrain__sources=tuple(config.tasks),
            pretrain__few_shot_target=True,
            pretrain__num_updates=both,
            adapt__num_updates=0,
        )
    }
    shared = NETWORLD | CONTROLS | FINETUNED | longer | joint | single_source(tuple(config.tasks)) | ENSEMBLES
    return shared | ABLATIONS | BASELINE_METHODS | CEILING | TRIED
