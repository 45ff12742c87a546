"""The stages: killed and started again they end in the same bytes; mistakes of the user are one line."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import networld_envs
from experiments import baselines, collect, pretrain, runtime, settings, train_loop
from networld_jax import checkpoints, datasets, training
from networld_jax.files import DamagedFileError
from tests import tiny, toy_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def toy_tasks():
    """Toy environments, and linear maps in place of the shared nets: their compilation would take most of the time."""
    make = settings.make_world_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "make_world_model", lambda *args: tiny.linear_nets(make(*args)))
        for name, factory in toy_run.TASKS.items():
            patch.setitem(networld_envs.ENVIRONMENTS, name, factory)
        yield


@pytest.fixture(scope="module")
def config():
    return toy_run.get_config()


@pytest.fixture(scope="module")
def collected(config, tmp_path_factory):
    """A workdir with all data."""
    workdir = tmp_path_factory.mktemp("collected")
    with jax.debug_key_reuse(True):
        collect.run(config, workdir)
    return workdir


def contents(directory, pattern="*"):
    return {p.name: p.read_bytes() for p in sorted(directory.glob(pattern))}


class Killed(BaseException):
    """Like a kill: nothing catches it."""


def kill_after(monkeypatch, owner, name, times):
    """owner.name works `times` times; the next call raises."""
    original, calls = getattr(owner, name), []

    def limited(*args, **kwargs):
        calls.append(1)
        if len(calls) > times:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, limited)


# ------------------------------------------------------------------------------------------------ collect


@pytest.mark.parametrize("shards", [1, 3])
def test_a_killed_collection_ends_in_the_same_bytes(config, collected, tmp_path, monkeypatch, capsys, shards):
    env = networld_envs.make("queues")
    policy = settings.tier_policy("queues", env, "expert")
    with monkeypatch.context() as patch:
        kill_after(patch, datasets, "write_shard", shards)
        with pytest.raises(Killed):
            collect.collect_task(config, tmp_path, "queues", env, policy)
    directory = collect.dataset_dir(tmp_path, "queues", "expert")
    with pytest.raises(datasets.DatasetError, match=r"manifest\.json is missing"):
        datasets.load(directory)
    damaged = datasets.shard_path(directory, 0)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    collect.collect_task(config, tmp_path, "queues", env, policy)
    assert "shard_00000.npz is altered; it is collected again" in " ".join(capsys.readouterr().err.split())
    reference = collect.dataset_dir(collected, "queues", "expert")
    assert contents(directory, "shard_*.npz") == contents(reference, "shard_*.npz")
    assert contents(directory, "manifest.json") == contents(reference, "manifest.json")


def test_a_changed_request_is_refused_by_its_field(config, collected):
    env = networld_envs.make("queues", capacity=9.0)
    policy = settings.tier_policy("queues", env, "expert")
    with pytest.raises(runtime.UserError, match=r"collected with capacity=1\.5, got 9\.0"):
        collect.collect_task(config, collected, "queues", env, policy)
    changed = config.copy_and_resolve_references()
    changed.collect.num_steps["queues"] = 11
    with pytest.raises(runtime.UserError, match="collected with num_steps=10, got 11"):
        collect.collect_task(changed, collected, "queues", networld_envs.make("queues"), policy)


# ------------------------------------------------------------------------------------------------ pretrain


@pytest.fixture(scope="module")
def finished(config, collected):
    """The weights of an uninterrupted pre-training."""
    with jax.debug_key_reuse(True):
        return pretrain.run(config, collected)


def test_a_killed_pretraining_ends_in_the_same_bits(config, collected, finished, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(collected / "data")
    with monkeypatch.context() as patch:
        kill_after(patch, checkpoints.Checkpoints, "save", 2)  # dispatches 1 and 2 are kept, 3 is lost
        with pytest.raises(Killed):
            pretrain.run(config, tmp_path)
    directory = pretrain.pretrain_dir(tmp_path, config.held_out)
    assert not (directory / "model").exists()
    assert [row["step"] for row in runtime.read_metrics(directory / "metrics.jsonl")] == [1, 2, 3]
    again = pretrain.run(config, tmp_path)
    assert (again / "weights.npz").read_bytes() == (finished / "weights.npz").read_bytes()
    assert contents(directory, "metrics.jsonl") == contents(finished.parent, "metrics.jsonl")


def test_another_configuration_in_the_same_workdir_is_refused(config, collected, finished):
    changed = config.copy_and_resolve_references()
    changed.loss.discount = 0.5
    with pytest.raises(runtime.UserError, match=r"loss\.discount=0\.95, got 0\.5"):
        pretrain.run(changed, collected)


def test_a_value_that_is_not_finite_stops_training_by_name():
    with pytest.raises(train_loop.TrainingError, match=r"cbf/denoise is nan before update 30 \(seed 7\)"):
        train_loop.check_metrics(30, 7, {"loss": 1.0, "cbf/denoise": float("nan")})


def test_collapsing_latents_are_announced():
    (warning,) = train_loop.check_metrics(30, 7, {"cbf/latent_std": 0.04, "rb/latent_std": 0.9})
    assert "cbf/latent_std = 0.040" in warning and "collapsing" in warning


def test_metrics_cut_by_a_kill_are_dropped(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    log = runtime.MetricsLog(path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    runtime.MetricsLog(path, first_step=3).write(3, {"loss": 9.0})
    assert runtime.read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda c: c.replace(b"0.5", b"0.6"), lambda c: b"".join(c.splitlines(True)[:-1])])
def test_damaged_metrics_are_announced_and_kept(tmp_path, capsys, damage):
    path = tmp_path / "metrics.jsonl"
    log = runtime.MetricsLog(path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(DamagedFileError, match=r"metrics\.jsonl"):
        runtime.read_metrics(path, last_step=3)
    runtime.MetricsLog(path, first_step=4)
    assert "metrics.jsonl" in capsys.readouterr().err
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damaged


# ------------------------------------------------------------------------------------------------ two runs, SIGTERM


def test_two_runs_in_one_folder_are_refused_by_name(tmp_path):
    wanted = f"in use by pid {os.getpid()} on "
    with runtime.owned(tmp_path), pytest.raises(runtime.UserError, match=wanted), runtime.owned(tmp_path):
        pass
    with runtime.owned(tmp_path):  # free again
        pass


def test_the_lock_of_a_killed_run_stops_nobody(tmp_path, capsys):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    with runtime.owned(tmp_path):
        assert "pid 1" in capsys.readouterr().err
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "Monday"}))
    wanted = "in use by pid 1 on elsewhere since Monday"
    with pytest.raises(runtime.UserError, match=wanted), runtime.owned(tmp_path):
        pass


def walk(state, data, key):
    """An epoch of one update of a random walk, whose place says which updates were done; `data` is added to it."""
    drawn = jax.random.normal(jax.random.fold_in(key, state.step)) + data[state.step]
    after = state.replace(step=state.step + 1, params={"place": state.params["place"] + drawn})
    return training.unless_finite(state, after, {"loss": drawn})


def run_walk(directory, dispatches_per_checkpoint=100, data=None, dispatch=walk):
    config = ml_collections.ConfigDict(dict(num_updates=6, updates_per_dispatch=1))
    config.dispatches_per_checkpoint = dispatches_per_checkpoint
    start = training.init_train_state({"place": jnp.float32(0)}, training.make_optimiser(1e-3))
    data = jnp.zeros(6) if data is None else data
    return train_loop.train("walk", directory, start, jax.jit(dispatch), data, config, 3, {"loss": "loss"})


@pytest.mark.parametrize("step,message", [(2, "walk is kept at update 2"), (6, "^$")])
def test_sigterm_stops_training_with_a_checkpoint(step, message, tmp_path, monkeypatch):
    """In the last update, too: whatever the stage, or a queue, would do next must not begin."""
    written = runtime.MetricsLog.write

    def write_and_terminate(self, written_step, metrics):
        written(self, written_step, metrics)
        if written_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = run_walk(tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(runtime.MetricsLog, "write", write_and_terminate)
        with pytest.raises(runtime.Terminated, match=message):
            run_walk(tmp_path / "stopped")
    assert train_loop.steps_done(tmp_path / "stopped") == step
    assert run_walk(tmp_path / "stopped").params == straight.params
    assert contents(tmp_path / "stopped", "*.jsonl") == contents(tmp_path / "straight", "*.jsonl")


def test_training_goes_on_from_the_newest_intact_checkpoint(tmp_path, capsys):
    straight = run_walk(tmp_path, dispatches_per_checkpoint=2)
    reference = contents(tmp_path, "*.jsonl")
    sums = tmp_path / "checkpoints" / "6" / checkpoints.SUMS_FILE
    sums.write_bytes(sums.read_bytes()[:-1])
    assert run_walk(tmp_path, dispatches_per_checkpoint=2).params == straight.params
    assert "checkpoints/6 is damaged" in capsys.readouterr().err
    assert contents(tmp_path, "*.jsonl") == reference


def test_a_failure_is_dumped_and_reproduced(tmp_path, capsys):
    """A bad entry of the data at update 4: step, batch key and the state before it are kept; the same command fails at
    the same place; mended data let it go on to where an undisturbed run ends."""
    straight, bad = run_walk(tmp_path / "straight"), jnp.zeros(6).at[4].set(jnp.nan)
    with pytest.raises(train_loop.TrainingError, match=r"loss is nan.*update 4 with batch key \[\d+, \d+\] is kept"):
        run_walk(tmp_path / "run", data=bad)
    state, batch_key = train_loop.load_failure(tmp_path / "run", straight)
    assert int(state.step) == 4 and np.isfinite(state.params["place"])
    expected = jax.random.fold_in(jax.random.key(3), 4)
    assert (jax.random.key_data(batch_key) == jax.random.key_data(expected)).all()
    with pytest.raises(train_loop.TrainingError, match=r"reproduced from .*failure: update 4 fails again: loss is nan"):
        run_walk(tmp_path / "run", data=bad)
    assert run_walk(tmp_path / "run").params == straight.params
    assert "update 4 failed before and does not now" in " ".join(capsys.readouterr().err.split())


def test_the_failing_update_of_a_long_dispatch_is_found(tmp_path):
    def four(state, data, key):
        state, metrics = jax.lax.scan(lambda state, _: walk(state, data, key), state, None, length=4)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    bad = jnp.zeros(12).at[6].set(jnp.inf)
    with pytest.raises(train_loop.TrainingError, match="update 6 with batch key"):
        run_walk(tmp_path, data=bad, dispatch=four)


# ------------------------------------------------------------------------------------------------ baselines


@pytest.mark.parametrize("method", ["ma_bc_mf", pytest.param("multi_task_bc", marks=pytest.mark.slow)])
def test_a_killed_baseline_ends_in_the_same_bits(config, collected, tmp_path, monkeypatch, method):
    """multi_task_bc: killed after the first of four dispatches of pre-training, then after one of adaptation."""
    whole = baselines.trained(config, collected, method)[1]
    (tmp_path / "data").symlink_to(collected / "data")
    for saves in (1, 4) if method == "multi_task_bc" else (1,):
        with monkeypatch.context() as patch:
            kill_after(patch, checkpoints.Checkpoints, "save", saves)
            with pytest.raises(Killed):
                baselines.trained(config, tmp_path, method)
    policy, again = baselines.trained(config, tmp_path, method)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert (policy.information == "one_hop") == method.endswith("_mf")


def test_another_setting_of_the_method_is_refused_but_not_of_another_method(config, collected):
    baselines.trained(config, collected, "ma_bc_mf")
    changed = config.copy_and_resolve_references()
    changed.baselines.ma_iql.beta = 1.0
    baselines.trained(changed, collected, "ma_bc_mf")
    changed.baselines.ma_bc.learning_rate = 0.5
    with pytest.raises(runtime.UserError, match=r"baselines\.ma_bc\.learning_rate=0\.001, got 0\.5"):
        baselines.trained(changed, collected, "ma_bc_mf")


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("collect", ["--config.collect.tier=perfect", "--config.collect.tasks=('rb',)"], "tier must be one of"),
        ("pretrain", [], "manifest.json is missing"),
        ("baselines", ["--config.baselines.methods=('ma_sac',)"], "baseline must be one of"),
        ("adapt", ["--config.pretrain.nonsense=3"], "unknown configuration field 'pretrain.nonsense'"),
        ("evaluate", ["surplus"], "unexpected argument 'surplus'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, stage, arguments, message):
    """As a user meets them; tests/test_validation.py draws hundreds more in process."""
    command = [sys.executable, "-m", f"experiments.{stage}", "--config=experiments/configs/default.py"]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "envs", "."))
    result = subprocess.run(
        [*command, f"--workdir={tmp_path}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "NETWORLD_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1
