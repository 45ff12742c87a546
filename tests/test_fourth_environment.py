"""A user's own network: a file and one line carry it through every stage; logged data alone carries it to a planner."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networld_envs
from experiments import adapt, collect, evaluate, pretrain
from networld_envs import experts
from networld_jax import checkpoints, datasets, planning
from networld_jax.rollout import rollout
from networld_jax.schedules import cosine_schedule
from networld_jax.types import LossConfig, PlannerConfig
from tests import tiny, toy_environment, toy_run


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """(workdir, config, evaluation) after collect, pretrain, adapt, evaluate."""
    workdir, config = tmp_path_factory.mktemp("toy"), toy_run.get_config()
    with pytest.MonkeyPatch.context() as patch, jax.debug_key_reuse(True):
        for name, factory in toy_run.TASKS.items():
            patch.setitem(networld_envs.ENVIRONMENTS, name, factory)
        collect.run(config, workdir)
        pretrain.run(config, workdir)
        adapt.run(config, workdir)
        yield workdir, config, evaluate.run(config, workdir)


def test_collected_data_replays_in_the_environment(pipeline):
    """Every stored transition obeys the queue equation: nothing is shifted by a step, no agent is swapped."""
    workdir, _, _ = pipeline
    data, manifest = datasets.load(collect.dataset_dir(workdir, "queues", "expert"))
    assert data.reward.shape == (5, 10, toy_environment.NUM_QUEUES)
    effort, graph = data.action[..., 0], np.asarray(toy_environment.ring())
    served = 1.5 * effort * (1 - 0.25 * effort @ graph)
    queue = np.maximum(data.obs[:, :-1, :, 0] + data.obs[:, 1:, :, 1] - served, 0)
    np.testing.assert_allclose(data.obs[:, 1:, :, 0], queue, atol=1e-5)  # float32 sums of numbers below 10
    np.testing.assert_allclose(data.reward, -queue - 0.1 * effort, atol=1e-5)
    np.testing.assert_allclose(effort, np.clip(data.obs[:, :-1, :, 0], 0, 1), atol=1e-6)
    assert manifest["reference_scores"]["expert"]["mean"] > manifest["reference_scores"]["random"]["mean"]
    assert manifest["statistics"]["obs"]["mean"] == pytest.approx(data.obs.mean((0, 1, 2)).tolist(), rel=1e-4)


def test_every_stage_leaves_its_result(pipeline):
    workdir, _, rows = pipeline
    assert set(rows) >= {"networld", "random", "expert"}
    assert all(np.isfinite(row["reward"]) and row["instances"] == 3 for row in rows.values())
    stored = json.loads((workdir / "evaluation_busy_queues.json").read_text())
    assert stored["networld"]["reward"] == rows["networld"]["reward"]
    _, _, stats, facts = checkpoints.load_model(workdir / "adapt_busy_queues" / "model")
    assert set(stats) == {"busy_queues"} and facts["stage"] == "adapt" and facts["few_shot_steps"] == 20


def test_adaptation_starts_from_the_pretrained_model_and_leaves_the_sources_alone(pipeline):
    workdir, _, _ = pipeline
    _, before, _, _ = checkpoints.load_model(workdir / "pretrain_without_busy_queues" / "model")
    _, after, _, _ = checkpoints.load_model(workdir / "adapt_busy_queues" / "model")
    for task in ("queues", "slow_queues"):
        jax.tree.map(np.testing.assert_array_equal, before["inverse_dynamics"][task], after["inverse_dynamics"][task])
    kernels = [p["denoiser"]["final_block"]["conv"]["kernel"] for p in (before, after)]
    # Two updates at a rate of at most 1e-3 each.
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 2.1e-3


def test_a_finished_stage_started_again_changes_nothing(pipeline):
    workdir, config, _ = pipeline
    shard = collect.dataset_dir(workdir, "queues", "expert") / "shard_00000.npz"
    before = shard.stat().st_mtime_ns
    collect.run(config, workdir)
    assert shard.stat().st_mtime_ns == before


def test_an_environment_without_policies_is_told_what_to_define(monkeypatch):
    def make_bare(**overrides):
        return toy_environment.make_queues("bare", **overrides)

    monkeypatch.setitem(networld_envs.ENVIRONMENTS, "bare", make_bare)
    with pytest.raises(ValueError, match=r"no experts for task 'bare'; define policies\(params\) in .*fourth"):
        experts.policies("bare", None)
    with pytest.raises(ValueError, match=r"no experts for task 'nothing'; choose one of \["):
        experts.tiers("nothing", None)


def test_logged_data_alone_carry_a_planner():
    """No simulator: arrays -> spec -> world model -> a few updates -> actions within the logged range."""
    box = tiny.with_linear_nets(tiny.build())
    state, _ = tiny.train(box, LossConfig(), 20)
    policy = planning.make_planner(box.world_model, box.schedule, "line", PlannerConfig(num_steps=2))
    params = planning.PolicyParams(state.ema_params, box.stats)
    carry = policy.init(jax.random.key(0), tiny.AGENTS)
    obs, graph = jnp.asarray(box.data.obs[0, 0]), jnp.asarray(box.data.adjacency[0])
    action, _ = jax.jit(policy.act)(jax.random.key(1), params, carry, obs, graph, None)
    assert action.shape == (tiny.AGENTS, tiny.ACTIONS)
    margin = np.asarray(box.stats.action_bins)
    assert (action > margin[None, :, 0]).all() and (action < margin[None, :, -1]).all()


def test_the_planner_and_the_environment_run_in_one_scan(pipeline):
    """`rollout` of the adapted planner: actions in the box, and the queue equation holds under them."""
    workdir, _, _ = pipeline
    world_model, params, stats, _ = checkpoints.load_model(workdir / "adapt_busy_queues" / "model")
    env = networld_envs.make("busy_queues")
    config = PlannerConfig(num_steps=2)
    policy = planning.make_planner(world_model, cosine_schedule(4), "busy_queues", config)
    policy_params = planning.PolicyParams(params, stats["busy_queues"])
    run = jax.jit(lambda key: rollout(key, env, env.default_params, policy, policy_params, 6))
    out = run(jax.random.key(0))
    assert out.obs.shape == (7, toy_environment.NUM_QUEUES, 2)
    assert (out.action >= 0).all() and (out.action <= 1).all()
    served = 1.5 * out.action[..., 0] * (1 - 0.25 * out.action[..., 0] @ toy_environment.ring())
    queue = jnp.maximum(out.obs[:-1, :, 0] + out.obs[1:, :, 1] - served, 0)
    np.testing.assert_allclose(out.obs[1:, :, 0], queue, atol=1e-5)
