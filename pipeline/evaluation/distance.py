"""How far a model's per-image errors lie from those of the retrained model on the same images.

The measure is the two-sample Kolmogorov-Smirnov distance: 0 for equal distributions, 1 for distributions that do not
overlap. It sees a model that is too good on forgotten images and one that is too bad, alike.
"""

from __future__ import annotations

import math

from pipeline.evaluation.base import Floats, Interval, Resampling, ks_of_counts

__all__ = ["detectable", "ks_interval"]


def ks_interval(errors: Floats, reference: Floats, resampling: Resampling, label: str) -> Interval:
    """KS distance of [N] errors to the reference's [N] errors on the same images, with its interval.

    The images are resampled and carry both their errors along, since both models saw the same ones.
    """
    return resampling.paired(errors, reference, ks_of_counts, label)


def detectable(num: int, alpha: float = 0.05) -> float:
    """The smallest KS distance that `num` images a side can tell from chance at level `alpha`, two-sided.

    c(alpha) * sqrt(2 / num) with c(alpha) = sqrt(-ln(alpha / 2) / 2), 1.358 at 5 % (Smirnov 1948). It holds for independent
    samples; errors of two models on the same images go together, so chance moves them apart less than this.
    """
    return min(1.0, math.sqrt(-math.log(alpha / 2) / 2) * math.sqrt(2 / num))
