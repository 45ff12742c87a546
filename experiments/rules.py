"""What every field of a configuration may be. `validation.validate` holds a configuration against this before any work.

A new field needs a default in configs/default.py and, where its type does not say enough, a line in RULES: its path
(`*` stands for anything) and a rule. The first line that matches and allows the default counts; a field without one
must be like its default: a whole number >= 0, a finite number, a text, True or False, or several of these.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from networld_envs import ENVIRONMENTS
from networld_envs.instances import KEY_RANGES
from networld_jax.interop.deployment import PLATFORMS
from networld_jax.labels import LABELS
from networld_jax.networks import NUM_GROUPS
from networld_jax.noise_levels import NOISE_LEVELS
from networld_jax.presets import PRESETS, SAMPLERS
from networld_jax.training import SHARED
from networld_jax.types import UNITS


class Rule(NamedTuple):
    """What is allowed, in words and as a predicate."""

    allowed: str
    accepts: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int = 0, high: int | None = None) -> Rule:
    """A whole number in [low, high]."""
    allowed = f"a whole number >= {low}" if high is None else f"a whole number in {low}..{high}"
    return Rule(allowed, lambda v: _is_whole(v) and v >= low and (high is None or v <= high))


def multiple(of: int) -> Rule:
    """A positive whole multiple."""
    return Rule(f"a multiple of {of} above 0", lambda v: _is_whole(v) and v > 0 and v % of == 0)


def real(low: float, high: float = math.inf) -> Rule:
    """A finite number in [low, high]."""
    allowed = f"a number >= {low:g}" if high == math.inf else f"a number in [{low:g}, {high:g}]"
    return Rule(allowed, lambda v: _is_finite(v) and low <= v <= high)


def positive(high: float = math.inf) -> Rule:
    """A finite number in (0, high]."""
    allowed = "a number > 0" if high == math.inf else f"a number in (0, {high:g}]"
    return Rule(allowed, lambda v: _is_finite(v) and 0 < v <= high)


def one_of(choices: Iterable[str]) -> Rule:
    """A name out of a list."""
    names = tuple(choices)
    return Rule(f"one of {names}", lambda v: isinstance(v, str) and v in names)


def several(rule: Rule, at_least: int = 0) -> Rule:
    """A tuple of what a rule allows."""
    count = f"at least {at_least} of " if at_least else ""
    return Rule(
        f"a tuple of {count}({rule.allowed})",
        lambda v: isinstance(v, tuple | list) and len(v) >= at_least and all(rule.accepts(x) for x in v),
    )


TEXT = Rule("a text that is not empty", lambda v: isinstance(v, str) and bool(v))
FINITE = Rule("a finite number", _is_finite)
FLAG = Rule("True or False", lambda v: isinstance(v, bool))
ANYTHING = Rule("anything", lambda v: True)


RULES: dict[str, Rule] = {
    "seed": whole(0, 2**32 - 1),
    "tasks": several(TEXT, at_least=1),
    "held_out": TEXT,  # among the tasks: settings.environments
    "preset": one_of(PRESETS),
    "tracker": one_of(("none", "tensorboard")),
    "mesh.data": Rule("-1 or a whole number of at least 1", lambda v: _is_whole(v) and (v == -1 or v >= 1)),
    "mesh.model": whole(1),
    "scaling.num_agents": several(whole(1), at_least=1),
    "scaling.chunk": whole(1),
    "environment.*": ANYTHING,  # the environments check their own parameters
    "collect.tasks": several(TEXT),
    "collect.float64": several(TEXT),
    "collect.tier": TEXT,  # of the tiers of every task: settings.tier_policy
    "collect.*": whole(1),
    "model.encoder": one_of(("identity", "mlp")),
    "model.compute_dtype": one_of(("float32", "bfloat16")),
    "model.prediction": one_of(("x0", "noise")),
    "model.layout": one_of(("networld", "diffuser")),
    "model.num_return_bins": whole(0),
    "model.return_range": positive(),
    "model.*_hidden": several(whole(1)),
    "model.width_mults": several(whole(1), at_least=1),
    "model.width": multiple(NUM_GROUPS),
    "model.*": whole(1),
    "loss.label": one_of(LABELS),
    "loss.discount": real(0, 1),
    "loss.message_dropout": real(0, 1),
    "loss.message_bits": whole(0, 32),
    "loss.message_range": positive(),
    "planner.sampler": one_of(SAMPLERS),
    "planner.rank": one_of(("return", "action_value")),
    "planner.imagine": one_of(("diffusion", "present", "noise")),
    "planner.guidance": one_of(("return", "random", "value", "flipped")),
    "planner.message_delay_steps": whole(-1),
    "planner.message_loss": real(0, 1),
    "planner.message_bits": whole(0, 32),
    "planner.message_range": positive(),
    "planner.action_shift_std": real(-10, 10),
    "planner.latent_clip": positive(),
    "planner.num_*": whole(1),
    "*.learning_rate": positive(1),
    "*_learning_rate": positive(1),
    "*.ema_decay": real(0, 1),
    "*.warmup_updates": whole(0),
    "*.burn_in_steps.*": whole(0),
    "planner.warm_start": real(0, 1),
    "distill.model": one_of(("adapt", "scratch")),
    "distill.students": several(one_of(("chain", "row", "noisy_row")), at_least=1),
    "distill.variants.*": ANYTHING,  # each is a planner's parameters
    "pretrain.sources": several(TEXT),
    "pretrain.num_trajectories.*": whole(0),
    "pretrain.data": one_of(("real", "shuffled", "autoregressive")),
    "adapt.num_trajectories": whole(0),
    "adapt.num_topologies": whole(0),
    "adapt.num_steps": whole(0),
    "adapt.imagined_share": real(0, 1),
    "adapt.imagined_steps": whole(0),
    "adapt.readout_scale": real(-1),
    "adapt.finetune_scale": real(0),
    "adapt.weight_decay": real(0),
    "adapt.transfer": several(one_of(SHARED)),
    "calibrate.variants.*": ANYTHING,  # each is an environment's parameters and the names of rules
    "gates.variants.*": ANYTHING,  # each is an environment's parameters
    "groups.*": ANYTHING,  # lists of runs; the queue checks their names
    "queue.only": Rule("a text", lambda v: isinstance(v, str)),
    "queue.target_trajectories.*": whole(0),
    "scaling.task": one_of(tuple(ENVIRONMENTS)),
    "planner.guide_metric": one_of(UNITS),
    "planner.inverse_dynamics_noise": real(*NOISE_LEVELS),
    "loss.noise_unit": one_of(UNITS),
    "baselines.methods": several(TEXT),
    "baselines.*.hidden": several(whole(1), at_least=1),
    "baselines.*.target_advantage": real(-10, 10),
    "baselines.*.shift_std": real(-10, 10),
    "export.platforms": several(one_of(PLATFORMS), at_least=1),
    "export.check_steps": whole(1),
    "evaluate.split": one_of(KEY_RANGES),
    "evaluate.policies": several(TEXT),
    "*.num_*": whole(1),
    "*_per_*": whole(1),
    "*.sequences": whole(1),
    "*.batch_size": whole(1),
}


def rule_of(path: str, default: Any) -> Rule:
    """The rule of a field: the first line of RULES that matches its path, else `like` its default."""
    matching = (rule for pattern, rule in RULES.items() if fnmatch.fnmatchcase(path, pattern))
    return next((rule for rule in matching if default is None or rule.accepts(default)), like(default))


def like(default: Any) -> Rule:
    """Values of the kind of a default."""
    if isinstance(default, bool):
        return FLAG
    if isinstance(default, int):
        return whole(0)
    if isinstance(default, float):
        return real(0)
    if isinstance(default, str):
        return TEXT
    if isinstance(default, tuple | list):
        return several(like(default[0]) if default else ANYTHING)
    return ANYTHING


def did_you_mean(wrong: str, known: Collection[str]) -> str:
    """' (did you mean ...?)' for a field that does not exist: a similar path, or the same name in another section."""
    last = wrong.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.75)
    close = close or [path for path in known if path.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {close[0]!r}?" if close else "; experiments/configs/default.py lists them all"
