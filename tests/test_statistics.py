"""Intervals cover what they claim; every statistic equals its closed form or a loop."""

import numpy as np
import pytest

from networld_jax import statistics


def two_level(rng, num_seeds, num_instances, seed_std, instance_std, noise_std=0.1, mean=0.0, instances=None):
    """Rewards [S, I] = mean + seed + instance + noise; `instances` [I] may be shared with another method."""
    instances = instance_std * rng.normal(size=num_instances) if instances is None else instances
    seeds = seed_std * rng.normal(size=(num_seeds, 1))
    return mean + seeds + instances + noise_std * rng.normal(size=(num_seeds, num_instances))


def test_iqm_is_the_mean_of_the_middle_half():
    assert statistics.iqm(np.array([8.0, 1, 2, 3, 4, 5, 6, -90])) == (2 + 3 + 4 + 5) / 4
    assert statistics.iqm(np.array([[1.0, 2.0], [3.0, 400.0]])) == 2.5
    assert statistics.iqm(np.array([7.0])) == 7.0
    with pytest.raises(ValueError, match="at least one value"):
        statistics.iqm(np.array([]))


def test_bootstrap_means_equal_a_loop():
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    draws = statistics.bootstrap_means(rewards, np.random.default_rng(1), 20)
    rng = np.random.default_rng(1)
    seeds, instances = rng.integers(0, 3, (20, 3)), rng.integers(0, 5, (20, 5))
    for b in range(20):
        values = [rewards[s, i] for s in seeds[b] for i in instances[b]]
        assert draws[b] == pytest.approx(np.mean(values), rel=1e-12)


def test_bootstrap_variance_has_its_closed_form():
    """With one instance only seeds are resampled: variance = population variance / S. With one seed, instances."""
    values = np.random.default_rng(2).normal(size=6)
    expected = values.var() / 6
    for shaped in (values[:, None], values[None, :]):
        draws = statistics.bootstrap_means(shaped, np.random.default_rng(3), 40_000)
        # standard error of a variance estimate from 40 000 draws: sqrt(2 / 40 000) = 0.7 %
        assert draws.var() == pytest.approx(expected, rel=0.04)


def test_a_shared_draw_of_instances_makes_the_bootstrap_wider():
    """Seeds meet the same instances. A bootstrap that drew instances per seed would be too sure of itself."""
    rng = np.random.default_rng(4)
    rewards = two_level(rng, 8, 8, seed_std=0.0, instance_std=1.0)
    draws = statistics.bootstrap_means(rewards, np.random.default_rng(5), 20_000)
    assert draws.var() == pytest.approx(rewards.mean(0).var() / 8, rel=0.1)


@pytest.mark.parametrize(("seed_std", "instance_std"), [(0.0, 1.0), (1.0, 0.2)])
def test_intervals_cover_the_truth(seed_std, instance_std):
    """Percentile intervals of 20 seeds x 30 instances: 95 % nominal. A bootstrap of n values loses a share of variance,
    1/n = 5 % here, so coverage lies slightly below; 400 repetitions have a standard error of 1.1 %."""
    hits = 0
    for repetition in range(400):
        rewards = two_level(np.random.default_rng(repetition), 20, 30, seed_std, instance_std, mean=2.0)
        interval = statistics.mean_interval(rewards, num_resamples=400, seed=10**6 + repetition)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.98


def test_pairing_removes_what_instances_share():
    rng = np.random.default_rng(6)
    shared = 10 * rng.normal(size=16)
    ours = two_level(rng, 3, 16, 0.05, 0.0, mean=1.0, instances=shared)
    theirs = two_level(rng, 3, 16, 0.05, 0.0, mean=0.0, instances=shared)
    interval = statistics.paired_interval(ours, theirs)
    assert interval.low < 1.0 < interval.high and interval.high - interval.low < 0.4
    assert interval.low > 0
    single = statistics.mean_interval(ours)
    assert single.high - single.low > 20 * (interval.high - interval.low)
    with pytest.raises(ValueError, match="same instances, got 16 and 15"):
        statistics.paired_interval(ours, theirs[:, :15])


def test_paired_intervals_cover_no_difference():
    hits = 0
    for repetition in range(300):
        rng = np.random.default_rng(1000 + repetition)
        shared = rng.normal(size=30)
        a, b = (two_level(rng, 10, 30, 0.3, 0.0, instances=shared) for _ in range(2))
        interval = statistics.paired_interval(a, b, num_resamples=400, seed=10**6 + repetition)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 300 <= 0.98  # 10 seeds: the bootstrap misses a tenth of the variance between them


def test_probability_of_improvement_equals_a_loop():
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 3, (3, 5)).astype(float), rng.integers(0, 3, (4, 5)).astype(float)
    wins = [
        1.0 if a[s, i] > b[t, i] else 0.5 if a[s, i] == b[t, i] else 0.0
        for i in range(5)
        for s in range(3)
        for t in range(4)
    ]
    assert statistics.probability_of_improvement(a, b) == pytest.approx(np.mean(wins))
    assert statistics.probability_of_improvement(a, a) == 0.5


@pytest.mark.parametrize(("loss", "holds"), [(0.0, True), (0.01, True), (0.03, False), (0.5, False)])
def test_non_inferiority_allows_two_percent_of_the_span(loss, holds):
    rng = np.random.default_rng(8)
    shared = rng.normal(size=32)
    ours = two_level(rng, 5, 32, 1e-4, 0.0, noise_std=1e-3, mean=-loss, instances=shared)
    theirs = two_level(rng, 5, 32, 1e-4, 0.0, noise_std=1e-3, instances=shared)
    result = statistics.non_inferiority(ours, theirs, span=1.0)
    assert result.holds == holds
    assert result.margin == 0.02
    assert result.lower_bound < result.difference
    with pytest.raises(ValueError, match="span"):
        statistics.non_inferiority(ours, theirs, span=-1.0)


def test_non_inferiority_is_rarely_claimed_at_the_margin():
    """At a true loss of exactly the margin the claim is wrong in about 5 % of experiments."""
    claims = 0
    for repetition in range(300):
        rng = np.random.default_rng(2000 + repetition)
        shared = rng.normal(size=30)
        a = two_level(rng, 12, 30, 0.05, 0.0, mean=-0.02, instances=shared)
        b = two_level(rng, 12, 30, 0.05, 0.0, instances=shared)
        claims += statistics.non_inferiority(a, b, span=1.0, num_resamples=400, seed=10**6 + repetition).holds
    assert 0.02 <= claims / 300 <= 0.12


def test_data_for_score_interpolates_in_log_size():
    sizes, scores = np.array([100, 1000, 10_000]), np.array([0.0, 0.5, 1.0])
    assert statistics.data_for_score(sizes, scores, 0.25) == pytest.approx(100 * 10**0.5)
    assert statistics.data_for_score(sizes, scores, -1.0) == 100
    assert np.isnan(statistics.data_for_score(sizes, scores, 1.5))


def test_data_saved_finds_a_known_factor():
    """Both curves are log10(size) / 4 plus noise, ours shifted by one decade: ten times less data."""
    rng = np.random.default_rng(9)
    shared = 0.1 * rng.normal(size=16)
    sizes = (100, 1000, 10_000)

    def curve(shift):
        return {s: two_level(rng, 3, 16, 0.01, 0.0, 0.01, np.log10(s) / 4 + shift, instances=shared) for s in sizes}

    factor, reference, reached = statistics.data_saved(curve(0.25), curve(0.0), num_resamples=300)
    assert reference == 10_000 and reached == 1.0
    assert factor.low < 10 < factor.high and 7 < factor.mean < 14
    never, _, reached = statistics.data_saved(curve(-1.0), curve(0.0), num_resamples=50)
    assert np.isnan(never.mean) and reached == 0 and never.high == 0


def test_min_max_moves_with_the_company():
    assert statistics.min_max({"a": 1.0, "b": 3.0, "c": 2.0}) == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert statistics.min_max({"a": 1.0, "b": 1.0}) == {"a": 0.0, "b": 0.0}
