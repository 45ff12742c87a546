"""Several processes that run one stage together: who takes part, who writes, and what a lost one looks like.

    python -m experiments.pretrain ... --coordinator=host0:9911 --num_processes=2 --process_id=0     (on host 0)
    python -m experiments.pretrain ... --coordinator=host0:9911 --num_processes=2 --process_id=1     (on host 1)

or the variables NETWORLD_COORDINATOR, NETWORLD_NUM_PROCESSES, NETWORLD_PROCESS_ID; `--coordinator=auto` leaves all
three to JAX's detection (Slurm, Open MPI, TPU pods). All processes see one --workdir.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils

from networld_jax import sharding
from networld_jax.files import write_atomically

LOST = 3
"""Exit code of a process that stopped because the job broke, as opposed to 2, a mistake of the user."""


SUPERVISOR = "NETWORLD_SUPERVISOR"
FATAL = re.compile(r"[EF]\d{4} .*(coordination_service|the JAX distributed service detected fatal errors)")
"""How JAX's last words begin."""
BROKEN = "the job is broken"
RESUME = "start the same command again on every host, it goes on from the last checkpoint"


class JobError(ValueError):
    """A job whose processes do not fit together."""


class LostError(RuntimeError):
    """A job that has lost a process."""


def define_flags() -> None:
    """The flags of stages that run on several hosts; each defaults to its variable."""
    env = os.environ.get
    flags.DEFINE_string(
        "coordinator", env("NETWORLD_COORDINATOR"), "host:port of process 0, or auto. Absent: one process."
    )
    flags.DEFINE_integer("num_processes", env("NETWORLD_NUM_PROCESSES"), "Processes of the job.")
    flags.DEFINE_integer("process_id", env("NETWORLD_PROCESS_ID"), "This one, 0 to num_processes - 1.")
    flags.DEFINE_integer("join_within_s", 300, "How long processes wait for each other at the start, in seconds.")
    flags.DEFINE_integer("lost_after_s", 60, "Silence after which a process counts as lost, in seconds.")


def start() -> None:
    """Joins the job that the flags describe, if any. Must precede every computation.

    JAX ends a process whose job is broken from C++, with a page of stack frames. So each process of a job is two: this
    one stays behind as a supervisor that passes on what the worker prints, and the worker, started with the same
    command line, returns from here.

    Raises JobError when flags are missing, LostError in a supervisor whose worker was lost; SystemExit in other
    supervisors.
    """
    given = flags.FLAGS
    if given.coordinator is None:
        if given.num_processes not in (None, 1):
            raise JobError(f"--num_processes={given.num_processes} needs --coordinator=<host:port of process 0>")
        return
    place: dict[str, Any] = {}
    if given.coordinator != "auto":
        place = dict(
            coordinator_address=given.coordinator, num_processes=given.num_processes, process_id=given.process_id
        )
        for name, value in place.items():
            if value is None:
                raise JobError(f"--coordinator={given.coordinator} needs --{name} as well")
    if SUPERVISOR not in os.environ:
        sys.exit(supervise())
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    faulthandler.disable()
    logging.set_verbosity(logging.FATAL)  # Orbax logs, with a traceback, what it then raises
    # JAX would replace the stages' own answer to SIGTERM (a checkpoint, then exit) by one that only takes a note.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **place, initialization_timeout=given.join_within_s, heartbeat_timeout_seconds=given.lost_after_s
    )


def supervise() -> int:
    """Runs this command again as a worker, passes on its standard error and signals; returns its exit code.

    Raises LostError, in one line, when JAX or the system has ended it.
    """
    alive, ours = os.pipe()  # the worker reads from it and ends when we do, whatever ends us
    worker = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {SUPERVISOR: str(alive)},
        pass_fds=[alive],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(alive)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    fatal, explained = "", False
    for line in worker.stderr:
        if fatal or FATAL.match(line):
            fatal += line
            continue
        explained = explained or BROKEN in line
        sys.stderr.write(line)
        sys.stderr.flush()
    code = worker.wait()
    os.close(ours)
    if explained:
        return LOST
    if "RegisterTask" in fatal:
        raise LostError(
            f"the processes of the job did not meet at {flags.FLAGS.coordinator} within "
            f"{flags.FLAGS.join_within_s} s (--join_within_s); start all of them, with the same --coordinator and "
            "--num_processes"
        )
    if fatal:
        raise LostError(f"this process stops: {BROKEN}, another process was lost ({_status(fatal)}); {RESUME}")
    if code < 0:
        raise LostError(f"this process was ended by {signal.Signals(-code).name}: {BROKEN}; {RESUME}")
    return code


def _status(fatal: str) -> str:
    """The reason that JAX gives in its last words."""
    return fatal.split("absl::Status: ")[-1].splitlines()[0].split(". ")[0].rstrip(":")[:200]


def _end_with_supervisor() -> None:
    os.read(int(os.environ[SUPERVISOR]), 1)
    os._exit(LOST)


def is_writer() -> bool:
    """True in the one process that writes metrics, manifests and results: process 0, or the only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def write(path: Any, content: bytes) -> None:
    """`write_atomically` by the writer; the others return at once."""
    if is_writer():
        write_atomically(path, content)


def barrier(name: str) -> None:
    """See `sharding.wait_for_all`; also makes what the writer wrote visible to all."""
    sharding.wait_for_all(name)


def agreed(is_requested: bool) -> bool:
    """True on all processes as soon as one of them asks for it."""
    if jax.process_count() == 1:
        return is_requested
    return bool(np.any(multihost_utils.process_allgather(np.int32(is_requested))))


def first_line(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def leave(code: int) -> NoReturn:
    """Ends this process at once, without the farewells of Python, which crashes while XLA still computes, and of
    `jax.distributed`, which would wait for processes that are gone or stuck. The others notice within
    `--lost_after_s`, at their next exchange as a rule."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


EXCHANGE = ("Gloo ", "NCCL", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection reset")
"""What stands in errors of an exchange that failed; on CPU some of them are mere ValueErrors."""


def is_broken(error: BaseException | None) -> bool:
    """True for what a process of a job sees when another one is gone, however it is wrapped."""
    if not jax.distributed.is_initialized():
        return False
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or any(word in str(error) for word in EXCHANGE):
            return True
        error = error.__cause__ or error.__context__
    return False


def broken(error: BaseException) -> str:
    """What to tell the user when a job of several processes breaks."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return (
        f"process {jax.process_index()} of {jax.process_count()} stops: {BROKEN}, most likely another process was lost "
        f"({first_line(error)}); {RESUME}"
    )
