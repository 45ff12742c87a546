"""The bundle of functions: encoders, heads, shapes, mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import action_heads, datasets
from networld_jax.types import WorldModelConfig
from networld_jax.world_model import make_world_model
from tests import tiny


@pytest.fixture(scope="module")
def box():
    return tiny.build()


@pytest.fixture(scope="module")
def obs(box):
    return jnp.asarray(box.data.obs[0, :5])


def test_identity_encoder_is_the_padded_standardised_symlog(box, obs):
    z = box.world_model.encode(box.params, box.stats, "line", obs)
    symlog = np.sign(obs) * np.log1p(np.abs(obs))
    expected = (symlog - np.asarray(box.stats.obs_mean)) / np.asarray(box.stats.obs_std)
    np.testing.assert_allclose(z[..., : tiny.OBS], expected, atol=1e-5)
    assert z.shape[-1] == 6 and not np.any(z[..., tiny.OBS :])
    assert box.world_model.channel_mask("line").tolist() == [1, 1, 1, 1, 0, 0] * 2


def test_mlp_latents_have_mean_0_and_variance_1(obs):
    box = tiny.build(dataclasses.replace(tiny.CONFIG, encoder="mlp"))
    z = np.asarray(box.world_model.encode(box.params, box.stats, "line", obs))
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(z.var(-1), 1, atol=1e-3)  # epsilon of the layer norm: 1e-6 over variances above 0.01
    assert np.abs(z - z[0, 0]).max() > 0.1
    assert box.world_model.channel_mask("line").min() == 1


def test_batching_equals_one_by_one(box, obs):
    """Leading axes are free: [T, N, O] at once or a vector at a time."""
    z = box.world_model.encode(box.params, box.stats, "line", obs)
    logits = box.world_model.action_logits(box.params, box.stats, "line", z, z, z)
    assert logits.shape == (5, tiny.AGENTS, tiny.ACTIONS, tiny.CONFIG.num_action_bins)
    one = z[2, 3]
    single = box.world_model.action_logits(box.params, box.stats, "line", one, one, one)
    np.testing.assert_allclose(single, logits[2, 3], atol=1e-4)  # another order of summation


def test_an_untrained_inverse_model_answers_with_the_datas_mean_action(box, obs):
    """Its last layer starts at zero and the log-histogram of the data is added."""
    silent = jax.tree.map(jnp.zeros_like, box.params)
    z = box.world_model.encode(box.params, box.stats, "line", obs)
    action = action_heads.decode_mean(box.world_model.action_logits(silent, box.stats, "line", z, z, z), box.stats)
    mean = box.data.action.mean((0, 1, 2))
    # The histogram is smoothed by 1e-3 in each of 15 bins, which reach out to about 2.
    np.testing.assert_allclose(action, np.broadcast_to(mean, action.shape), atol=0.03)


def test_binned_return_head(box):
    model = make_world_model(dataclasses.replace(tiny.CONFIG, num_return_bins=11, return_range=2.0), [box.spec])
    np.testing.assert_allclose(model.return_bins, np.linspace(-2, 2, 11), atol=1e-6)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    x, k = jnp.ones((3, tiny.HORIZON, 12)), jnp.zeros(3, jnp.int32)
    # Uniform logits: the mean of bins that are symmetric to one float32 rounding.
    np.testing.assert_allclose(model.predict_return(zero, k, x, k), np.zeros(3), atol=1e-6)


def test_task_embedding_tells_tasks_apart(box):
    specs = [dataclasses.replace(box.spec, name=name) for name in ("a", "b")]
    model = make_world_model(tiny.CONFIG, specs)
    params = tiny.random_params(model)
    x, k = jnp.ones((2, tiny.HORIZON, 12)), jnp.zeros(2, jnp.int32)
    out = jax.jit(model.predict)(params, jnp.array([0, 1]), x, k)
    assert np.abs(out[0] - out[1]).max() > 1e-3
    assert [model.task_index(name) for name in ("a", "b")] == [0, 1]


def test_actions_enter_the_action_value_scaled(box):
    """The ends of the bins become -1 and 1, whatever the unit."""
    stats = box.stats.replace(action_bins=box.stats.action_bins * 1000.0)
    z = jnp.zeros(6)
    args = box.params, "line", z, z
    small = box.world_model.action_value(args[0], box.stats, *args[1:], jnp.array([0.1, -0.2]))
    large = box.world_model.action_value(args[0], stats, *args[1:], jnp.array([100.0, -200.0]))
    np.testing.assert_allclose(small, large, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(latent_dim=3), "latent_dim must be at least 4"),
        (dict(horizon=5), "horizon must be divisible by 2, got 5"),
        (dict(layout="vnet"), "layout must be one of"),
        (dict(encoder="cnn"), "encoder must be one of"),
        (dict(prediction="v"), "prediction must be one of"),
        (dict(width=0), "width must be at least 1, got 0"),
    ],
)
def test_mistakes_show_before_tracing(box, change, message):
    with pytest.raises(ValueError, match=message):
        make_world_model(dataclasses.replace(tiny.CONFIG, **change), [box.spec])


def test_repeated_task_names_are_refused(box):
    with pytest.raises(ValueError, match="task names must be given and differ"):
        make_world_model(WorldModelConfig(), [box.spec, box.spec])


def test_tasks_of_other_sizes_share_the_nets(box):
    wide = tiny.linear_task(2, 12, num_agents=3)
    wide = wide.replace(obs=wide.obs[..., :3], action=wide.action[..., :1])
    other = datasets.spec_from_trajectories("other", wide)
    model = make_world_model(tiny.CONFIG, [box.spec, other])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert shapes["inverse_dynamics"]["line"]["logits_bias"].shape == (2, 15)
    assert shapes["inverse_dynamics"]["other"]["logits_bias"].shape == (1, 15)
    assert shapes["denoiser"]["task_embedding"]["embedding"].shape[0] == 2
    assert model.channel_mask("other").sum() == 6
