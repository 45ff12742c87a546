"""Scores: burn-in, masks, batching, anchors, paired differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networld_envs
from networld_envs.instances import instance_keys
from networld_jax import evaluation
from networld_jax.evaluation import Protocol, Scores, anchored, evaluate, paired_difference, standard_error
from networld_jax.rollout import rollout
from tests import toy_environment

ENV = toy_environment.make_queues()
RULES = toy_environment.policies(ENV.default_params)
PROTOCOL = Protocol(num_instances=3, num_steps=5, burn_in_steps=4)


@pytest.fixture(scope="module")
def scores():
    with jax.debug_key_reuse(True):
        return evaluate(ENV, RULES["expert"], {}, PROTOCOL)


@pytest.fixture(scope="module")
def trajectories():
    """The same instances rolled out from the start."""
    with jax.debug_key_reuse(True):
        run = jax.vmap(lambda key: rollout(key, ENV, ENV.default_params, RULES["expert"], {}, 9))
        return jax.jit(run)(instance_keys("queues", "test", 3))


def test_scores_are_means_over_the_steps_after_the_burn_in(scores, trajectories):
    counted = np.asarray(trajectories.reward)[:, 4:]
    np.testing.assert_allclose(scores.reward, counted.mean((1, 2)), rtol=1e-5)  # float32 means of 25 numbers
    np.testing.assert_allclose(scores.per_agent["reward"], counted.mean(1), rtol=1e-5)
    queue = np.asarray(trajectories.obs)[:, 5:, :, 0]
    np.testing.assert_allclose(scores.metrics["queue"], queue.mean((1, 2)), rtol=1e-5)
    worst = np.percentile(counted, 10, axis=2).mean(1)
    np.testing.assert_allclose(scores.metrics["reward_p10"], worst, rtol=1e-5)
    assert scores.mean == pytest.approx(counted.mean(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_batching_does_not_change_scores(scores, size):
    parts = evaluate(ENV, RULES["expert"], {}, PROTOCOL, batch_size=size)
    np.testing.assert_allclose(parts.reward, scores.reward, rtol=1e-6)
    np.testing.assert_allclose(parts.per_agent["queue"], scores.per_agent["queue"], rtol=1e-6)


def test_splits_hold_other_instances(scores):
    other = evaluate(ENV, RULES["expert"], {}, PROTOCOL, split="validation")
    assert not np.intersect1d(other.reward, scores.reward).size
    with pytest.raises(ValueError, match="split must be one of"):
        evaluate(ENV, RULES["expert"], {}, PROTOCOL, split="tests")


def test_messages_are_charged_where_they_take_air_time(monkeypatch):
    """Whoever scores a planner on `rb` without asking for free messages pays for them."""
    seen = []
    run = lambda keys, params, env_params: seen.append(env_params)  # noqa: E731
    monkeypatch.setattr(evaluation, "make_evaluator", lambda *args: run)
    monkeypatch.setattr(evaluation, "concatenate_scores", lambda parts: parts)
    env, chatty = networld_envs.make("rb"), RULES["expert"]._replace(message_bytes=7)
    evaluate(env, chatty, {}, PROTOCOL)
    evaluate(env, chatty, {}, PROTOCOL, env_params=env.default_params)
    evaluate(ENV, chatty, {}, PROTOCOL)  # no price there
    assert [getattr(params, "message_bytes", None) for params in seen] == [7, 0, None]


def test_absent_agents_do_not_count():
    """Agent 0 is declared absent: scores are those of the other four."""
    present = jnp.ones(toy_environment.NUM_QUEUES).at[0].set(0.0)
    masked = ENV._replace(agent_mask=lambda state, params: present)
    full, part = (evaluate(env, RULES["expert"], {}, PROTOCOL) for env in (ENV, masked))
    np.testing.assert_allclose(part.reward, full.per_agent["reward"][:, 1:].mean(1), rtol=1e-5)
    assert np.isnan(part.per_agent["reward"][:, 0]).all()
    assert np.isfinite(part.percentile("reward", 10))


def test_percentile_is_over_agents_and_instances():
    per_agent = {"rate": np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])}
    scores = Scores(np.zeros(2), {}, per_agent)
    assert scores.percentile("rate", 50) == 3.0 and scores.percentile("rate", 0) == 1.0


def test_standard_errors():
    values = np.array([1.0, 2.0, 4.0])
    assert standard_error(values) == pytest.approx(np.sqrt(7 / 3 / 3))  # sample variance 7/3
    assert standard_error(values[:1]) == 0
    assert Scores(values, {}, {}).sem == standard_error(values)


def test_anchored_scores():
    assert anchored(-2.0, low=-4.0, high=0.0) == 0.5
    np.testing.assert_array_equal(anchored(np.array([-4.0, 0.0]), -4.0, 0.0), [0, 1])
    with pytest.raises(ValueError, match="anchors must differ"):
        anchored(0.0, 1.0, 1.0)


def test_paired_difference_cancels_what_instances_share():
    rng = np.random.default_rng(0)
    shared = 100 * rng.normal(size=50)
    difference = 1 + 0.1 * rng.normal(size=50)
    mean, error = paired_difference(shared + difference, shared)
    assert mean == pytest.approx(difference.mean(), abs=1e-9)
    assert error == pytest.approx(difference.std(ddof=1) / np.sqrt(50), rel=1e-6)
    with pytest.raises(ValueError, match=r"equal shapes, got \(3,\) and \(2,\)"):
        paired_difference(np.zeros(3), np.zeros(2))
