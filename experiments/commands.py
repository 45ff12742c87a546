"""The command that repeats a row: written, read back, and kept true when settings change after the row was made."""

from __future__ import annotations

import functools
import shlex
import sys
from typing import Any

import ml_collections
from absl import flags

from experiments import methods, rows, runs, runtime
from experiments.configs import default

CONFIG = "--config=experiments/configs/evidence.py"


def command(run: runs.Run) -> str:
    """The command that repeats one row alone, with what the running command changed of the configuration."""
    kept = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    chooses = lambda a: a.startswith("--config.queue.") and not a.startswith(KEPT)  # noqa: E731
    kept = [a for a in kept if not chooses(a)]
    if not any(a.startswith("--config=") for a in kept):
        kept.insert(0, CONFIG)
    return _joined(kept, run)


KEPT = ("--config.queue.target", "--config.queue.settings.")  # fields of the queue that change runs, not their list


def _joined(arguments: list[str], run: runs.Run) -> str:
    return shlex.join(
        ["python", "-m", "experiments.queue", *arguments, "--workdir=runs/rerun", f"--config.queue.only={run.name}"]
    )


def arguments_of(text: str) -> list[str]:
    """The flags of a row's command that shape the configuration, without the choice of the run."""
    return [a for a in shlex.split(text) if a.startswith("--config") and not a.startswith("--config.queue.only=")]


@functools.cache
def _configuration(arguments: tuple[str, ...]) -> ml_collections.ConfigDict:
    values = flags.FlagValues()
    runtime.define_flags(values, ["queue", *arguments])
    values(["queue", *arguments])
    return values.config


def asked_for(text: str) -> rows.Row:
    """The fields, known beforehand, of the row that a command makes today."""
    config = _configuration(tuple(arguments_of(text)))
    run = _run_of(text)
    known = methods.table(config)
    kind = known[run.method].kind if run.method in known else "rule"
    return runs.describe(config, runs.resolve(config, run), run, kind)


def pinned(row: rows.Row) -> str:
    """The row's command; where today's settings would make another row of it, with flags that set what was set then.

    Raises ValueError when no flag can: the row's method has changed, and the row must be made again.
    """
    text = row["command"]
    asked = asked_for(text)
    if rows.identity(asked) == rows.identity(row):
        return text
    config, arguments = _configuration(tuple(arguments_of(text))), arguments_of(text)
    reference = runtime.flat(default.get_config().to_dict())
    then, now = row["settings"], asked["settings"]
    for field in sorted({*then, *now}):
        if then.get(field) == now.get(field):
            continue
        value = then.get(field, reference.get(field))
        by_data = f"queue.settings.{row['tier']}.{row['task']}.{field}"
        name = by_data if _has(config, by_data) else field
        arguments = [a for a in arguments if not a.startswith(f"--config.{name}=")] + [f"--config.{name}={value}"]
    text = _joined(arguments, _run_of(text))
    if rows.identity(asked_for(text)) != rows.identity(row):
        raise ValueError(f"no command makes this row today; make it again and drop it: {row['command']}")
    return text


def _run_of(text: str) -> runs.Run:
    (only,) = (a for a in shlex.split(text) if a.startswith("--config.queue.only="))
    return runs.parse_run(only.split("=", 1)[1])


def _has(config: ml_collections.ConfigDict, path: str) -> bool:
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, ml_collections.ConfigDict) or name not in node:
            return False
        node = node[name]
    return True
