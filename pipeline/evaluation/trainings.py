"""What lies between trainings: is a model one more of those that were trained without the images?

An interval over images says nothing of how far two trainings differ by their seeds alone, and they differ more on a kind that
none of them saw than on the kinds that they were trained on. Several retrained models show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from pipeline.evaluation.base import Interval

__all__ = ["LEAST", "beside_trainings"]

LEAST = 3
"""Retrained models: with two of them the interval is 18 of their differences wide."""


def beside_trainings(value: float, trainings: Sequence[float], confidence: float) -> Interval:
    """How far a model's figure lies from the mean of retrained models', and the interval that holds 0 where it is one of them.

    The prediction interval of one further normal observation: mean +- t * s * sqrt(1 + 1/R) with s of R - 1 degrees of freedom
    (Hahn & Meeker, Statistical Intervals, 1991, section 4.2).

    Args:
        value: the model's figure.
        trainings: the same of R retrained models, R at least 2.
        confidence: in (0, 1).
    """
    others = np.asarray(trainings, dtype=np.float64)
    if len(others) < 2:
        raise ValueError(f"a spread of {len(others)} trainings")
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(others) - 1))
    half = quantile * float(others.std(ddof=1)) * float(np.sqrt(1 + 1 / len(others)))
    apart = value - float(others.mean())
    return Interval(value=apart, low=apart - half, high=apart + half)
