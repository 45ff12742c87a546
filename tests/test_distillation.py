"""Students learn what their teacher imagines: exact where the map is simple, close to it otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from networld_jax import distillation, planning, training
from networld_jax.types import PlannerConfig
from tests import tiny

D, N, H = tiny.CONFIG.latent_dim, tiny.AGENTS, tiny.HORIZON
CONFIG = PlannerConfig(num_steps=2, guide_scale=3.0, message_bits=0)


@pytest.fixture(scope="module")
def box():
    return tiny.with_linear_nets(tiny.build())


@pytest.fixture(scope="module")
def teacher(box):
    return planning.PolicyParams(box.params, box.stats)


def presents(box, teacher, num=64, seed=0):
    """(keys, z, m) in which no state is special."""
    z = jnp.asarray(np.random.default_rng(seed).normal(size=(num, 2 * D)), jnp.float32)
    z = z * box.world_model.channel_mask("line")[None]
    return jax.random.split(jax.random.key(seed), num), z[:, :D], z[:, D:]


def trained(box, teacher, student, num_updates=300, rate=1e-2):
    """Weights after training on random states, by `make_epoch` with the library's own sampler and loss."""
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, num_updates))
    loss = distillation.distillation_loss(student, box.world_model, "line", CONFIG)
    epoch = training.make_epoch(
        training.make_update(loss, optimiser, 0.9), distillation.state_sampler(16, 0), num_updates
    )
    weights = student.init(jax.random.key(1), teacher.params)
    data = (jax.tree.map(jnp.asarray, box.data), teacher)
    state, _ = jax.jit(epoch)(training.init_train_state(weights, optimiser), data, jax.random.key(2))
    return distillation.with_student(teacher, state.params)


def test_the_chain_student_comes_close_to_the_guided_plan(box, teacher):
    """One evaluation without a gradient against two guided ones. The linear net ignores k, so it cannot be exact."""
    student = distillation.chain_student(box.world_model, box.schedule, "line", CONFIG)
    imagine = planning.diffusion_imagination(box.world_model, box.schedule, "line", CONFIG)
    keys, z, m = presents(box, teacher)

    def error(params):
        return float(jnp.mean((student.imagine(params, keys, z, m) - imagine(teacher, keys, z, m)) ** 2))

    start = distillation.with_student(teacher, student.init(jax.random.key(1), teacher.params))
    assert error(trained(box, teacher, student)) < 0.35 * error(start)


def test_a_two_step_student_uses_two_evaluations(box, teacher):
    """Sampled over two levels, the untrained chain student is the unguided teacher over these levels."""
    plain = PlannerConfig(num_steps=2, guide_scale=0.0, message_bits=0)
    student = distillation.chain_student(box.world_model, box.schedule, "line", plain, num_steps=2)
    keys, z, m = presents(box, teacher, 5)
    start = distillation.with_student(teacher, student.init(jax.random.key(1), teacher.params))
    unguided = planning.diffusion_imagination(box.world_model, box.schedule, "line", plain)
    np.testing.assert_allclose(student.imagine(start, keys, z, m), unguided(teacher, keys, z, m), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise_rows", [0, H])
def test_the_row_student_learns_the_row_that_is_acted_on(box, teacher, noise_rows):
    """Without noise the mean of the plans remains to be explained, with all of the teacher's noise nothing."""
    student = distillation.row_student(
        box.world_model, box.schedule, "line", CONFIG, hidden=(64,), noise_rows=noise_rows
    )
    params = trained(box, teacher, student, 400)
    imagine = planning.diffusion_imagination(box.world_model, box.schedule, "line", CONFIG)
    segments = distillation.state_sampler(32, 0)(jax.random.key(3), (jax.tree.map(jnp.asarray, box.data), teacher))[0]
    z, m = (v.reshape(-1, D) for v in distillation.presents(box.world_model, teacher, "line", segments, CONFIG))
    keys = jax.random.split(jax.random.key(4), len(z))
    want, got = imagine(teacher, keys, z, m), student.imagine(params, keys, z, m)
    np.testing.assert_array_equal(got[:, 0], jnp.concatenate([z, m], -1))
    error, spread = jnp.mean((got - want)[:, 1, :D] ** 2), jnp.mean((want[:, 1, :D] - z) ** 2)
    other = imagine(teacher, jax.random.split(jax.random.key(5), len(z)), z, m)
    noise = jnp.mean((want - other)[:, 1, :D] ** 2) / 2  # variance over the teacher's noise: what no mean can explain
    assert error < (0.1 * spread + 1.2 * noise if noise_rows == 0 else 0.1 * spread)


def test_students_plan_as_policies(box, teacher):
    student = distillation.row_student(box.world_model, box.schedule, "line", CONFIG)
    params = distillation.with_student(teacher, student.init(jax.random.key(0), teacher.params))
    policy = planning.make_planner(box.world_model, box.schedule, "line", CONFIG, imagine_fn=student.imagine)
    graph = jnp.asarray(tiny.path_graph(N))
    obs = jnp.asarray(box.data.obs[0, 0])
    action, _ = policy.act(jax.random.key(1), params, policy.init(jax.random.key(2), N), obs, graph, None)
    z = box.world_model.encode(box.params, box.stats, "line", obs)
    m = planning.mean_field(z, graph)
    alone = planning.repeat_present(box.world_model)(teacher, None, z, m)
    expected = planning.decode_plans(box.world_model, "line", teacher, alone)
    np.testing.assert_allclose(action, expected, atol=1e-5)


def test_mistakes_are_named(box):
    with pytest.raises(ValueError, match=r"noise_rows must lie in 0\.\.4"):
        distillation.row_student(box.world_model, box.schedule, "line", CONFIG, noise_rows=5)
