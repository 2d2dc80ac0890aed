"""Figures with seeded bootstrap intervals: of a mean, of a paired ratio, of a Kolmogorov-Smirnov distance, of an AUC.

A resample of a distance is drawn as counts (how often each image was picked), so that all resamples of a figure are a few
array operations. Every figure has its own generator, made from the run's seed and the figure's name: adding or removing a
figure changes no other. Percentile intervals: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline.records import MetricResult

__all__ = ["Floats", "Interval", "Resampling", "auc_of_counts", "exact_rate", "figure", "ks_of_counts", "missing", "pool"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# Elements of one block of counts: bounds memory at about 64 MiB a float64 array, whatever the number of images.
BLOCK = 8_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and its interval; `low <= value <= high` always."""

    value: float
    low: float
    high: float


def exact_rate(hits: int, num: int, confidence: float) -> Interval:
    """hits / num with the exact interval of a binomial rate (Clopper & Pearson 1934).

    Args:
        hits: 0 to `num`.
        num: independent trials, at least 1.
        confidence: of the two-sided interval, in (0, 1).
    """
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(hits, num - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, num - hits, 1 - tail)) if hits < num else 1.0
    return Interval(value=hits / num, low=low, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made.

    Args:
        seed: the run's seed.
        resamples: number of bootstrap resamples, at least 1.
        confidence: coverage of the interval, in (0, 1).
    """

    seed: int
    resamples: int
    confidence: float

    def _generator(self, label: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big")])

    def _picks(self, label: str, *sizes: int) -> Iterator[list[Counts]]:
        """Blocks of resamples: for each sample size n, the places that were picked, int64 [block, n]."""
        generator, done = self._generator(label), 0
        while done < self.resamples:
            block = min(self.resamples - done, max(1, BLOCK // max(sizes)))
            yield [generator.integers(0, num, size=(block, num)) for num in sizes]
            done += block

    def _counts(self, label: str, *sizes: int) -> Iterator[list[Counts]]:
        """The same resamples as counts int64 [block, n], whose rows sum to n."""
        for picks in self._picks(label, *sizes):
            yield [_counted(item, num) for item, num in zip(picks, sizes, strict=True)]

    def mean(self, values: Floats, label: str) -> Interval:
        """Mean of [N] values, N at least 1, resampled over the images."""
        draws = [values[picks].mean(axis=1) for (picks,) in self._picks(label, len(values))]
        return self._interval(float(values.mean()), draws)

    def ratio(self, above: Floats, below: Floats, label: str) -> Interval:
        """mean(above) / mean(below) of two [N] arrays that belong to the same images, which are resampled together."""
        draws = [above[picks].mean(axis=1) / below[picks].mean(axis=1) for (picks,) in self._picks(label, len(above))]
        return self._interval(float(above.mean() / below.mean()), draws)

    def paired(self, first: Floats, second: Floats, statistic: Statistic, label: str) -> Interval:
        """A two-sample statistic of [N] and [N] values of the same images, which are resampled together."""
        places = pool(first, second)
        draws = [statistic(counts, counts, places) for (counts,) in self._counts(label, len(first))]
        return self._interval(_once(statistic, first, second, places), draws)

    def unpaired(self, first: Floats, second: Floats, statistic: Statistic, label: str) -> Interval:
        """A two-sample statistic of [N] and [M] values of different images, resampled apart."""
        places = pool(first, second)
        draws = [statistic(a, b, places) for a, b in self._counts(label, len(first), len(second))]
        return self._interval(_once(statistic, first, second, places), draws)

    def swapped(self, first: Floats, second: Floats, label: str, draws: int = 400) -> tuple[Floats, Floats]:
        """Means of two [N] arrays of the same images, swapped in a random half of the images; two arrays float64 [draws].

        What a statistic of both means would be if it made no difference which of two models answered for an image: Fisher's
        randomisation of paired differences (Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005, chapter 3).
        """
        swap = self._generator(label).integers(0, 2, size=(draws, len(first))).astype(np.float64)
        moved = swap @ (second - first) / len(first)
        return first.mean() + moved, second.mean() - moved

    def _interval(self, value: float, draws: list[Floats]) -> Interval:
        """Percentiles of the draws, widened where needed to hold the value itself: a resampled distance can only
        gain noise, so near zero all its draws may lie above the distance that was measured."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
        return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


@dataclasses.dataclass(frozen=True)
class Pool:
    """Two samples sorted together. `order` sorts their concatenation, `starts` marks where each distinct value begins."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]


Statistic = Callable[[Counts, Counts, Pool], Floats]


def pool(first: Floats, second: Floats) -> Pool:
    """Sort two samples together, so that a resample of both never sorts again."""
    both = np.concatenate([first, second])
    order = np.argsort(both, kind="stable")
    fresh = np.concatenate([[True], np.diff(both[order]) > 0])
    return Pool(order=order, starts=np.flatnonzero(fresh))


def _counted(picks: Counts, num: int) -> Counts:
    block = len(picks)
    places = picks + np.arange(block)[:, None] * num
    return np.bincount(places.ravel(), minlength=block * num).reshape(block, num)


def _once(statistic: Statistic, first: Floats, second: Floats, places: Pool) -> float:
    one, other = (np.ones((1, len(values)), dtype=np.int64) for values in (first, second))
    return float(statistic(one, other, places)[0])


def _masses(first: Counts, second: Counts, places: Pool) -> tuple[Counts, Counts]:
    """How many picks of each resample lie at each distinct value: two arrays [B, distinct values]."""
    whole = (np.hstack([first, np.zeros_like(second)]), np.hstack([np.zeros_like(first), second]))
    a, b = (np.add.reduceat(side[:, places.order], places.starts, axis=1) for side in whole)
    return a, b


def ks_of_counts(first: Counts, second: Counts, places: Pool) -> Floats:
    """Two-sample Kolmogorov-Smirnov distance, the largest gap of the two distribution functions, for each resample."""
    a, b = (np.cumsum(mass, axis=1) for mass in _masses(first, second, places))
    # Whole numbers are summed and divided once, so that equal samples are at distance 0 and not at a rounding error.
    return np.abs(a / a[:, -1:] - b / b[:, -1:]).max(axis=1)


def auc_of_counts(first: Counts, second: Counts, places: Pool) -> Floats:
    """P(first < second) + P(first = second) / 2 for each resample: Mann & Whitney's U divided by its maximum."""
    a, b = _masses(first, second, places)
    reached = np.cumsum(b, axis=1)
    doubled = (a * (2 * (reached[:, -1:] - reached) + b)).sum(axis=1)
    return doubled / (2 * a.sum(axis=1) * reached[:, -1])


def figure(
    name: str,
    split: str,
    group: str,
    interval: Interval,
    *,
    samples: int,
    better: Literal["lower", "higher", "reference"] = "reference",
    note: str = "",
) -> MetricResult:
    """A figure that was computed."""
    return MetricResult(
        name=name,
        split=split,
        group=group,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        samples=samples,
        better=better,
        note=note,
    )


def missing(name: str, split: str, group: str, why: str) -> MetricResult:
    """A figure that was not computed, and why."""
    return MetricResult(name=name, split=split, group=group, value=None, note=f"not computed: {why}")
