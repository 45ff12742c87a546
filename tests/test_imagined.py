"""Imagined training data: as many as asked for, in the data's units and range, the same when made again."""

import jax
import numpy as np
import pytest

from experiments import imagined
from experiments.memo import Memo
from networld_jax import datasets
from tests import tiny, toy_run

DATA = tiny.linear_task(4, 12)
SPEC = datasets.spec_from_trajectories("line", DATA)


@pytest.fixture(scope="module")
def config():
    c = toy_run.get_config()
    c.baselines.imagined_actor.update(dict(hidden=(8,), batch_size=8, model_hidden=8, model_rounds=1, num_members=1))
    c.baselines.imagined_actor.update(dict(num_imagined=2, horizon=2, num_obs_bins=8))
    return c


def make(config, directory, share, memo=None, num_steps=0):
    c = config.copy_and_resolve_references()
    c.adapt.imagined_share, c.adapt.imagined_steps = share, num_steps
    return imagined.with_imagined(c, directory, DATA, SPEC, memo or Memo())


def test_how_many_are_imagined():
    assert [imagined.number_imagined(share, 6) for share in (0.0, 0.25, 0.5, 0.9, 1.0)] == [0, 2, 6, 54, 6]
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="imagined_share must lie in"):
            imagined.number_imagined(wrong, 6)


def test_logged_data_stay_and_imagined_data_stay_within_what_is_known(config, tmp_path):
    memo = Memo()
    both = make(config, tmp_path, 0.5, memo)
    assert both.reward.shape == (8, *DATA.reward.shape[1:])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[:4], both), DATA)
    alone = make(config, tmp_path, 1.0, memo)  # the actor is there already
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[4:], both), alone)
    for name in ("obs", "action"):
        made, logged = (np.asarray(getattr(x, name)) for x in (alone, DATA))
        low, high = logged.min((0, 1, 2)), logged.max((0, 1, 2))
        assert (made >= low - 1e-3).all() and (made <= high + 1e-3).all(), name
        assert made.std((0, 1, 2)).min() > 0
    assert not any((alone.obs[r] == DATA.obs[s]).all() for r in range(4) for s in range(4))
    np.testing.assert_array_equal(alone.adjacency, DATA.adjacency)


def test_short_episodes_make_up_the_same_amount_and_logged_ones_are_cut_alike(config, tmp_path):
    memo = Memo()
    both = make(config, tmp_path, 0.5, memo, num_steps=4)
    alone = make(config, tmp_path, 1.0, memo, num_steps=4)
    num_pieces = 4 * 3
    assert both.reward.shape[:2] == (2 * num_pieces, 4) and alone.obs.shape[:2] == (num_pieces, 5)
    logged = jax.tree.map(lambda x: x[:num_pieces], both)
    jax.tree.map(np.testing.assert_array_equal, logged, datasets.chop(DATA, 4))
    moments = np.asarray(DATA.obs).reshape(-1, *DATA.obs.shape[2:])
    first = np.asarray(alone.obs[:, 0])
    assert np.isclose(first[:, None], moments[None], atol=1e-5).all((2, 3)).any(1).all()  # each starts where one was
    with pytest.raises(ValueError, match=r"imagined_steps must be at most 12, .* got 13"):
        make(config, tmp_path, 1.0, memo, num_steps=13)


def test_without_imagination_nothing_is_trained(config, tmp_path):
    assert make(config, tmp_path, 0.0) is DATA
    assert not list(tmp_path.iterdir())
