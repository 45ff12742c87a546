"""Multi-task BC: tasks of different sizes share a trunk; adaptation starts from it at its own rate."""

import dataclasses

import jax
import numpy as np
import pytest

from networld_jax.baselines import MultiTaskBCConfig, make_multi_task_bc, make_pretraining
from tests import small_problems as problems

CONFIG = MultiTaskBCConfig(hidden=(32, 32), batch_size=128, learning_rate=5e-3, num_updates=200, ema_decay=0.9)


def problem(name, obs_dim, actions, seed, steps=1500):
    """a_c = 0.8 sin(w_c . o), a different w for every component."""
    rng = np.random.default_rng(seed)
    obs, weights = rng.uniform(-1, 1, (steps, obs_dim)), rng.normal(size=(obs_dim, actions))
    action = 0.8 * np.sin(obs @ weights)
    task = dataclasses.replace(problems.spec(obs_dim, (-1.0,) * actions, (1.0,) * actions), name=name)
    data, stats = problems.bandit(obs, action, np.zeros(steps), task)
    return task, data, stats, obs, action


@pytest.fixture(scope="module")
def pretrained():
    """Both sources and what pre-training on them leaves."""
    sources = [problem("first", 2, 1, 0), problem("second", 3, 2, 1)]
    training = make_pretraining([source[0] for source in sources], CONFIG)
    data = {s[0].name: s[1] for s in sources}
    stats = {s[0].name: s[2] for s in sources}
    with jax.debug_key_reuse(True):
        state, _, metrics = problems.train(training, data, stats, CONFIG.num_updates, prepare=False)
    return state, metrics


def test_every_source_is_learned(pretrained):
    """Cross-entropy falls by most of the way from the data's histogram to the two-hot target's own entropy."""
    _, metrics = pretrained
    for name in ("first", "second"):
        losses = metrics[f"{name}/loss"]
        assert losses[-20:].mean() < 0.5 * losses[:3].mean()


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_adaptation_starts_from_the_trunk_and_moves_it_at_its_rate(pretrained, scale):
    state, _ = pretrained
    trunk = state.ema_params["trunk"]
    task, data, stats, obs, action = problem("third", 4, 1, 2)
    baseline = make_multi_task_bc(task, dataclasses.replace(CONFIG, trunk_scale=scale), trunk)
    start = baseline.init(jax.random.key(0), stats)
    jax.tree.map(np.testing.assert_array_equal, start.params["trunk"], trunk)
    adapted, stats, _ = problems.train(baseline, data, stats, CONFIG.num_updates)
    change = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (adapted.params["trunk"], trunk)), strict=True)]
    assert max(change) == 0 if scale == 0 else min(change) > 0
    if scale:
        error = problems.act(baseline, adapted.ema_params, stats, obs[:200]) - action[:200]
        assert (error**2).mean() < 0.1 * action.var()


def test_a_fresh_trunk_is_the_control(pretrained):
    task, _, stats, *_ = problem("third", 4, 1, 2, steps=50)
    fresh = make_multi_task_bc(task, CONFIG).init(jax.random.key(0), stats).params["trunk"]
    trunk = pretrained[0].ema_params["trunk"]
    assert jax.tree.structure(fresh) == jax.tree.structure(trunk)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (fresh, trunk)), strict=True))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="hidden must have at least one layer"):
        MultiTaskBCConfig(hidden=())
    with pytest.raises(ValueError, match="trunk_scale must lie in"):
        MultiTaskBCConfig(trunk_scale=2.0)
