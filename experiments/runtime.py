"""What every stage shares at the command line: flags, one-line errors, progress, metrics, provenance."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging as python_logging
import os
import platform
import re
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
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

from experiments import distributed
from networld_jax.files import DamagedFileError, SealedLog, naming, read_sealed, read_signed, write_signed

console = Console(stderr=True, soft_wrap=True)


ONE_REQUEST_S = 2.0
TERMINATED = 128 + signal.SIGTERM  # exit code of a stage that stopped on request


class UserError(ValueError):
    """A mistake in what the user gave; shown as one line, exit code 2."""


class Terminated(BaseException):
    """SIGTERM, which a cluster sends before it takes a machine away. No handler of errors catches it."""


Stage = Callable[[ml_collections.ConfigDict, Path], Any]


def main(run: Stage, publish: Stage | None = None, several_processes: bool = False) -> None:
    """The command line of a stage: `--config=<file> [--config.<field>=<value>] --workdir=<folder> [--publish]`.

    The whole configuration is validated before `run` is called. `publish` copies finished results into the repository;
    only stages that have one know the flag. Stages that can run as `several_processes` also know the flags of
    `experiments.distributed`.
    """
    # XLA's persistent cache makes the second run of any stage start at once.
    jax.config.update("jax_compilation_cache_dir", os.environ.get("NETWORLD_CACHE", str(Path(".jax_cache").absolute())))
    define_flags(flags.FLAGS, sys.argv, publishes=publish is not None)
    if several_processes:
        distributed.define_flags()

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)  # what fails there is raised here as well
        signal.signal(signal.SIGTERM, _terminate)
        try:
            if several_processes:
                distributed.start()
            config, workdir = read_flags(argv, flags.FLAGS)
            run(config, workdir)
            if publish is not None and flags.FLAGS.publish:
                publish(config, workdir)
        except Exception as error:
            if os.environ.get("NETWORLD_TRACEBACK"):
                raise
            if isinstance(error, distributed.LostError):
                fail(str(error), distributed.LOST)
            if distributed.is_broken(error):
                fail(distributed.broken(error), distributed.LOST)
            if isinstance(error, ValueError | OSError):
                fail(one_line(error))
            if jax.distributed.is_initialized():
                traceback.print_exc()
                leave(1)
            raise
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to resume")
            distributed.leave(130)
        except Terminated as request:
            console.print(f"stopped by SIGTERM{request}; run the same command again to resume", highlight=False)
            distributed.leave(TERMINATED)

    def parse(argv: list[str]) -> list[str]:
        try:
            return parse_flags(argv, flags.FLAGS)
        except UserError as error:
            fail(str(error))

    app.run(guarded, flags_parser=parse)


def define_flags(flag_values: flags.FlagValues, argv: Sequence[str], publishes: bool = False) -> None:
    """The flags that every stage has."""
    config_flags.DEFINE_config_file("config", None, "Configuration file.", flag_values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "Folder that the stage reads and writes.", flag_values)
    if publishes:
        flags.DEFINE_bool("publish", False, "Copy the results into results/ and docs/.", flag_values)


def fail(message: str, code: int = 2) -> NoReturn:
    """One line to standard error; exit code 2 for a mistake of the user."""
    console.print(f"[red]error:[/red] {escape(message)}", highlight=False)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exit, without waiting for the other processes of a job."""
    if jax.distributed.is_initialized():
        distributed.leave(code)
    sys.exit(code)


def one_line(error: Exception) -> str:
    """An error as a user reads it: of a full disk or a missing permission the reason and the file, without a number."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}; nothing that was finished is lost"
    return " ".join(str(error).split()) or type(error).__name__


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Terminated


@contextlib.contextmanager
def delayed_termination() -> Iterator[Callable[[], bool]]:
    """Yields is_requested(): a first SIGTERM inside is only noted, so that a loop can stop where its state is whole; a
    second one stops at once. One that the loop was too far on to heed stops at the end of the block: what would come
    next must not begin. Outside the main thread, where Python allows no handlers, it is never requested."""
    requests: list[float] = []

    def note(signum: int, frame: Any) -> None:
        # Slurm signals every process of a task and a supervisor passes its own on: that is one request, told twice.
        if requests and time.monotonic() - requests[0] > ONE_REQUEST_S:
            raise Terminated
        requests.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(requests)
    finally:
        signal.signal(signal.SIGTERM, before)
    if requests:
        raise Terminated


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """The only run that writes into `directory`. The lock file `.lock` says who holds it (pid, host, command).

    A run that was killed leaves the file behind but not the kernel's lock on it, so it stops nobody on the same host;
    a lock held on another host cannot be checked and is respected. Raises UserError naming the other run. Several
    processes of one job count as one run; the writing one holds the lock.
    """
    if not distributed.is_writer():
        yield
        return
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    me = {"pid": os.getpid(), "host": socket.gethostname(), "command": command(), "since": time.ctime()}
    with open(path, "a+") as file:
        is_free = _try_lock(file)
        file.seek(0)
        holder = _holder(file.read())
        if not is_free or holder.get("host", me["host"]) != me["host"]:
            raise UserError(
                f"{directory} is in use by pid {holder.get('pid')} on {holder.get('host')} since "
                f"{holder.get('since')}; wait for it, use another --workdir, or, if that run is gone, delete {path}"
            )
        if holder:
            console.print(f"{directory}: the run before (pid {holder.get('pid')}) did not finish; resuming")
        file.truncate(0)
        try:
            file.write(json.dumps(me))
            file.flush()
        except OSError as error:
            raise naming(error, path) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)  # not unlinked: two runs could then hold a lock each on two files


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what the file says must do
        return True
    return True


def _holder(text: str) -> dict[str, Any]:
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text)
    return {}


_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """The arguments that are no flags. Raises UserError, one line, for any mistake: an unknown flag or field, a missing
    file or one that Python cannot run, a value of the wrong type."""
    files = [value for value in _values("config", argv) if not Path(value.split(":")[0]).is_file()]
    if files:
        known = sorted(str(p) for p in Path("experiments/configs").glob("[!_]*.py"))
        raise UserError(f"--config={files[0]}: no such file; there are {', '.join(known)}")
    try:
        return flag_values(list(argv))
    except flags.Error as error:
        raise UserError(_explain(argv, error)) from error
    except Exception as error:  # whatever a user's configuration file raises
        raise UserError(_explain(argv, error)) from error


def _values(name: str, argv: Sequence[str]) -> list[str]:
    """Values given to a flag, as --name=value or --name value."""
    pairs = [pair for pair in zip(argv, [*argv[1:], ""], strict=True) if re.fullmatch(f"--?{name}(=.*)?", pair[0])]
    return [arg.split("=", 1)[1] if "=" in arg else after for arg, after in pairs]


def _explain(argv: Sequence[str], error: Exception) -> str:
    """The override that is behind an error: a field that does not exist, a section, or a value of the wrong type."""
    from experiments import rules
    from experiments.configs import default

    known = flat(default.get_config())
    overrides = [match.groups() for arg in argv if (match := _OVERRIDE.fullmatch(arg))]
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    for path, value in overrides:
        if any(field.startswith(f"{path}.") for field in known):
            return f"{path!r} is a section of the configuration, got {value!r}; set its fields: --config.{path}.<...>="
        if path not in known and isinstance(error, AttributeError | KeyError):
            return f"unknown configuration field {path!r}{rules.did_you_mean(path, known)}"
        if path in known and (f"config.{path}=" in str(error) or not isinstance(error, flags.Error)):
            return f"{path} must be {rules.rule_of(path, known[path]).allowed}, got {value!r}"
    file, last = ", ".join(_values("config", argv)), " ".join(lines[-1].split())
    if "Error whilst parsing config file" in str(error):  # a whole traceback; its last line says what and why
        return f"--config={file}: {last}"
    if isinstance(error, flags.Error):
        return " ".join(" ".join(lines).split())
    return f"--config={file}: {type(error).__name__}: {last}"


def read_flags(rest: Sequence[str], flag_values: flags.FlagValues) -> tuple[ml_collections.ConfigDict, Path]:
    """(validated configuration, workdir). Raises UserError."""
    from experiments.validation import validate  # here, since it imports every stage's settings

    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; fields are set as --config.<field>=<value>")
    if flag_values.config is None:
        raise UserError("--config=<file> is missing, for example --config=experiments/configs/small.py")
    if not flag_values.workdir:
        raise UserError("--workdir=<folder> is missing, for example --workdir=runs/small")
    validate(flag_values.config)
    return flag_values.config, Path(flag_values.workdir)


def command() -> str:
    """The command that is running, as a user would type it."""
    module = Path(sys.argv[0])
    return " ".join(["python -m", f"{module.parent.name}.{module.stem}", *map(shlex.quote, sys.argv[1:])])


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("networld-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def provenance() -> dict[str, Any]:
    """The command that is running, its device and versions: what a published file says of its origin."""
    return {"command": command(), "device": device_name(), "versions": versions()}


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
    """Stores the resolved configuration of a stage; refuses to continue a run when one of `sections` (dotted
    names of sections or fields) has changed.

    Raises UserError naming the first field that differs.
    """
    path = Path(workdir) / f"{stage}_config.json"
    document = json.loads(config.to_json_best_effort())
    prefixes = tuple(f"{section}." for section in sections)
    if path.exists():
        old, new = flat(_read_config(path)), flat(document)
        for field in sorted(old.keys() | new.keys()):
            if f"{field}.".startswith(prefixes) and old.get(field) != new.get(field):
                raise UserError(
                    f"{path} was written with {field}={old.get(field)!r}, got {new.get(field)!r}; "
                    "use another --workdir, or delete this one to start over"
                )
    if distributed.is_writer():
        write_signed(path, document)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_signed(path)
    except DamagedFileError as error:
        raise UserError(f"{error}; delete it if you are sure that the configuration has not changed") from error


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts or a configuration as one dict, keys joined by dots."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return found


class MetricsLog:
    """The metrics of a run, a sealed JSON object per line, from the writing process only. On resume, rows at or after
    `first_step` are dropped: they will be written again. When rows before that are damaged the file is kept under
    another name, and the user told."""

    def __init__(self, path: Path, first_step: int = 0):
        self._log = None
        if not distributed.is_writer():
            return
        path, wanted = Path(path), first_step - 1
        rows, problem = read_sealed(path)
        if max((row["step"] for row in rows), default=0) < wanted:
            copy = path.with_suffix(".damaged.jsonl")
            if path.exists():
                copy.write_bytes(path.read_bytes())
            problem = problem or f"{path} ends too early"
            warn(f"{problem}; kept as {copy.name}, rows from there to step {wanted} are lost")
        self._log = SealedLog(path, keep_fn=lambda row: row["step"] < first_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends {"step": step, **metrics}."""
        if self._log is not None:
            self._log.append({"step": int(step)} | {k: float(v) for k, v in metrics.items()})


def read_metrics(path: Path, last_step: int = 0) -> list[dict[str, float]]:
    """Rows of a MetricsLog that must reach `last_step` (that of the newest checkpoint).

    Raises DamagedFileError naming file and line.
    """
    rows, problem = read_sealed(Path(path))
    if problem is None and (rows[-1]["step"] if rows else 0) < last_step:
        problem = f"{path} ends before step {last_step}"
    if problem:
        raise DamagedFileError(f"{problem}; the stage that wrote it keeps what is whole when it is run again")
    return rows


def warn(message: str) -> None:
    """One line that a user should not miss."""
    console.print(f"[yellow]warning:[/yellow] {escape(message)}", highlight=False)


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
        disable=not console.is_terminal or not distributed.is_writer(),
    )
    with bar:
        row = bar.add_task(title, total=total, numbers="")

        def advance(steps: int = 1, **numbers: float) -> None:
            last.update(numbers)
            shown = "  ".join(f"{k} {v:.3g}" for k, v in numbers.items())
            bar.update(row, advance=steps, numbers=shown)

        yield advance
    if not console.is_terminal and distributed.is_writer():
        shown = "  ".join(f"{k} {v:.3g}" for k, v in last.items())
        console.print(f"{title}: done in {time.monotonic() - started:.0f} s  {shown}", highlight=False)
