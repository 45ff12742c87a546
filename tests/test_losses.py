"""The joint loss: labels by hand, what each term may and may not see, collapse of the latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import action_heads, losses
from networld_jax.labels import LABELS, neighbourhood_return, own_return
from networld_jax.mean_field import mean_field, quantise
from networld_jax.types import LossConfig, PlannerConfig
from tests import tiny

N, H = tiny.AGENTS, tiny.HORIZON
ENCODER_GROUPS = ("inverse_dynamics", "denoiser", "classifier", "value", "action_value")


# ------------------------------------------------------------------------------------------------ labels


def test_own_return_is_the_discounted_sum():
    segments = tiny.random_segments()
    expected = sum(0.9**h * np.asarray(segments.reward)[:, :, h] for h in range(H))
    np.testing.assert_allclose(own_return(segments, 0.9), expected, atol=2e-6)  # 4 float32 terms of size 1


def test_neighbourhood_return_by_hand():
    """Path 0-1-2-3: agent 0 keeps half of its own return and gets a third of agent 1's."""
    segments = tiny.random_segments()
    own = np.asarray(own_return(segments, 0.9))
    got = neighbourhood_return(segments, 0.9)
    np.testing.assert_allclose(got[:, 0], own[:, 0] / 2 + own[:, 1] / 3, atol=2e-6)
    np.testing.assert_allclose(got[:, 1], own[:, 0] / 2 + own[:, 1] / 3 + own[:, 2] / 3, atol=2e-6)


@pytest.mark.parametrize("absent", [None, 0, 1])
def test_labels_sum_to_the_team_return(absent):
    segments = tiny.random_segments()
    if absent is not None:
        segments = tiny.without_agent(segments, absent)
        segments = segments.replace(reward=segments.reward * segments.agent_mask[:, :, None])
    team = own_return(segments, 0.9).sum(-1)
    for name, label in LABELS.items():
        np.testing.assert_allclose(label(segments, 0.9).sum(-1), team, atol=5e-6, err_msg=name)
    if absent is not None:
        assert not np.any(neighbourhood_return(segments, 0.9)[:, absent])


# ------------------------------------------------------------------------------------------------ joint loss


@pytest.fixture(scope="module")
def mlp():
    return tiny.with_linear_nets(tiny.build(dataclasses.replace(tiny.CONFIG, encoder="mlp")))


@pytest.fixture(scope="module")
def gradients(mlp):
    """(config) -> jitted (params, segments) -> ((loss, metrics), gradient)."""
    compiled = {}

    def of(config):
        if config not in compiled:

            def loss(params, segments):
                args = {"line": mlp.stats}, mlp.schedule, {"line": segments}, jax.random.key(1), config
                return losses.joint_loss(mlp.world_model, params, *args)

            compiled[config] = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return compiled[config]

    return of


@pytest.fixture(scope="module")
def plain(mlp, gradients):
    """Loss, metrics and gradient of random weights on random windows under the default weights."""
    with jax.debug_key_reuse(True):
        return gradients(LossConfig())(mlp.params, tiny.random_segments())


ONLY_DIFFUSION = LossConfig(inverse_dynamics_weight=0.0, value_weight=0.0, classifier_weight=0.0)


def largest(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def test_diffusion_does_not_reach_the_encoder_by_default(mlp, gradients):
    (_, _), gradient = gradients(ONLY_DIFFUSION)(mlp.params, tiny.random_segments())
    assert largest(gradient["encoder"]) == 0
    assert largest(gradient["denoiser"]) > 1e-3


def test_diffusion_reaches_the_encoder_in_proportion_to_its_multiplier(mlp, gradients):
    params, segments = mlp.params, tiny.random_segments()
    config = dataclasses.replace(ONLY_DIFFUSION, encoder_diffusion_grad=1.0)
    full, small = (
        gradients(c)(params, segments)[1]["encoder"]["line"]
        for c in (config, dataclasses.replace(config, encoder_diffusion_grad=0.25))
    )
    assert largest(full) > 1e-4
    # Relative to the largest entry: float32 sums of a few hundred terms.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, 0.25 * a, atol=1e-5 * largest(full)), full, small)


def test_the_forward_value_does_not_depend_on_the_multiplier(mlp, gradients, plain):
    config = dataclasses.replace(ONLY_DIFFUSION, encoder_diffusion_grad=1.0)
    (_, metrics), _ = gradients(config)(mlp.params, tiny.random_segments())
    np.testing.assert_allclose(metrics["denoise"], plain[0][1]["denoise"], rtol=1e-5)


def test_the_classifier_and_the_values_do_not_reach_the_encoder(mlp, gradients):
    config = dataclasses.replace(LossConfig(), inverse_dynamics_weight=0.0)
    (_, _), gradient = gradients(config)(mlp.params, tiny.random_segments())
    assert largest(gradient["encoder"]) == 0
    assert min(largest(gradient[g]) for g in ("classifier", "value", "action_value")) > 1e-3


def test_every_network_learns_from_the_default_loss(plain):
    (_, _), gradient = plain
    for group in ("encoder", *ENCODER_GROUPS):
        assert largest(gradient[group]) > 1e-4, group
    assert largest(gradient["decoder"]) == 0  # reconstruction is off


def test_total_is_the_weighted_sum(plain):
    (total, m), _ = plain
    parts = [m["denoise"], m["return"], *(m[f"line/{n}"] for n in ("inverse_dynamics", "value", "action_value"))]
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6)


def test_absent_agents_contribute_nothing(mlp, gradients):
    """Whatever an absent agent's rows hold: same loss, same gradient."""
    run, params = gradients(LossConfig()), mlp.params
    segments = tiny.without_agent(tiny.random_segments(), 2)
    wild = segments.replace(
        obs=segments.obs.at[:, 2].set(5.0),
        message_obs=segments.message_obs.at[:, 2].set(5.0),
        action=segments.action.at[:, 2].set(1.0),
    )
    wild = wild.replace(reward=wild.reward.at[:, 2].set(9.0 * (LossConfig().label == "own")))
    segments = segments.replace(reward=segments.reward.at[:, 2].set(0.0))
    (a, _), grad_a = run(params, segments)
    (b, _), grad_b = run(params, wild)
    assert float(a) == float(b)
    jax.tree.map(np.testing.assert_array_equal, grad_a, grad_b)


def test_actions_that_disturb_are_not_imitated(mlp, gradients):
    run, params = gradients(LossConfig()), mlp.params
    segments = tiny.random_segments()
    hidden = segments.replace(is_demonstration=segments.is_demonstration.at[:, 1].set(False))
    wild = hidden.replace(action=hidden.action.at[:, :, 1].set(1.0))
    name = "line/inverse_dynamics"
    values = [float(run(params, s)[0][1][name]) for s in (hidden, wild, segments.replace(action=wild.action))]
    assert values[0] == values[1] != values[2]


def test_advantage_weights_by_hand():
    """exp(beta A / std A) of the first action, capped at e^3; the standard deviation is that of present agents."""
    advantage, mask = jnp.array([[1.0, -1.0, 50.0]]), jnp.array([[1.0, 1.0, 0.0]])
    weight = losses.advantage_weight(advantage, mask, 0.5, H)
    np.testing.assert_allclose(weight[0, :2, 0], np.exp([0.5, -0.5]), rtol=1e-5)  # mean 0, standard deviation 1
    assert float(weight[0, 2, 0]) == pytest.approx(np.exp(3.0), rel=1e-5)
    assert not np.any(weight[:, :, 1:])
    np.testing.assert_array_equal(losses.advantage_weight(advantage, mask, 0.0, H), np.ones((1, 3, H)))


def test_delayed_messages_enter_through_the_mean_field(mlp, gradients, plain):
    """Changing what messages describe changes the mean field, hence the loss; own latents stay."""
    segments = tiny.random_segments()
    (total, _), _ = gradients(LossConfig())(mlp.params, segments.replace(message_obs=segments.message_obs[::-1]))
    assert float(total) != float(plain[0][0])


def test_label_is_standardised_and_centred_on_request(mlp):
    segments, params = tiny.random_segments(), mlp.params
    args = mlp.world_model, params, mlp.stats, "line", segments
    _, plain, _ = losses.task_loss(*args, jax.random.key(0), LossConfig())
    _, centred, _ = losses.task_loss(*args, jax.random.key(0), LossConfig(centred=True))
    label = neighbourhood_return(segments, LossConfig().discount)
    expected = (label - mlp.stats.return_mean["neighbourhood"]) / mlp.stats.return_std["neighbourhood"]
    np.testing.assert_allclose(plain.label, expected.reshape(-1), atol=1e-5)
    z, m = losses.encode_segments(mlp.world_model, params, mlp.stats, "line", segments, LossConfig())
    value = mlp.world_model.value(params, "line", z[:, :, 0], m[:, :, 0])
    np.testing.assert_allclose(centred.label, (expected - value).reshape(-1), atol=1e-5)


def test_training_can_hear_messages_as_the_planner_does(mlp):
    """The mean field is that of quantised messages, and gradients reach the encoder through it as if it were not."""
    segments, config = tiny.random_segments(), LossConfig(message_bits=3, message_range=2.0)

    def heard(params, config):
        return losses.encode_segments(mlp.world_model, params, mlp.stats, "line", segments, config)

    z, m = heard(mlp.params, config)
    sent = quantise(z[:, :, 0], config.message_bits, config.message_range)
    np.testing.assert_allclose(m[:, :, 0], mean_field(sent, segments.adjacency), atol=1e-6)
    assert np.abs(m - heard(mlp.params, LossConfig())[1]).max() > 0.05
    slope = lambda config: jax.grad(lambda p: (heard(p, config)[1] ** 2).sum())(mlp.params)["encoder"]  # noqa: E731
    for leaf in jax.tree.leaves(slope(config)):
        assert np.abs(leaf).max() > 0


def test_noised_sequences_keep_their_first_row_clean(mlp):
    x0 = jax.random.normal(jax.random.key(0), (5, H, 3))
    noise = jax.random.normal(jax.random.key(1), (5, H, 3))
    x = losses.noised(x0, jnp.full(5, 19), noise, mlp.schedule)
    np.testing.assert_array_equal(x[:, 0], x0[:, 0])
    # At the last level hardly any signal is left: sqrt(alphas_bar) = 0.0025.
    np.testing.assert_allclose(x[:, 1:], noise[:, 1:], atol=0.02)


def test_message_dropout_zeroes_whole_windows(mlp):
    segments, config = tiny.random_segments(batch=40), LossConfig(message_dropout=0.5)
    args = mlp.world_model, mlp.params, mlp.stats, "line", segments, jax.random.key(0)
    _, parts, _ = losses.task_loss(*args, config)
    own, heard = np.split(np.asarray(parts.x0), 2, -1)
    silent = ~heard.any((-2, -1))
    assert (heard.any(-1) == ~silent[:, None]).all() and np.abs(own).min(-1).max() > 0
    # 160 coins of probability 1/2: 80 +- 6.3, five standard deviations.
    assert 80 - 32 < silent.sum() < 80 + 32


# ------------------------------------------------------------------------------------------------ collapse


def test_latent_health_against_numpy():
    rng = np.random.default_rng(0)
    scale = np.array([2.0, 1.0, 0.5, 0.0])
    z = (rng.normal(size=(50, N, H + 1, 4)) * scale).astype(np.float32)
    mask = (rng.random((50, N)) < 0.7).astype(np.float32)
    rows = z[:, :, 0][mask > 0].astype(np.float64)
    covariance = np.cov(rows.T, bias=True)
    eigenvalues = np.linalg.eigvalsh(covariance)
    got = losses.latent_health(jnp.asarray(z), jnp.asarray(mask))
    np.testing.assert_allclose(got["latent_std"], rows.std(0)[:3].mean(), rtol=1e-4)  # the unused channel is left out
    np.testing.assert_allclose(got["effective_rank"], eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rtol=1e-4)


def test_latent_health_of_known_spectra():
    """d independent directions have rank d; one direction has rank 1; a constant has std 0."""
    rng = np.random.default_rng(1)
    white = jnp.asarray(rng.normal(size=(4000, 1, 1, 4)), jnp.float32)
    one = white[..., :1] * jnp.array([1.0, -2.0, 0.5, 1.0])[None, None, None]
    mask = jnp.ones((4000, 1))
    assert 3.9 < float(losses.latent_health(white, mask)["effective_rank"]) <= 4.001
    assert float(losses.latent_health(one, mask)["effective_rank"]) == pytest.approx(1, abs=1e-3)
    assert float(losses.latent_health(jnp.ones_like(white), mask)["latent_std"]) == 0


D = 8


@pytest.mark.parametrize(
    ("config", "is_healthy"),
    [
        (LossConfig(), True),
        (LossConfig(encoder_diffusion_grad=1.0, inverse_dynamics_weight=0.0), False),
    ],
    ids=["default", "diffusion alone"],
)
def test_default_latents_stay_alive_and_diffusion_alone_kills_them(config, is_healthy):
    """The alarm of the training loop, end to end: 0.3 is healthy; diffusion alone was measured at 0.01 (algorithm
    study)."""
    box = tiny.with_linear_nets(tiny.build(dataclasses.replace(tiny.CONFIG, encoder="mlp", latent_dim=D)))
    _, metrics = tiny.train(box, config, 300)
    std, rank = float(metrics["line/latent_std"]), float(metrics["line/effective_rank"])
    if is_healthy:
        assert std > 0.3 and rank > D / 4
    else:
        assert std < 0.3


def test_noise_of_the_inverse_dynamics_is_counted_per_channel():
    stats = tiny.build().stats.replace(surprise=jnp.arange(1.0, 7.0))
    np.testing.assert_allclose(losses.noise_unit(stats, "surprise"), np.arange(1.0, 7.0))
    np.testing.assert_allclose(losses.noise_unit(stats, "latent"), np.ones(6))
    with pytest.raises(ValueError, match="got 'meter'"):
        LossConfig(noise_unit="meter")


def test_a_noise_aware_inverse_model_reads_the_plan_as_far_as_it_is_told_to():
    """Told of little noise it finds the executed action in the next state; told of much it clones, whatever comes next.

    The logged action is the expert's plus 0.2 noise, which the next state shows up to 0.1 (`tiny.linear_task`).
    """
    config = dataclasses.replace(tiny.CONFIG, noise_aware_inverse_dynamics=True)
    box = tiny.with_linear_nets(tiny.build(config))
    state, _ = tiny.train(box, LossConfig(), 600)
    obs, action = jnp.asarray(box.data.obs[:, :-1]), box.data.action
    z, z_next = (box.world_model.encode(state.ema_params, box.stats, "line", jnp.asarray(o)) for o in
                 (obs, box.data.obs[:, 1:]))  # fmt: skip
    m = mean_field(z, jnp.asarray(box.data.adjacency[:, None]))

    def decoded(z_next, noise):
        logits = box.world_model.action_logits(state.ema_params, box.stats, "line", z, m, z_next, noise)
        return action_heads.decode_mean(logits, box.stats)

    error = lambda wanted, *args: float(jnp.sqrt(jnp.mean((decoded(*args) - wanted) ** 2)))  # noqa: E731
    expert = tiny.expert_action(np.asarray(obs), np.asarray(box.data.adjacency[:, None]))
    assert error(action, z_next, 0.1) < 0.14 < 0.18 < error(action, z_next, 10.0)
    assert error(expert, z_next[::-1], 10.0) < 0.1 < error(expert, z_next[::-1], 0.1)  # somebody else's next state
    with pytest.raises(ValueError, match="must be told the noise"):
        decoded(z_next, None)
    with pytest.raises(ValueError, match=r"inverse_dynamics_noise must lie in \[0.1, 10.0\], got 20"):
        PlannerConfig(inverse_dynamics_noise=20)
    for config in (LossConfig, PlannerConfig):
        with pytest.raises(ValueError, match="message_bits must be 0"):  # one bit would make every message NaN
            config(message_bits=1)
