"""Two-hot: DreamerV3's own numbers, and the properties that make the decode safe."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import transforms
from tests import parity

FIXTURE = np.load(pathlib.Path(__file__).parent / "data" / "twohot_reference.npz")
CASES = ("b41", "sym5_65")


def case(name):
    return {key.split("/")[1]: FIXTURE[key] for key in FIXTURE.files if key.startswith(name + "/")}


@pytest.mark.parametrize("name", ["symlog", "symexp"])
def test_symlog_symexp_match_the_source(name):
    reference = case(name)
    # one float32 log1p or expm1: a few ulp
    np.testing.assert_allclose(getattr(transforms, name)(reference["x"]), reference["y"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_two_hot_and_decode_match_the_source(name):
    reference = case(name)
    bins, logits = reference["bins"], reference["logits"]
    np.testing.assert_allclose(parity.two_hot(reference["target"], bins), reference["twohot"], atol=1e-6)
    # the decode cancels: its error scales with the sum of the absolute terms
    terms = np.abs(jax.nn.softmax(logits) * bins[None]).sum(-1)
    assert np.all(np.abs(parity.from_two_hot(logits, bins) - reference["pred"]) <= 1e-5 * terms)
    assert np.array_equal(parity.from_two_hot(np.zeros_like(logits), bins), reference["pred_uniform_logits"])
    decoded = parity.from_two_hot(np.log(reference["twohot"] + 1e-30), bins)
    np.testing.assert_allclose(decoded, reference["decode_of_twohot"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_cross_entropy_and_gradients_match_the_source(name):
    reference = case(name)
    bins, logits, target = (jnp.asarray(reference[key]) for key in ("bins", "logits", "target"))
    loss = transforms.two_hot_cross_entropy(logits, target, bins)
    np.testing.assert_allclose(loss, reference["loss"], rtol=1e-5)
    loss_grad = jax.grad(lambda l: transforms.two_hot_cross_entropy(l, target, bins).sum())(logits)
    np.testing.assert_allclose(loss_grad, reference["loss_grad_logits"], atol=2e-6)  # entries in [-1, 1]
    decode_grad = jax.grad(lambda l: transforms.from_two_hot(l, bins).sum())(logits)
    scale = np.abs(jax.nn.softmax(logits) * bins[None]).sum(-1, keepdims=True)  # p (b - E) cancels like the decode
    assert np.all(np.abs(decode_grad - reference["pred_grad_logits"]) <= 1e-5 * scale)


def test_rows_are_two_adjacent_weights_that_decode_exactly():
    bins = transforms.symexp_bins(-300.0, 50.0, 65)
    y = jax.random.uniform(jax.random.key(0), (500,), minval=-300.0, maxval=50.0)
    weights = np.asarray(transforms.two_hot(y, bins))
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    for row in weights:
        nonzero = np.flatnonzero(row)
        assert len(nonzero) <= 2 and np.ptp(nonzero) <= 1
    decoded = transforms.from_two_hot(jnp.log(weights), bins)
    np.testing.assert_allclose(decoded, y, rtol=1e-5, atol=1e-5)


def test_values_on_and_outside_the_bins():
    bins = jnp.array([-2.0, 0.0, 1.0, 5.0])
    weights = transforms.two_hot(jnp.array([-9.0, -2.0, 0.0, 1.0, 5.0, 9.0, 2.0]), bins)
    expected = np.zeros((7, 4))
    expected[[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 3]] = 1.0
    expected[6, 2:] = 0.75, 0.25
    np.testing.assert_allclose(weights, expected, atol=1e-7)
    assert np.isnan(transforms.two_hot(jnp.nan, bins)).any()


@pytest.mark.parametrize("num_bins", [41, 64, 255])
def test_uniform_logits_over_symmetric_bins_decode_to_exactly_zero(num_bins):
    high = float(transforms.symexp(jnp.float32(20.0)))  # bins up to 4.85e8: a plain sum leaves about 1
    bins = transforms.symexp_bins(-high, high, num_bins)
    assert float(transforms.from_two_hot(jnp.zeros(num_bins), bins)) == 0.0


def test_bins_are_even_in_symlog_space_and_per_quantity():
    low, high = np.array([-3.0, 0.1]), np.array([40.0, 900.0])
    bins = transforms.symexp_bins(low, high, 33)
    chex.assert_shape(bins, (2, 33))
    np.testing.assert_allclose(bins[:, [0, -1]], np.stack([low, high], 1), rtol=1e-6)
    steps = np.diff(transforms.symlog(bins), axis=-1)
    np.testing.assert_allclose(steps, np.broadcast_to(steps.mean(-1, keepdims=True), steps.shape), rtol=1e-4)
    y = jnp.array([[-3.0, 0.1], [17.0, 333.0]])
    per_quantity = jax.vmap(transforms.two_hot, in_axes=(-1, 0), out_axes=-2)(y, bins)
    for a in range(2):
        chex.assert_trees_all_equal(per_quantity[:, a], transforms.two_hot(y[:, a], bins[a]))


def test_data_bins_leave_one_spare_bin_and_survive_constants():
    bins = np.asarray(transforms.data_bins(np.array([0.0, 7.0]), np.array([9.0, 7.0]), 12))
    assert bins[0, 0] < 0.0 and bins[0, -1] > 9.0
    np.testing.assert_allclose(bins[0, [1, -2]], [0.0, 9.0], atol=1e-5)
    assert np.all(np.diff(bins, axis=-1) > 0) and bins[1, 0] < 7.0 < bins[1, -1]


def test_targets_get_no_gradient_and_half_precision_logits_are_read_in_float32():
    bins = transforms.symexp_bins(-5.0, 5.0, 17)
    logits = jax.random.normal(jax.random.key(1), (17,))
    assert float(jax.grad(transforms.two_hot_cross_entropy, argnums=1)(logits, 1.3, bins)) == 0.0
    assert transforms.from_two_hot(logits.astype(jnp.bfloat16), bins).dtype == jnp.float32


@pytest.mark.parametrize("low, high, num_bins", [(1.0, 1.0, 9), (2.0, 1.0, 9), (0.0, 1.0, 1)])
def test_degenerate_bins_are_refused(low, high, num_bins):
    with pytest.raises(ValueError, match=r"low must be below high|num_bins must be at least 2"):
        transforms.symexp_bins(low, high, num_bins)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    value, slope = jax.value_and_grad(lambda x: transforms.straight_through(jnp.round(x), 3.0 * x))(1.4)
    assert value == 1.0 and slope == 3.0


def test_draws_come_with_their_probability_and_are_bins():
    probability = jnp.array([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0]])
    bins = jnp.array([[-1.0, 0.0, 2.0], [3.0, 5.0, 8.0]])
    count = 20_000
    logits = jnp.broadcast_to(jnp.log(probability), (count, 2, 3))
    drawn = jax.jit(transforms.component_draws)(jax.random.key(0), logits, bins)
    for component in range(2):
        shares = [np.mean(drawn[:, component] == value) for value in bins[component]]
        # A share of 20 000 draws has a standard error of at most 0.0035.
        np.testing.assert_allclose(shares, probability[component], atol=0.015)
        assert np.all(np.equal(shares, 0.0) == (probability[component] == 0.0))
    together = np.mean((drawn[:, 0] == 2.0) & (drawn[:, 1] == 3.0))
    np.testing.assert_allclose(together, 0.375, atol=0.015)  # independent components
