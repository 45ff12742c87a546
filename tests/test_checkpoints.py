"""Checkpoints and finished models: same bits back, or refused by name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import checkpoints, training
from tests import tiny


@pytest.fixture(scope="module", params=["identity", "mlp"])
def box(request):
    return tiny.build(dataclasses.replace(tiny.CONFIG, encoder=request.param))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def store(tmp_path):
    made = checkpoints.Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def state_of(size=3):
    params = {"a": {"kernel": jnp.arange(2.0 * size).reshape(2, size)}, "b": jnp.float32(2.5)}
    return training.init_train_state(params, training.make_optimiser(1e-3)).replace(step=jnp.int32(7))


def test_train_state_round_trip(store):
    assert store.restore_latest(state_of()) is None
    store.save(6, jax.tree.map(jnp.zeros_like, state_of()))
    store.save(7, state_of())
    step, restored = store.restore_latest(jax.tree.map(jnp.zeros_like, state_of()))
    assert step == 7
    assert_same(restored, state_of())


@pytest.mark.parametrize("like", [state_of(4), state_of().params], ids=["shape", "structure"])
def test_another_shape_is_refused_in_one_line(store, like):
    store.save(1, state_of())
    with pytest.raises(checkpoints.CheckpointError, match="does not fit this run") as error:
        store.restore_latest(like)
    assert "\n" not in str(error.value)


def test_model_round_trip(box, tmp_path):
    checkpoints.save_model(tmp_path, box.world_model, box.params, {"line": box.stats}, stage="test", seed=4)
    model, params, stats, facts = checkpoints.load_model(tmp_path)
    assert model.config == box.world_model.config and model.specs == box.world_model.specs
    assert_same(params, box.params)  # parameter-free encoders included
    assert_same(stats, {"line": box.stats})
    assert facts == {"stage": "test", "seed": 4}


def test_a_loaded_model_computes_the_same(box, tmp_path):
    checkpoints.save_model(tmp_path, box.world_model, box.params, {"line": box.stats})
    model, params, stats, _ = checkpoints.load_model(tmp_path)
    obs = jnp.asarray(box.data.obs[0, 0])
    before = box.world_model.encode(box.params, box.stats, "line", obs)
    np.testing.assert_array_equal(model.encode(params, stats["line"], "line", obs), before)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.npz", lambda c: c[:-50]),
        ("weights.npz", lambda c: c[:2000] + bytes([c[2000] ^ 1]) + c[2001:]),
        ("model.json", lambda c: c[:-50]),
        ("model.json", lambda c: c.replace(b'"horizon": 4', b'"horizon": 2')),
        ("model.json", lambda c: b"\xff" + c),
    ],
    ids=["truncated", "bit", "json cut", "json altered", "no text"],
)
def test_damaged_models_are_refused_by_name(box, tmp_path, file, damage):
    checkpoints.save_model(tmp_path, box.world_model, box.params, {"line": box.stats})
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(checkpoints.CheckpointError, match=re.escape(str(tmp_path))) as error:
        checkpoints.load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_models_are_refused(tmp_path, box):
    with pytest.raises(checkpoints.CheckpointError, match=r"model\.json is missing"):
        checkpoints.load_model(tmp_path)
    checkpoints.save_model(tmp_path, box.world_model, box.params, {"line": box.stats})
    (tmp_path / "weights.npz").unlink()
    with pytest.raises(checkpoints.CheckpointError, match=re.escape(str(tmp_path))):
        checkpoints.load_model(tmp_path)


# ------------------------------------------------------------------------------------------------ damage


def two_checkpoints(folder):
    made = checkpoints.Checkpoints(folder)
    made.save(6, jax.tree.map(jnp.zeros_like, state_of()))
    made.save(7, state_of())
    made.close()


def flip(path, bit=-3):
    content = bytearray(path.read_bytes())
    content[bit] ^= 4
    path.write_bytes(bytes(content))


DAMAGES = {
    "a bit": lambda step: flip(max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)),
    "metadata": lambda step: flip(step / "_CHECKPOINT_METADATA"),
    "the list": lambda step: flip(step / checkpoints.SUMS_FILE),
    "no list": lambda step: (step / checkpoints.SUMS_FILE).unlink(),
    "a file less": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "a file more": lambda step: (step / "stranger").write_bytes(b""),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_the_newest_intact_checkpoint_is_used_and_the_user_told(tmp_path, name):
    folder, told = tmp_path / "checkpoints", []
    two_checkpoints(folder)
    DAMAGES[name](folder / "7")
    store = checkpoints.Checkpoints(folder, report_fn=told.append)
    step, restored = store.restore_latest(state_of())
    assert step == 6
    assert_same(restored, jax.tree.map(jnp.zeros_like, state_of()))
    assert len(told) == 1 and str(folder / "7") in told[0] and "\n" not in told[0]
    assert (tmp_path / "checkpoints_damaged" / "7").exists()  # nothing is thrown away
    store.save(7, state_of())  # and the run goes on past it
    assert store.restore_latest(state_of())[0] == 7
    store.close()
    assert checkpoints.damage(folder / "7") is None


def test_a_damaged_checkpoint_is_a_warning_unless_somebody_listens(tmp_path):
    two_checkpoints(tmp_path / "checkpoints")
    flip(tmp_path / "checkpoints" / "7" / checkpoints.SUMS_FILE)
    with pytest.warns(UserWarning, match="checkpoints/7 is damaged"):
        store = checkpoints.Checkpoints(tmp_path / "checkpoints")
    store.close()


def test_checkpoints_are_kept_to_the_number_asked_for(tmp_path):
    store = checkpoints.Checkpoints(tmp_path / "checkpoints", max_to_keep=2)
    for step in (1, 2, 3):
        store.save(step, state_of())
    store.close()
    assert checkpoints.steps(tmp_path / "checkpoints") == [2, 3]
