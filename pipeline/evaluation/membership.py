"""Two-sided membership score: can errors tell forget images from images of the same kind that were never seen?

The score is the AUC of the attack "lower error means trained on". Near 1 the model still knows the images; near 0 it
treats them as more alien than images it never saw, which gives them away just as well. Only 0.5 is unremarkable.
"""

from __future__ import annotations

from pipeline.evaluation.base import Floats, Interval, Resampling, auc_of_counts

__all__ = ["distance_from_chance", "membership_auc", "verdict"]

CHANCE = 0.5


def membership_auc(forget: Floats, unseen: Floats, resampling: Resampling, label: str) -> Interval:
    """Probability that a forget image has a lower error than an unseen one, ties counted half; in [0, 1].

    Args:
        forget: errors of the forget images, [N].
        unseen: errors of images of the same kind that no model was trained on, [M].
    """
    return resampling.unpaired(forget, unseen, auc_of_counts, label)


def distance_from_chance(auc: Interval) -> Interval:
    """|AUC - 0.5| in [0, 0.5]; its interval reaches down to 0 where the AUC's interval holds 0.5."""
    ends = [abs(auc.low - CHANCE), abs(auc.high - CHANCE)]
    low = 0.0 if auc.low <= CHANCE <= auc.high else min(ends)
    return Interval(value=abs(auc.value - CHANCE), low=low, high=max(ends))


def verdict(auc: Interval, forget: int, unseen: int) -> str:
    """The AUC's interval in words; `forget` and `unseen` are numbers of images."""
    if auc.low > CHANCE:
        return "looks trained on"
    if auc.high < CHANCE:
        return "more alien than unseen"
    return f"indistinguishable at n={min(forget, unseen)}"
