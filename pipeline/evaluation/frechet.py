"""Frechet distance between two sets of features, from sums that add over batches and ranks, in fp64.

d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)) with means m and covariances C: Dowson & Landau, The Frechet
Distance between Multivariate Normal Distributions, 1982; Heusel et al. 2017 on Inception's features is the FID.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.base import Floats, Interval

__all__ = ["BLOCKS", "MINIMUM", "Moments", "frechet_distance", "frechet_interval", "refusal"]

# Below this the covariance of Inception's 2,048 features has no full rank, and the distance is mostly bias.
MINIMUM = 2048

# Blocks of the jackknife: each costs one more distance.
BLOCKS = 10

Features = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over N feature vectors: count, sum fp64 [F], sum of outer products fp64 [F, F] (8 F^2 bytes; 33 MB at 2,048).

    Moments of disjoint sets add up to those of the union, and those of a part can be taken away.
    """

    count: int
    total: Floats
    outer: Floats

    @classmethod
    def of(cls, features_NF: Features) -> Moments:
        """Moments of float [N, F], N may be 0."""
        values = np.asarray(features_NF, dtype=np.float64)
        return cls(count=len(values), total=values.sum(axis=0), outer=values.T @ values)

    def __add__(self, other: Moments) -> Moments:
        return Moments(count=self.count + other.count, total=self.total + other.total, outer=self.outer + other.outer)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(count=self.count - other.count, total=self.total - other.total, outer=self.outer - other.outer)

    @property
    def mean(self) -> Floats:
        """Mean [F]; N at least 1."""
        return self.total / self.count

    @property
    def covariance(self) -> Floats:
        """Unbiased covariance [F, F]; N at least 2."""
        return (self.outer - np.outer(self.total, self.mean)) / (self.count - 1)


def refusal(samples: int) -> str:
    """Why a Frechet figure of so many images is not given; empty if it may be."""
    return f"{samples} images are too few for a Frechet distance ({MINIMUM} needed); see KID" if samples < MINIMUM else ""


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two sets of at least 2 vectors each, in squared units of the features; at least 0.

    The trace is the sum of the square roots of the eigenvalues of L' C2 L, symmetric, for any L with L L' = C1: real and
    not negative whatever the rank, unlike the root of the product, of which peers drop the imaginary part.
    """
    gap = first.mean - second.mean
    root = _factor(first.covariance)
    eigenvalues = np.linalg.eigvalsh(root.T @ second.covariance @ root)
    trace = float(np.sqrt(np.clip(eigenvalues, 0, None)).sum())
    value = gap @ gap + np.trace(first.covariance) + np.trace(second.covariance) - 2 * trace
    return max(float(value), 0.0)


def _factor(covariance: Floats) -> Floats:
    """L with L L' = C. Cholesky's factor is ten times cheaper than eigenvectors and needs full rank."""
    try:
        return np.asarray(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))


def frechet_interval(first_NF: Features, second_MF: Features, *, paired: bool, confidence: float) -> Interval:
    """Frechet distance of two sets of features with a delete-a-block jackknife interval.

    Blocks are every tenth image, which are left out in turn: of both sets where they show the same images (`paired`),
    otherwise of one set and then of the other, whose variances add. The interval is the distance plus and minus Student's
    quantile of standard errors (Efron & Tibshirani 1993, chapter 11), not below 0. A bootstrap would repeat images, which
    lowers the covariance's rank and raises the distance. The bias by the number of images is not in the interval.

    Args:
        first_NF, second_MF: float [N, F] and [M, F], at least 20 rows each; N = M and the same images where paired.
        paired: whether row i of both belongs to the same image.
        confidence: coverage in (0, 1).
    """
    one, two = Moments.of(first_NF), Moments.of(second_MF)
    value = frechet_distance(one, two)
    if paired:
        cuts = zip(_without(one, first_NF), _without(two, second_MF), strict=True)
        variance = _jackknife(frechet_distance(a, b) for a, b in cuts)
    else:
        variance = _jackknife(frechet_distance(a, two) for a in _without(one, first_NF))
        variance += _jackknife(frechet_distance(one, b) for b in _without(two, second_MF))
    reach = _student(confidence, BLOCKS - 1) * math.sqrt(variance)
    return Interval(value=value, low=max(value - reach, 0.0), high=value + reach)


def _without(whole: Moments, features: Features) -> Iterator[Moments]:
    for block in range(BLOCKS):
        yield whole - Moments.of(features[block::BLOCKS])


def _jackknife(values: Iterator[float]) -> float:
    """Variance of an estimate from its values with one block left out each."""
    found = np.array(list(values))
    return float((BLOCKS - 1) / BLOCKS * np.square(found - found.mean()).sum())


def _student(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, within 1 % at 9 degrees and 95 %: Abramowitz & Stegun 1964, 26.7.5."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))
