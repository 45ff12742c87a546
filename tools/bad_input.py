"""Draws bad configurations and command lines and holds each to one line that names what is wrong.

python -m tools.bad_input [--mistakes=1000] [--seed=0] [--publish]

Wrong types, values out of range, misspelt and missing fields, unknown flags, sections given as values, broken tuples,
missing files: each must end in one line (ValueError) that names the field or flag and the value, never in a traceback.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import runtime, validation
from experiments.configs import default
from tools import reliability

FIELDS = runtime.flat(default.get_config())
# Wrong for every field of the kind, whatever its range.
WRONG: dict[type, tuple[Any, ...]] = {
    bool: (3, "yes", None, 0.5),
    int: ("three", 1.5, None, float("nan"), -(10**9), [1], True),
    float: ("fast", None, float("nan"), float("inf"), -1e9, [0.1]),
    str: ("", 3, None, "no such choice"),
    tuple: (3, None, "('cbf'", {"a": 1}, (None,), (float("nan"),)),
}
WRONG_TEXT = {bool: ("maybe", "2"), int: ("three", "1.5", "", "1e3", "-1000000000"), float: ("fast", "", "nan", "-inf")}
GOOD = ("--config=experiments/configs/default.py", "--workdir=nowhere")

Mistake = tuple[Callable[[], Any], tuple[str, ...]]
"""(what to run, words that the line must hold)."""


def typo(name: str, rng: random.Random) -> str:
    """The name with a letter taken out, doubled or replaced."""
    at = rng.randrange(len(name))
    kinds = (name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name[:at] + "x" + name[at + 1 :])
    return rng.choice([kind for kind in kinds if kind and kind != name])


def holder_of(config: Any, path: str) -> tuple[Any, str]:
    """(section, name) of a field."""
    section, _, name = path.rpartition(".")
    return (config[section] if section else config), name


def wrong_value(rng: random.Random) -> Mistake:
    config, path = default.get_config(), rng.choice(sorted(FIELDS))
    value = rng.choice(WRONG[type(FIELDS[path])])
    holder, name = holder_of(config, path)
    with holder.unlocked(), holder.ignore_type():
        holder[name] = value
    shown = () if isinstance(value, tuple | dict | list) else (str(value),)
    words = (path,) if isinstance(value, dict) else (name, "must be", *shown)
    return lambda: validation.validate(config), words


def misspelt_in_file(rng: random.Random) -> Mistake:
    config = default.get_config()
    path = rng.choice(sorted(p for p in FIELDS if len(p.rpartition(".")[2]) > 3 and p not in ("tasks", "held_out")))
    holder, name = holder_of(config, path)
    value = holder[name]
    with holder.unlocked():
        del holder[name]
        holder[typo(name, rng)] = value
    return lambda: validation.validate(config), ("did you mean", path)


def missing_in_file(rng: random.Random) -> Mistake:
    config, path = default.get_config(), rng.choice(sorted(FIELDS))
    holder, name = holder_of(config, path)
    with holder.unlocked():
        del holder[name]
    return lambda: validation.validate(config), ("lacks", path)


def parse(arguments: Any) -> Any:
    """(configuration, workdir) of a command line, through the flags of every stage."""
    values = flags.FlagValues()
    argv = ["stage", *arguments]
    runtime.define_flags(values, argv)
    return runtime.read_flags(runtime.parse_flags(argv, values), values)


def line(arguments: list[str], *words: str) -> Mistake:
    """A bad command line."""
    return lambda: parse(arguments), words


def wrong_text(rng: random.Random) -> Mistake:
    path = rng.choice(sorted(p for p in FIELDS if type(FIELDS[p]) in WRONG_TEXT))
    value = rng.choice(WRONG_TEXT[type(FIELDS[path])])
    return line([*GOOD, f"--config.{path}={value}"], path, value)


def misspelt_field(rng: random.Random) -> Mistake:
    path = typo(rng.choice(sorted(p for p in FIELDS if len(p) > 6)), rng)
    while path in FIELDS or any(p.startswith(f"{path}.") for p in FIELDS):
        path += "x"
    return line([*GOOD, f"--config.{path}=1"], path)


def unknown_flag(rng: random.Random) -> Mistake:
    name = rng.choice(("workdirs", "verbose_", "resume", "gpu", "x"))
    return line([*GOOD, f"--{name}={rng.randrange(9)}"], name)


def section_as_value(rng: random.Random) -> Mistake:
    section = rng.choice(sorted({p.rpartition(".")[0] for p in FIELDS if "." in p}))
    return line([*GOOD, f"--config.{section}={rng.choice(('5', 'x', '[]'))}"], section)


def broken_tuple(rng: random.Random) -> Mistake:
    path = rng.choice(sorted(p for p in FIELDS if type(FIELDS[p]) is tuple))
    return line([*GOOD, f"--config.{path}={rng.choice(('(1,', '[', '(a b)', '1..2', '(4 3)'))}"], path)


def surplus_argument(rng: random.Random) -> Mistake:
    word = rng.choice(("surplus", "config.seed=3", "runs/x"))
    return line([*GOOD, word], word)


def missing_file(rng: random.Random) -> Mistake:
    name = f"experiments/configs/{rng.choice(('smal', 'none', 'default'))}{rng.choice(('', '.yaml', '.pyc'))}"
    return line([f"--config={name}", GOOD[1]], name)


def missing_flag(rng: random.Random) -> Mistake:
    i = rng.randrange(2)
    return line([GOOD[i]], ("--workdir", "--config")[i])


def unknown_target(rng: random.Random) -> Mistake:
    task = rng.choice(("wifi", "cbf,rb", "RB"))
    return line([f"{GOOD[0]}:{task}", GOOD[1]], task)


KINDS = (
    wrong_value, wrong_value, wrong_value, misspelt_in_file, missing_in_file, wrong_text, wrong_text, misspelt_field,
    unknown_flag, section_as_value, broken_tuple, surplus_argument, missing_file, missing_flag, unknown_target,
)  # fmt: skip


def complaint(run: Callable[[], Any], words: tuple[str, ...]) -> str | None:
    """What is wrong with how a mistake is answered; None when it is one line that names everything."""
    try:
        run()
    except ValueError as error:
        message = runtime.one_line(error)
        if "\n" in message or len(message) > 600:
            return f"not one line: {message}"
        absent = [word for word in words if word not in message]
        return f"{absent} not named in: {message}" if absent else None
    except Exception as error:
        return f"a traceback: {type(error).__name__}: {error}"
    return "accepted in silence"


def draw(mistakes: int, seed: int) -> dict[str, list[str | None]]:
    """Kind of mistake -> the complaint (None = answered well) about each."""
    result: dict[str, list[str | None]] = {kind.__name__.replace("_", " "): [] for kind in KINDS}
    for i in range(mistakes):
        kind = KINDS[i % len(KINDS)]
        result[kind.__name__.replace("_", " ")].append(complaint(*kind(random.Random(seed + i))))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mistakes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help="write results/reliability.json and its table")
    options = parser.parse_args()
    rows = []
    for kind, answers in draw(options.mistakes, options.seed).items():
        for answer in filter(None, answers):
            print(f"{kind}: {answer}", file=sys.stderr)
        rows.append(reliability.row("bad input", kind, len(answers), answers.count(None)))
    return reliability.finish(rows, options.publish)


if __name__ == "__main__":
    sys.exit(main())
