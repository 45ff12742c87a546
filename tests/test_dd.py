"""MA-DD and the diffusion policy on problems with two modes: sampling must reach the commanded, or the better one."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import datasets, networks, normalisation
from networld_jax.baselines import (
    DDConfig,
    DiffusionPolicyConfig,
    diffusion_policy,
    make_dd,
    make_diffusion_policy,
)
from tests import small_problems as problems

OBS = np.zeros((64, 1))
CONFIG = DDConfig(
    hidden=(32,),
    batch_size=64,
    horizon=2,
    return_steps=1,
    width=8,
    width_mults=(1,),
    diffusion_steps=10,
    num_steps=5,
    learning_rate=5e-3,
    num_updates=400,
    inverse_dynamics_noise=0.1,
    ema_decay=0.95,
)


class SmallDenoiser(nn.Module):
    """In place of the U-Net, whose compilation would take most of the time: same arguments, same conditioning."""

    out_channels: int
    width: int
    mults: tuple
    layout: str

    @nn.compact
    def __call__(self, x, k, condition):
        embedding = [networks.TimeMLP(8)(k), networks.ConditionMLP(8)(*condition)]
        flat = jnp.concatenate([x.reshape(len(x), -1), *embedding], -1)
        return networks.MLP((32, 32, x[0].size), zero_init=True)(flat).reshape(x.shape)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("U-Net", marks=pytest.mark.slow)])
def diffuser(request):
    """The trained problem, with a small denoiser and with the real one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            patch.setattr(networks, "TemporalUNet", SmallDenoiser)
        yield trained(CONFIG)


def trained(config):
    """From 0 the state goes to s = +-1, which pays s; the action that leads there is s / 2."""
    rng = np.random.default_rng(0)
    s = rng.choice([-1.0, 1.0], (300, 1, 1, 1))
    obs = np.concatenate([np.zeros_like(s), s, s], axis=1)
    task = problems.spec()
    data = datasets.from_arrays(obs, np.concatenate([s, s], 1) / 2, np.concatenate([s, s], 1)[..., 0], np.zeros((1, 1)))
    stats = normalisation.task_stats(data, task, problems.MODEL)
    with jax.debug_key_reuse(True):
        state, stats, _ = problems.train(make_dd(task, config), data, stats, config.num_updates)
    return task, state, stats


def sampled(diffuser, target, **fields):
    """Actions [64] with the return `target` in standard deviations, one key each."""
    task, state, stats = diffuser
    stats = stats.replace(extra=stats.extra | {"target_return": jnp.float32(target)})
    return problems.act(make_dd(task, dataclasses.replace(CONFIG, **fields)), state.ema_params, stats, OBS)[:, 0]


def test_sampling_reaches_the_commanded_mode(diffuser):
    assert abs(float(diffuser[2].extra["target_return"]) - 1.0) < 0.1  # the good mode, by the data's quantile
    for target in (1.0, -1.0):
        action = sampled(diffuser, target)
        assert np.mean(np.abs(action - 0.5 * target) < 0.2) > 0.9


def test_a_noise_aware_inverse_model_follows_the_plan_or_clones(monkeypatch):
    monkeypatch.setattr(networks, "TemporalUNet", SmallDenoiser)
    aware = dict(noise_aware=True)
    problem = trained(dataclasses.replace(CONFIG, **aware))
    follows, clones = (sampled(problem, 1.0, inverse_dynamics_noise=s, **aware) for s in (0.1, 10.0))
    assert np.mean(np.abs(follows - 0.5) < 0.2) > 0.9
    assert np.mean(np.abs(clones) < 0.2) > 0.9  # the mean of both modes


def test_without_guidance_the_command_is_not_heard_and_both_modes_come(diffuser):
    high, low = (sampled(diffuser, target, guide_scale=0.0, temperature=1.0) for target in (1.0, -1.0))
    np.testing.assert_array_equal(high, low)
    assert 0.2 < np.mean(high > 0) < 0.8
    averaged = sampled(diffuser, 0.0, guide_scale=0.0, temperature=1.0, num_averaged=8)
    assert averaged.std() < 0.8 * high.std()  # a mean of modes is neither


def test_settings_are_checked():
    for fields, message in (
        (dict(sampler="euler"), "sampler must be one of"),
        (dict(prediction="v"), "prediction must be one of"),
        (dict(horizon=6), "horizon must be divisible by 4"),
        (dict(drop_probability=1.5), "drop_probability must lie in"),
        (dict(noise_aware=True, inverse_dynamics_noise=0.0), r"inverse_dynamics_noise must lie in \[0.1, 10"),
    ):
        with pytest.raises(ValueError, match=message):
            DDConfig(**fields)
    with pytest.raises(ValueError, match="num_candidates must lie in"):
        DiffusionPolicyConfig(num_candidates=0)


# ------------------------------------------------------------------------------------------------ diffusion policy


@pytest.fixture(scope="module")
def policy_problem():
    """a is near -0.8 or near +0.8, nothing between; it pays itself. The mean, 0, is what a clone would do."""
    rng = np.random.default_rng(0)
    a = 0.8 * rng.choice([-1.0, 1.0], (2000, 1)) + 0.05 * rng.normal(size=(2000, 1))
    task = problems.spec()
    data, stats = problems.bandit(np.zeros((2000, 1)), a, a[:, 0], task)
    config = DiffusionPolicyConfig(
        hidden=(64, 64),
        batch_size=256,
        return_steps=1,
        diffusion_steps=10,
        num_steps=10,
        learning_rate=1e-2,
        num_updates=400,
        ema_decay=0.95,
    )
    with jax.debug_key_reuse(True):
        state, stats, _ = problems.train(make_diffusion_policy(task, config), data, stats, 400)
    return task, config, state, stats


def test_the_policy_imagines_both_modes_and_the_value_selects_the_better(policy_problem):
    task, config, state, stats = policy_problem

    def act(**fields):
        baseline = make_diffusion_policy(task, dataclasses.replace(config, **fields))
        return problems.act(baseline, state.ema_params, stats, OBS)[:, 0]

    plain = act(num_candidates=1)
    assert np.mean(np.abs(np.abs(plain) - 0.8) < 0.25) > 0.85  # not the mean
    assert 0.2 < np.mean(plain > 0) < 0.8  # both modes
    assert np.mean(np.abs(act(num_candidates=8) - 0.8) < 0.25) > 0.95


def test_candidates_are_drawn_by_their_exponential_value():
    values, keys = jnp.array([0.0, 1.0, 2.0]), jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: diffusion_policy.choose(key, values, 0.5)))(keys)
    expected = np.exp(2 * np.asarray(values))
    frequency = np.bincount(drawn, minlength=3) / 4000
    np.testing.assert_allclose(frequency, expected / expected.sum(), atol=0.03)  # 3.8 standard errors at most
    assert diffusion_policy.choose(None, values, 0.0) == 2
