"""The difference of two rates on the same images, with an interval that also holds for few of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline.evaluation.base import Interval

__all__ = ["difference_of_rates"]

Bools = NDArray[np.bool_]


def difference_of_rates(first: Bools, second: Bools, confidence: float) -> Interval:
    """mean(first) - mean(second) with Newcombe's interval for paired rates (Improved confidence intervals for the difference
    between binomial proportions based on paired data, 1998, method 10).

    That interval rests on Wilson's for each rate, which are approximate. Where the exact test of the images that differ (McNemar)
    does not reject at 1 - confidence the interval is widened to hold 0: so 0 is left out wrongly at most that often.

    Args:
        first, second: hits on the same images, bool [n], n at least 1.
        confidence: in (0, 1).
    """
    num = len(first)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    both, none = int((first & second).sum()), int((~first & ~second).sum())
    one, other = (_wilson(int(hits.sum()), num, confidence) for hits in (first, second))
    excess = both * none - only_first * only_second
    scale = math.sqrt(float(first.sum()) * float((~first).sum()) * float(second.sum()) * float((~second).sum()))
    phi = (max(excess - num / 2, 0.0) if excess > 0 else float(excess)) / scale if scale else 0.0
    value = one.value - other.value
    down = _reach(one.value - one.low, other.high - other.value, phi)
    up = _reach(one.high - one.value, other.value - other.low, phi)
    # Where no image is a hit of one and all are of the other, rounding alone would lead beyond what a difference can be.
    low, high = max(-1.0, value - down), min(1.0, value + up)
    differing = only_first + only_second
    # At least as many of those that differ on one side, under fair coins; doubled for both sides.
    tail = float(special.bdtr(min(only_first, only_second), differing, 0.5)) if differing else 1.0
    if 2 * tail > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(value=value, low=low, high=high)


def _reach(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def _wilson(hits: int, num: int, confidence: float) -> Interval:
    """Wilson's interval of hits / num (1927)."""
    z, rate = -float(special.ndtri((1 - confidence) / 2)), hits / num
    middle, scale = rate + z**2 / (2 * num), 1 + z**2 / num
    reach = z * math.sqrt(rate * (1 - rate) / num + z**2 / (4 * num**2))
    return Interval(value=rate, low=max(0.0, (middle - reach) / scale), high=min(1.0, (middle + reach) / scale))
