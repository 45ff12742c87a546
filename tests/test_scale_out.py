"""Several devices and several processes against one, each in processes of its own (flags precede the import of jax)."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import runtime

ROOT = Path(__file__).parents[1]
CONFIG = "--config=tests/toy_run.py"
TRAINED = Path("pretrain_without_busy_queues")


def environment(devices, **variables):
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "envs", "."))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # with those of conftest.py
    return os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | variables


@pytest.mark.parametrize("selected", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_eight_devices_equal_one(selected):
    command = [sys.executable, "-m", "pytest", "tests/eight_devices.py", "-m", selected, "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


# ------------------------------------------------------------------------------------------------ processes


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(stage, workdir, processes, *flags, devices=1):
    """Processes of one stage over loopback (one: without a coordinator), each with `devices` CPU devices."""
    command = [sys.executable, "tests/toy_stage.py", stage, CONFIG, f"--workdir={workdir}", *flags]
    cache = {"NETWORLD_CACHE": str(Path(workdir).parent / "cache")}
    if processes > 1:
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}", "--lost_after_s=15"]
    return [
        subprocess.Popen(
            command + ([f"--process_id={i}"] if processes > 1 else []),
            cwd=ROOT,
            env=environment(devices, **cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(jobs, timeout_s=240):
    """(exit codes, standard errors). None of them is left running where one takes too long."""
    try:
        outputs = [job.communicate(timeout=timeout_s) for job in jobs]
    except subprocess.TimeoutExpired:
        for job in jobs:
            job.kill()
            job.communicate()
        raise
    return [job.returncode for job in jobs], [error for _, error in outputs]


def run(stage, workdir, processes, *flags, devices=1):
    codes, errors = finish(start(stage, workdir, processes, *flags, devices=devices))
    assert codes == [0] * processes, "\n".join(errors)
    return errors


def contents(directory, pattern):
    found = {path.name: path.read_bytes() for path in sorted(directory.glob(pattern))}
    assert found
    return found


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Data of one process with two devices."""
    workdir = tmp_path_factory.mktemp("processes") / "single"
    run("collect", workdir, 1, devices=2)
    return workdir


@pytest.fixture(scope="module")
def single(collected):
    """Every stage in one process with two devices."""
    for stage in ("pretrain", "adapt", "evaluate"):
        run(stage, collected, 1, devices=2)
    return collected


@pytest.mark.slow
def test_two_processes_equal_one(single):
    """Bit for bit: with two devices a sum over devices is a + b, whoever adds it."""
    workdir = single.parent / "two"
    for stage in ("collect", "pretrain", "adapt", "evaluate"):
        errors = run(stage, workdir, 2)
        assert "done in" in errors[0] and "done in" not in errors[1]  # one process reports
    for task in ("queues", "slow_queues", "busy_queues"):
        one, two = (folder / "data" / task / "expert" for folder in (single, workdir))
        assert contents(one, "shard_*.npz") == contents(two, "shard_*.npz")
        assert contents(one, "manifest.json") == contents(two, "manifest.json")
    for folder in (TRAINED, Path("adapt_busy_queues")):
        assert contents(single / folder, "metrics.jsonl") == contents(workdir / folder, "metrics.jsonl")
        assert contents(single / folder / "model", "*.npz") == contents(workdir / folder / "model", "*.npz")
    assert contents(single, "evaluation_*.json") == contents(workdir, "evaluation_*.json")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0], ids=["worker", "coordinator"])
def test_a_lost_process_ends_the_job_and_it_resumes(collected, victim):
    updates = "--config.pretrain.num_updates=60"
    workdir = collected.parent / f"lost_{victim}"
    reference = collected.parent / "uninterrupted"
    for folder in (workdir, reference):
        folder.mkdir(exist_ok=True)
        if not (folder / "data").exists():
            (folder / "data").symlink_to(collected / "data")
    if not (reference / TRAINED / "model" / "model.json").exists():
        run("pretrain", reference, 1, updates, devices=2)

    jobs = start("pretrain", workdir, 2, updates)
    metrics = workdir / TRAINED / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline and all(job.poll() is None for job in jobs), finish(jobs)
        time.sleep(0.02)
    jobs[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes, errors = finish(jobs, timeout_s=60)
    took = time.monotonic() - killed
    print(f"victim {victim}: the other process ended {took:.1f} s after the kill, code {codes[1 - victim]}:")
    print(errors[1 - victim])
    assert codes[1 - victim] == 3 and codes[victim] == -signal.SIGKILL
    assert took < 45  # --lost_after_s=15, or gloo's 30 s where a connection dies in silence
    assert not (workdir / TRAINED / "model").exists()
    told = [line for line in errors[1 - victim].splitlines() if "the job is broken" in line]
    assert len(told) == 1 and "start the same command again on every host" in told[0]
    assert len(errors[1 - victim].strip().splitlines()) == 1

    run("pretrain", workdir, 2, updates)
    steps = [row["step"] for row in runtime.read_metrics(metrics)]
    assert steps == list(range(1, 61))
    assert contents(workdir / TRAINED / "model", "*.npz") == contents(reference / TRAINED / "model", "*.npz")


@pytest.mark.slow
def test_a_process_that_stays_away_is_one_line(tmp_path):
    flags = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--process_id=1", "--join_within_s=3")
    codes, errors = finish(start("collect", tmp_path, 1, *flags))
    assert codes == [3]
    assert "did not meet at 127.0.0.1" in errors[0] and len(errors[0].strip().splitlines()) == 1
