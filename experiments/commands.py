"""The command that repeats a row: written, read back, and kept true when settings change after the row was made."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags

from experiments import rows, runs, runtime
from experiments.configs import default

CONFIG = "--config=experiments/configs/evidence.py"
OF_A_RUN = ("--config.queue.target", "--config.queue.settings.")  # fields of the queue that change runs, not their list


def command(run: runs.Run) -> str:
    """The command that repeats one row alone, with what the running command changed of the configuration."""
    kept = _shaping(sys.argv[1:])
    return _joined(kept if any(a.startswith("--config=") for a in kept) else [CONFIG, *kept], run)


def _shaping(arguments: Sequence[str]) -> list[str]:
    """The flags that shape a run's configuration; those that choose among runs are left out."""
    chooses = lambda a: a.startswith("--config.queue.") and not a.startswith(OF_A_RUN)  # noqa: E731
    return [a for a in arguments if a.startswith(("--config=", "--config.")) and not chooses(a)]


def _joined(arguments: Sequence[str], run: runs.Run) -> str:
    return shlex.join(
        ["python", "-m", "experiments.queue", *arguments, "--workdir=runs/rerun", f"--config.queue.only={run.name}"]
    )


def _run_of(text: str) -> runs.Run:
    (only,) = (a for a in shlex.split(text) if a.startswith("--config.queue.only="))
    return runs.parse_run(only.split("=", 1)[1])


@functools.cache
def _configuration(arguments: tuple[str, ...]) -> ml_collections.ConfigDict:
    values, argv = flags.FlagValues(), ["queue", *arguments]
    runtime.define_flags(values, argv)
    runtime.parse_flags(argv, values)
    return values.config


def asked_for(text: str) -> rows.Row:
    """The fields, known beforehand, of the row that a command makes today."""
    return runs.row_start(_configuration(tuple(_shaping(shlex.split(text)))), _run_of(text))[1]


def pinned(row: rows.Row) -> str:
    """The row's command; where today's settings would make another row of it, with flags that set what was set then.

    Raises ValueError when no flag can: the row's method has changed, and the row must be made again.
    """
    text = row["command"]
    asked = asked_for(text)
    if rows.identity(asked) == rows.identity(row):
        return text
    arguments = _shaping(shlex.split(text))
    fields = runtime.flat(_configuration(tuple(arguments)))
    defaults = runtime.flat(default.get_config())
    then, now = row["settings"], asked["settings"]
    for field in sorted(name for name in {*then, *now} if then.get(name) != now.get(name)):
        by_data = f"queue.settings.{row['tier']}.{row['task']}.{field}"
        flag = f"--config.{by_data if by_data in fields else field}="
        value = then.get(field, defaults.get(field))
        arguments = [a for a in arguments if not a.startswith(flag)] + [f"{flag}{value}"]
    text = _joined(arguments, _run_of(text))
    if rows.identity(asked_for(text)) != rows.identity(row):
        raise ValueError(f"no command makes this row today; make it again and drop it: {row['command']}")
    return text
