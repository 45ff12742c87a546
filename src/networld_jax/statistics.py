"""Statistics of runs with few seeds and many paired instances.

Results are arrays [S, I]: S training seeds, I test instances that every method and seed shares. Two things are random:
which weights training ended in, and which networks were drawn. The hierarchical bootstrap resamples both, seeds outside
and instances inside, and compares methods on the same instances. Three seeds give coarse intervals whatever is done;
show the single seeds beside.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A point estimate with a percentile interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def iqm(values: np.ndarray) -> float:
    """Interquartile mean: the mean of the middle half, the 25 % trimmed mean with whole values cut at both ends.

    Raises ValueError for no values.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=None)
    if not ordered.size:
        raise ValueError("iqm needs at least one value, got none")
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def bootstrap_means(rewards: np.ndarray, rng: np.random.Generator, num_resamples: int = 2000) -> np.ndarray:
    """[num_resamples] means of hierarchical resamples of rewards [S, I]: seeds drawn with replacement, instances drawn
    with replacement once per resample and shared by its seeds, as they are in the experiment."""
    rewards = _two_axes(rewards)
    seeds = rng.integers(0, rewards.shape[0], (num_resamples, rewards.shape[0]))
    instances = rng.integers(0, rewards.shape[1], (num_resamples, rewards.shape[1]))
    return rewards[seeds[:, :, None], instances[:, None, :]].mean((1, 2))


def mean_interval(rewards: np.ndarray, level: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of rewards [S, I] with the hierarchical-bootstrap percentile interval."""
    rewards = _two_axes(rewards)
    means = bootstrap_means(rewards, np.random.default_rng(seed), num_resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(rewards.mean()), float(low), float(high))


def difference_means(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, num_resamples: int = 2000) -> np.ndarray:
    """[num_resamples] means of a - b under the hierarchical bootstrap, paired by instance. a [S, I] and b [S', I] are
    trained independently, so their seeds are drawn independently; instances are drawn once for both.

    Raises ValueError when the instances differ in number.
    """
    a, b = _paired(a, b)
    instances = rng.integers(0, a.shape[1], (num_resamples, a.shape[1]))

    def means(x):
        seeds = rng.integers(0, x.shape[0], (num_resamples, x.shape[0]))
        return x[seeds[:, :, None], instances[:, None, :]].mean((1, 2))

    return means(a) - means(b)


def paired_interval(
    a: np.ndarray, b: np.ndarray, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """mean(a) - mean(b) of a [S, I] and b [S', I] on the same instances, with its interval."""
    a, b = _paired(a, b)
    draws = difference_means(a, b, np.random.default_rng(seed), num_resamples)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.mean() - b.mean()), float(low), float(high))


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> float:
    """P(a > b) + P(a = b) / 2 over pairs of seeds on the same instance, a [S, I], b [S', I]: the Mann-Whitney statistic
    within instances, averaged over them."""
    a, b = _paired(a, b)
    above = (a[:, None] > b[None]).mean()
    return float(above + (a[:, None] == b[None]).mean() / 2)


@dataclasses.dataclass(frozen=True)
class NonInferiority:
    """Result of a one-sided test that `a` is worse than `b` by less than `margin`."""

    difference: float  # mean(a) - mean(b)
    lower_bound: float  # one-sided bound at the level asked for
    margin: float  # allowed loss, positive

    @property
    def holds(self) -> bool:
        return self.lower_bound > -self.margin


def non_inferiority(
    a: np.ndarray,
    b: np.ndarray,
    span: float,
    fraction: float = 0.02,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> NonInferiority:
    """Is a [S, I] no worse than b [S', I] by `fraction` of the random-expert `span`, one-sided at `level`?

    Raises ValueError for a span that is not positive.
    """
    if not span > 0:
        raise ValueError(f"span (expert minus random reward) must be positive, got {span}")
    a, b = _paired(a, b)
    draws = difference_means(a, b, np.random.default_rng(seed), num_resamples)
    return NonInferiority(float(a.mean() - b.mean()), float(np.quantile(draws, 1 - level)), fraction * span)


def data_for_score(sizes: np.ndarray, scores: np.ndarray, wanted: float) -> float:
    """Amount of data at which a score curve first reaches `wanted`, linear in log(size) between the measured sizes; nan
    when it never does, the smallest size when it starts there."""
    sizes, scores = np.asarray(sizes, np.float64), np.asarray(scores, np.float64)
    reached = np.flatnonzero(scores >= wanted)
    if not reached.size:
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return float(sizes[0])
    share = (wanted - scores[i - 1]) / (scores[i] - scores[i - 1])
    return float(np.exp(np.log(sizes[i - 1]) + share * np.log(sizes[i] / sizes[i - 1])))


def data_saved(
    ours: dict[int, np.ndarray],
    theirs: dict[int, np.ndarray],
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, int, float]:
    """Factor of target data saved at equal score: size of theirs / size at which ours first scores as much.

    Both map an amount of data to rewards [S, I]. The reference point is their largest size. Seeds of every point are
    resampled independently, instances once per resample.

    Returns (interval of the factor, reference size, share of resamples in which ours reaches the score). Where ours
    already reaches it with the smallest amount measured, the factor is a lower bound.
    """
    rng = np.random.default_rng(seed)
    sizes, reference = np.array(sorted(ours)), max(theirs)
    num_instances = _two_axes(theirs[reference]).shape[1]

    def factor(points, target):
        needed = data_for_score(sizes, points, target)
        return reference / needed

    def resampled(x, instances):
        x = _two_axes(x)
        return x[rng.integers(0, x.shape[0], x.shape[0])][:, instances].mean()

    draws = []
    for _ in range(num_resamples):
        instances = rng.integers(0, num_instances, num_instances)
        target = resampled(theirs[reference], instances)
        draws.append(factor(np.array([resampled(ours[s], instances) for s in sizes]), target))
    draws = np.array(draws)
    reached = np.isfinite(draws)
    point = factor(np.array([np.mean(ours[s]) for s in sizes]), float(np.mean(theirs[reference])))
    bounded = np.where(reached, draws, 0.0)  # never reached: nothing saved
    low, high = np.quantile(bounded, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(point), float(low), float(high)), int(reference), float(reached.mean())


def min_max(rewards: dict[str, float]) -> dict[str, float]:
    """The paper's normalisation of Fig. 6: (R - min) / (max - min) over the methods at hand, 0 where all are equal. A
    score moves when a method is added, so it is shown beside the anchored one only."""
    low, high = min(rewards.values()), max(rewards.values())
    span = high - low
    return {name: (value - low) / span if span > 0 else 0.0 for name, value in rewards.items()}


def _two_axes(rewards: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 2 or not rewards.size:
        raise ValueError(f"rewards must be [seeds, instances] and not empty, got shape {rewards.shape}")
    return rewards


def _paired(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = _two_axes(a), _two_axes(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"paired results need the same instances, got {a.shape[1]} and {b.shape[1]}")
    return a, b
