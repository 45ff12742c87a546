"""Two-hot action heads: the mean and the quantiles of known distributions, the prior of the data."""

import jax.numpy as jnp
import numpy as np
import pytest

from networld_jax import action_heads
from tests import tiny


def histogram(box, probabilities, bins):
    """Stats with these bins [M] for both components, and logits [1, 2, M] of the probabilities."""
    bins = jnp.tile(jnp.asarray(bins, jnp.float32)[None], (2, 1))
    return box.stats.replace(action_bins=bins), jnp.log(jnp.asarray(probabilities))[None, None].repeat(2, 1)


@pytest.mark.parametrize(("quantile", "expected"), [(0.05, 0), (0.1999, 1), (0.49, 1), (0.6, 2), (0.99, 3)])
def test_the_quantile_of_an_integer_distribution_is_exact(quantile, expected):
    """P(0..3) = .1, .4, .4, .1: cumulative .1, .5, .9, 1."""
    stats, logits = histogram(tiny.build(), [0.1, 0.4, 0.4, 0.1], [0, 1, 2, 3])
    decoded = jnp.round(action_heads.decode_quantile(logits, stats, quantile))
    np.testing.assert_array_equal(decoded, np.full((1, 2), expected))


def test_the_quantile_of_a_uniform_histogram_is_linear():
    """Equal density on cells of equal width: between the first and the last bin the quantile is a line."""
    bins = np.linspace(-1.0, 1.0, 9)
    probabilities = np.array([0.5, *[1.0] * 7, 0.5]) / 8
    stats, logits = histogram(tiny.build(), probabilities, bins)
    for quantile in (0.1, 0.25, 0.5, 0.8):
        decoded = action_heads.decode_quantile(logits, stats, quantile)
        np.testing.assert_allclose(decoded, np.full((1, 2), 2 * quantile - 1), atol=1e-5)


def test_the_mean_and_the_loss_of_a_known_distribution():
    """The mean of P(0..3) = .1, .2, .3, .4 is 2; the loss of an integer is -log of its probability."""
    stats, logits = histogram(tiny.build(), [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3])
    np.testing.assert_allclose(action_heads.decode_mean(logits, stats), np.full((1, 2), 2.0), atol=1e-6)
    loss = action_heads.losses(logits, jnp.asarray([[0.0, 3.0]]), stats)
    np.testing.assert_allclose(loss, [-(np.log(0.1) + np.log(0.4)) / 2], rtol=1e-5)


def test_a_silent_head_answers_with_the_datas_histogram():
    """Components keep their own: no mixing of the two."""
    stats, _ = histogram(tiny.build(), [0.25] * 4, [0, 1, 2, 3])
    counts = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    stats = stats.replace(action_log_histogram=jnp.log(counts))
    logits = action_heads.add_prior(jnp.zeros((5, 2, 4)), stats)
    np.testing.assert_allclose(action_heads.decode_mean(logits, stats), np.tile([2.0, 1.0], (5, 1)), atol=1e-6)
