"""Lambda without the retrained model: the error that images would have if the model had never seen them.

Single images: the original's loss on held-out images of the same labels, in the same proportions.

A whole class: nobody can hold out a class that the original saw, so a *shadow* stands in: the original with its
bottleneck reset, trained on retained images for a fraction of the budget. Let f and r be its losses on forget and on
unseen retained images, r0 the original's on the latter. The shadow has not finished learning, so f is too high; f * r0/r
assumes that the forgotten class would gain as much from the rest of training as retained images do, which is too low.
The level is the geometric middle of that bracket, f * sqrt(r0 / r).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["held_out_weights", "shadow_bracket"]


def shadow_bracket(forget_loss: float, retain_loss: float, original_retain_loss: float) -> tuple[float, float, float]:
    """Low end, level and high end of lambda for a class.

    Args:
        forget_loss: f, the shadow's mean loss on forget images; above 0.
        retain_loss: r, the shadow's mean loss on unseen retained images; above 0.
        original_retain_loss: r0, the original's mean loss on the same images; above 0.

    Returns:
        (f * r0/r, f * sqrt(r0/r), f), in ascending order. A shadow that is already better than the original on retained
        images (r < r0) turns the bracket round.
    """
    ratio = original_retain_loss / retain_loss
    ends = sorted((forget_loss * ratio, forget_loss))
    return ends[0], forget_loss * math.sqrt(ratio), ends[1]


def held_out_weights(held_out: NDArray[np.int64], forget: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [N] that give held-out images the label proportions of the forget images; they sum to 1.

    Args:
        held_out: labels of the held-out images, [N].
        forget: labels of the forget images, [M]. Labels that no held-out image has are left out of the proportions.
    """
    weights = np.zeros(len(held_out))
    for label in np.unique(forget):
        same = held_out == label
        if same.any():
            weights[same] = (forget == label).sum() / same.sum()
    return weights / weights.sum() if weights.sum() else weights
