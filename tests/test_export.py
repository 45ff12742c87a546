"""The export stage: it compares what it wrote with the planner, and says so when they differ."""

import json

import numpy as np
import pytest

import networld_envs
from experiments import export, settings
from experiments.adapt import adapt_dir
from networld_jax import checkpoints, datasets, normalisation
from networld_jax.interop.agent_runtime import Agent
from tests import tiny, toy_environment, toy_run


@pytest.fixture(scope="module")
def config():
    make = settings.make_world_model
    with pytest.MonkeyPatch.context() as patch:
        for owner in (settings, checkpoints):
            patch.setattr(owner, "make_world_model", lambda *args: tiny.linear_nets(make(*args)))
        for name, factory in toy_run.TASKS.items():
            patch.setitem(networld_envs.ENVIRONMENTS, name, factory)
        yield toy_run.get_config()


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """An adapted model with random weights, linear maps in place of the shared nets: they compile at once."""
    workdir, rng = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    n = toy_environment.NUM_QUEUES
    obs, action = rng.exponential(size=(2, 9, n, 2)), rng.random((2, 8, n, 1))
    data = datasets.from_arrays(obs, action, -obs[:, 1:, :, 0], np.asarray(toy_environment.ring()))
    world_model = settings.world_model(config, settings.environments(config))
    stats = normalisation.task_stats(data, world_model.specs["busy_queues"], world_model.config)
    params = tiny.random_params(world_model)
    checkpoints.save_model(
        adapt_dir(workdir, "busy_queues", False) / "model", world_model, params, {"busy_queues": stats}, seed=0
    )
    return workdir


def test_the_exported_agent_is_checked_against_the_planner_and_measured(config, workdir, monkeypatch):
    monkeypatch.setattr(export, "TIMED_DECISIONS", 2)
    measured = export.run(config, workdir)
    directory = export.export_dir(workdir, "busy_queues")
    assert json.loads((directory / "measured.json").read_text()) == measured
    assert measured["largest_difference"] < 1e-5 and measured["bytes_per_agent_and_step"] == 1  # 2 entries of 4 bits
    assert measured["checked_agents"] == 5 and measured["action_ms"] > 0
    assert json.loads((directory / "agent.json").read_text())["facts"] == {"seed": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Agent, "mean_message", lambda self, heard: np.full(2, 3.0, np.float32))
        with pytest.raises(export.ExportError, match="an exported agent differs from the planner by"):
            export.run(config, workdir)
