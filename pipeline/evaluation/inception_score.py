"""Inception Score: how sure a classifier is of each image, and how varied the images are.

exp(mean KL(p(class | image) || p(class))): Salimans et al., Improved Techniques for Training GANs, 2016. From 1 (all images
alike, or no class sure) to the number of classes; over so few images as a split has, never above their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.base import Floats, Interval, Resampling

__all__ = ["SPLITS", "inception_score_interval", "scores_of_splits"]

SPLITS = 10
"""As peers do; at least so many images are needed."""

Logits = NDArray[np.floating[Any]]


def inception_score_interval(logits_NK: Logits, resampling: Resampling, label: str) -> Interval:
    """Mean score of ten splits, and its interval by a bootstrap over the ten.

    Images are put in an order drawn from the run's seed, so that neither their kinds nor the number of ranks matter.

    Args:
        logits_NK: float [N, K], N at least SPLITS.
        resampling: how intervals are made; its seed draws the order.
        label: the figure's own name within the run.
    """
    order = np.random.default_rng(resampling.seed).permutation(len(logits_NK))
    return resampling.mean(scores_of_splits(logits_NK[order], SPLITS), label)


def scores_of_splits(logits_NK: Logits, splits: int) -> Floats:
    """Scores [splits] of consecutive parts of logits [N, K], whose sizes differ by at most one."""
    return np.array([_score(part) for part in np.array_split(np.asarray(logits_NK, dtype=np.float64), splits)])


def _score(logits: Floats) -> float:
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    shares = np.exp(logs)
    # A class that no image has in double precision adds 0 to the divergence, not 0 times an infinity.
    mean = np.log(np.maximum(shares.mean(axis=0), np.finfo(np.float64).tiny))
    return float(np.exp((shares * (logs - mean)).sum(axis=1).mean()))
