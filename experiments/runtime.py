"""What every stage shares at the command line: flags, one-line errors, progress, metrics, provenance."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from networld_jax.datasets import write_atomically

console = Console(stderr=True, soft_wrap=True)


class UserError(ValueError):
    """A mistake in what the user gave; shown as one line, exit code 2."""


Stage = Callable[[ml_collections.ConfigDict, Path], Any]


def main(run: Stage, publish: Stage | None = None) -> None:
    """The command line of a stage: `--config=<file> [--config.<field>=<value>] --workdir=<folder> [--publish]`.

    `publish` copies finished results into the repository; only stages that have one know the flag.
    """
    # XLA's persistent cache makes the second run of any stage start at once.
    jax.config.update("jax_compilation_cache_dir", os.environ.get("NETWORLD_CACHE", str(Path(".jax_cache").absolute())))
    config_flag = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
    workdir_flag = flags.DEFINE_string("workdir", None, "Folder that the stage reads and writes.")
    flags.mark_flags_as_required(["config", "workdir"])
    publish_flag = flags.DEFINE_bool("publish", False, "Copy the results into results/ and docs/.") if publish else None

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}; fields are set as --config.<field>=<value>")
        try:
            run(config_flag.value, Path(workdir_flag.value))
            if publish_flag is not None and publish_flag.value:
                publish(config_flag.value, Path(workdir_flag.value))
        except (ValueError, FileNotFoundError, PermissionError, NotADirectoryError) as error:
            if os.environ.get("NETWORLD_TRACEBACK"):
                raise
            fail(str(error))
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to resume")
            sys.exit(130)

    app.run(guarded, flags_parser=parse_flags)


def fail(message: str) -> NoReturn:
    """One line to standard error, exit code 2."""
    console.print(f"[red]error:[/red] {escape(message)}", highlight=False)
    sys.exit(2)


def parse_flags(argv: list[str]) -> list[str]:
    """The arguments that are no flags. A mistake (unknown flag or field, missing file, wrong type) is one line."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # how ml_collections reports a field that a config lacks
        field = str(error).strip("'\"").split("\n")[0]
        fail(f"unknown configuration field {field!r}; experiments/configs/default.py lists them all")
    except (flags.Error, TypeError, ValueError, OSError) as error:
        fail(str(error).splitlines()[0])


def command() -> str:
    """The command that is running, as a user would type it."""
    module = Path(sys.argv[0])
    return " ".join(["python -m", f"{module.parent.name}.{module.stem}", *map(shlex.quote, sys.argv[1:])])


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("networld-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def device_name() -> str:
    """What the numbers were measured on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{os.cpu_count()} CPU cores, {_cpu_model()}"


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def save_config(config: ml_collections.ConfigDict, workdir: Path, stage: str, sections: Sequence[str]) -> None:
    """Stores the resolved configuration of a stage; refuses to continue a run when one of `sections` has changed.

    Raises UserError naming the first field that differs.
    """
    path = Path(workdir) / f"{stage}_config.json"
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=1, sort_keys=True)
    if path.exists():
        old, new = (_flat(json.loads(t)) for t in (path.read_text(), text))
        for field in sorted(old.keys() | new.keys()):
            if field.split(".")[0] in sections and old.get(field) != new.get(field):
                raise UserError(
                    f"{path} was written with {field}={old.get(field)!r}, got {new.get(field)!r}; "
                    "use another --workdir, or delete this one to start over"
                )
    write_atomically(path, text.encode())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


class MetricsLog:
    """One JSON object per line. On resume, rows at or after `first_step` are dropped: they will be written again."""

    def __init__(self, path: Path, first_step: int = 0):
        self.path = Path(path)
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line cut by a kill
                    row = json.loads(line)
                    if row["step"] < first_step:
                        kept.append(line + "\n")
        write_atomically(self.path, "".join(kept).encode())

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends {"step": step, **metrics}."""
        row = {"step": int(step)} | {k: float(v) for k, v in metrics.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a MetricsLog."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar: yields advance(steps, **numbers). Quiet when standard error is no terminal: one line at the
    end."""
    started = time.monotonic()
    last: dict[str, Any] = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        row = bar.add_task(title, total=total, numbers="")

        def advance(steps: int = 1, **numbers: float) -> None:
            last.update(numbers)
            shown = "  ".join(f"{k} {v:.3g}" for k, v in numbers.items())
            bar.update(row, advance=steps, numbers=shown)

        yield advance
    if not console.is_terminal:
        shown = "  ".join(f"{k} {v:.3g}" for k, v in last.items())
        console.print(f"{title}: done in {time.monotonic() - started:.0f} s  {shown}", highlight=False)
