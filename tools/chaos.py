"""Kills every stage at random moments and holds what it ends in, byte by byte, against an uninterrupted run.

python -m tools.chaos [--kills=20] [--terms=5] [--stages=collect,pretrain,adapt,baselines,queue] [--seed=0] [--publish]

A stage runs in a forked process over the toy networks (`tools.toy_stage`). Once it owns its folder it lives for a
random time, up to a little longer than an uninterrupted run works, then gets SIGKILL (or SIGTERM), and is started
again in the same folder. Whatever it had finished by then must be in the end what the uninterrupted run has.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax

from experiments import rows
from tools import reliability, toy_stage

OPTIONS = (
    "--config.pretrain.num_updates=24",
    "--config.adapt.num_updates=24",
    "--config.baselines.methods=('ma_bc',)",
    "--config.baselines.num_updates=24",
    "--config.baselines.updates_per_dispatch=1",
    "--config.baselines.dispatches_per_checkpoint=3",
    "--config.baselines.ma_bc.hidden=(8,)",
)
CONFIGURATIONS = dict.fromkeys(toy_stage.STAGES, ("--config=tests/toy_run.py",)) | {
    "queue": (
        "--config=tests/toy_queue.py",
        "--config.queue.groups=('toy',)",
        "--config.queue.methods=('behaviour','ma_bc','networld','scratch_w0')",
        "--config.queue.seeds=(0,)",
    )
}
NEEDS = {"pretrain": ("data",), "adapt": ("data", "pretrain_*"), "baselines": ("data",)}
OWN_FOLDER = ("queue",)  # stages that work in a folder of their own layout
FAULTS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
EXPECTED = {"kill -9": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM}
# Files that say when and by whom rather than what; Orbax's own carry times.
IGNORED = (".lock", "locks/", "checkpoints", "_config.json", "seconds.json")


class Life(NamedTuple):
    """One process."""

    code: int  # exit code; -signal when a signal ended it
    seconds: float  # from owning the first folder to the end


def start(stage: str, workdir: Path, log: Path) -> int:
    """Forks a stage; returns its pid. Nothing here has touched a JAX device, so forking is safe."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Compiling is most of a toy stage's life: keep all of it, and do little of it.
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_disable_most_optimizations", True)
        sys.argv = [stage, *CONFIGURATIONS[stage], *OPTIONS, f"--workdir={workdir}"]
        toy_stage.run(stage)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # the parent shows the log
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def is_at_work(workdir: Path) -> bool:
    """Some stage owns a folder, or a queue a run."""
    return any(path.stat().st_size for path in workdir.rglob(".lock")) or (workdir / "locks").exists()


def live(stage: str, workdir: Path, log: Path, fault: str | None = None, after_s: float = 0.0) -> Life:
    """Runs a stage until it ends, or ends it `after_s` after it went to work."""
    pid, began, struck = start(stage, workdir, log), None, False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if ended:
            return Life(os.waitstatus_to_exitcode(status), now - (began or now))
        if began is None and is_at_work(workdir):
            began = now
        if fault and not struck and began is not None and now - began >= after_s:
            os.kill(pid, FAULTS[fault])
            struck = True
        time.sleep(0.003)


def digests(workdir: Path) -> dict[str, str]:
    """sha256 of every result under a folder."""
    return {
        path.relative_to(workdir).as_posix(): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and not any(word in path.relative_to(workdir).as_posix() for word in IGNORED)
    }


def content(path: Path) -> bytes:
    """What a file says; of a queue's rows which runs they are and what every instance scored, in any order."""
    if path.name != "runs.jsonl":
        return path.read_bytes()
    return repr(sorted((rows.identity(row), row["instance_rewards"]) for row in rows.read(path))).encode()


def fresh(reference: Path, stage: str, folder: Path) -> Path:
    """A workdir with what the stage reads and nothing that it writes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for pattern in NEEDS.get(stage, ()):
        for source in reference.glob(pattern):
            shutil.copytree(source, folder / source.name)
    return folder


def torment(stage: str, fault: str, count: int, reference: Path, scratch: Path, seconds: float, rng: random.Random):
    """(faults injected, survived): a fault survives when the workdir it struck ends in the reference's bytes."""
    wanted = digests(reference)
    injected = survived = pending = 0
    folder, log = fresh(reference, stage, scratch / "victim"), scratch / f"{stage}.log"
    while injected < count or pending:
        strike = injected < count
        life = live(stage, folder, log, fault if strike else None, rng.uniform(0.0, 1.1 * seconds))
        if strike and life.code == EXPECTED[fault]:
            injected, pending = injected + 1, pending + 1
            continue
        mine = {name: digest for name, digest in wanted.items() if name in digests(folder) or is_output(name, stage)}
        same = life.code == 0 and digests(folder) == mine
        if not same:
            print(f"{stage}: exit code {life.code}; log {log}; kept {folder}", file=sys.stderr)
            shutil.copytree(folder, scratch / f"lost_{stage}_{injected}")
        survived, pending = survived + pending * same, 0
        folder = fresh(reference, stage, scratch / "victim")
    return injected, survived


def is_output(name: str, stage: str) -> bool:
    """Whether a file of the reference is written by the stage."""
    prefix = {"collect": "data/", "pretrain": "pretrain_", "adapt": "adapt_", "baselines": ("ma_", "baseline")}
    return name.startswith(prefix.get(stage, ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs per stage")
    parser.add_argument("--terms", type=int, default=5, help="SIGTERMs per stage")
    parser.add_argument("--stages", default=",".join(toy_stage.STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help="write results/reliability.json and its table")
    options = parser.parse_args()
    rng, table = random.Random(options.seed), []
    scratch = Path(tempfile.mkdtemp(prefix="networld_chaos_"))
    os.environ.setdefault("NETWORLD_CACHE", str(scratch / "cache"))
    shared = scratch / "reference"
    for stage in toy_stage.STAGES:
        reference = scratch / stage if stage in OWN_FOLDER else shared
        reference.mkdir(exist_ok=True)
        log = scratch / f"{stage}.log"
        if live(stage, reference, log).code != 0:
            print(log.read_text(), file=sys.stderr)
            return 1
        if stage not in options.stages.split(","):
            continue
        again = fresh(reference, stage, scratch / "again")  # the compilation cache is warm now
        life = live(stage, again, log)
        same = all(digests(reference)[name] == digest for name, digest in digests(again).items())
        table.append(reliability.row(stage, "none: the same run twice", 1, int(same and life.code == 0)))
        for fault, count in (("kill -9", options.kills), ("SIGTERM", options.terms)):
            counts = torment(stage, fault, count, reference, scratch, life.seconds, rng)
            table.append(reliability.row(stage, fault, *counts))
        reliability.report(table[-3:])
    code = reliability.finish(table, options.publish)
    if code == 0:
        shutil.rmtree(scratch)
    return code


if __name__ == "__main__":
    sys.exit(main())
