"""Membership by likelihood ratio, with a few shadow models, and the curve of an attack by threshold.

`inside` are models that were trained on an image and then forgot it, `outside` are models that never saw it, by the same
procedure as the target. For each image the target's error is held against both kinds (LiRA: Carlini et al., Membership
Inference Attacks From First Principles, 2022, algorithm 1; for unlearning: Hayes et al., arXiv 2403.01218). Nothing is assumed
about which kind has the lower errors, so a model that forgot too much gives itself away like one that forgot too little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.evaluation.base import Floats

__all__ = ["likelihood_ratios", "roc"]

Bools = NDArray[np.bool_]

# Carlini et al. share one variance among all images below 64 models, of which half are inside.
FEW = 32

# A mean squared error of 1e-10 is a PSNR of 100 dB, where `paired` ends too; the log of an exact answer would not be finite.
LEAST_ERROR = 1e-10
# Of log errors: shadow models that agree to six digits are not told apart further.
LEAST_VARIANCE = 1e-12


def likelihood_ratios(inside: Floats, outside: Floats, target: Floats, *, few: int = FEW) -> Floats:
    """log N(x; inside) - log N(x; outside) for the log error x of each image: high for images that look trained on and forgotten.

    Mean and variance are those of the shadow models' log errors, image by image. A side on which any image has less than `few`
    models uses one variance for all images, pooled within images; the same for all, so that scores can be compared.

    Args:
        inside: errors of shadow models that had image j, float [N_in, n], at least 0; NaN where model i did not have it.
        outside: errors of shadow models that did not have image j, float [N_out, n], at least 0; NaN where model i had it.
        target: errors of the model under attack, which is none of the shadow models; float [n], at least 0.
        few: models an image from which on it has a variance of its own; at least 2.

    Returns:
        Scores, float64 [n], finite, for `threshold_attack` and `roc`.

    Raises:
        ConfigError: an image without any shadow model on a side, or a side on which no image has two.
        ValueError: shapes that do not fit, errors that are negative or infinite, a NaN in `target`, `few` below 2.
    """
    if inside.ndim != 2 or outside.ndim != 2 or not inside.shape[1:] == outside.shape[1:] == target.shape:
        raise ValueError(f"inside {inside.shape}, outside {outside.shape}, target {target.shape}: not [N_in, n], [N_out, n], [n]")
    if few < 2:
        raise ValueError(f"few is {few}; one model has no variance")
    seen = _log(target, missing=False)
    one, other = (
        _log_density(seen, _log(errors, missing=True), few, name) for errors, name in ((inside, "inside"), (outside, "outside"))
    )
    return one - other


def roc(scores: Floats, members: Bools) -> tuple[Floats, Floats]:
    """Rates of false and of true positives at all thresholds, for axes that are both logarithmic; high scores mean members.

    Points with a rate of 0 can't be drawn on such axes and are left out, so the curve begins at 1 / number of others, the lowest
    rate of false positives that can be told from 0. Of points with the same one, that with the most true positives stands.

    Args:
        scores: float [n], finite; negate them for an attack that takes low scores for members.
        members: bool [n].

    Returns:
        Two arrays, float64 [P], P at least 1: the first rises, the second does not fall, both are above 0 and end at 1.

    Raises:
        ConfigError: no members or no others.
        ValueError: shapes that differ, or scores that are not finite.
    """
    _check(scores, members)
    _, found, wrong = _counts(scores, members)
    last = np.append(np.diff(wrong) > 0, True) & (found > 0) & (wrong > 0)
    return wrong[last] / int((~members).sum()), found[last] / int(members.sum())


def _counts(scores: Floats, members: Bools) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores from the highest down, and how many members and others have at least each of them; three arrays [P]."""
    values, places = np.unique(-scores, return_inverse=True)
    found, wrong = (np.cumsum(np.bincount(places[kind], minlength=len(values))) for kind in (members, ~members))
    return -values, found, wrong


def _check(scores: Floats, members: Bools) -> None:
    if scores.ndim != 1 or scores.shape != members.shape or members.dtype != np.bool_ or not np.isfinite(scores).all():
        raise ValueError(f"scores {scores.shape} and members {members.shape} are not finite floats and bools, both [n]")
    num = int(members.sum())
    if num in (0, len(members)):
        raise ConfigError(
            f"membership attack: {num} of {len(members)} images are members, so there is no other kind",
            "attack more images, of which about half were trained on and forgotten",
        )


def _log(errors: Floats, *, missing: bool) -> Floats:
    if (errors < 0).any() or np.isinf(errors).any() or (np.isnan(errors).any() and not missing):
        raise ValueError("errors are negative or not finite")
    return np.log(np.maximum(errors, LEAST_ERROR))


def _log_density(seen: Floats, shadows: Floats, few: int, name: str) -> Floats:
    """log of the normal density at `seen` [n], less log(sqrt(2 pi)), with mean and variance of the `shadows` [N, n]."""
    have = ~np.isnan(shadows)
    num = have.sum(axis=0)
    if (num == 0).any():
        places = np.flatnonzero(num == 0)
        raise ConfigError(
            f"membership attack: {len(places)} images have no shadow model {name} (first: {places[:5].tolist()})",
            "train more shadow models, or attack only images that some had and some did not",
        )
    if num.max() < 2:
        raise ConfigError(
            f"membership attack: no image has two shadow models {name}", "train more shadow models: one shows no spread"
        )
    mean = np.where(have, shadows, 0).sum(axis=0) / num
    squares = (np.where(have, shadows - mean, 0) ** 2).sum(axis=0)
    # Pooled within images: the means of different images lie far apart, which says nothing about the spread of models.
    variance = squares.sum() / (num - 1).sum() if num.min() < few else squares / (num - 1)
    variance = np.maximum(variance, LEAST_VARIANCE)
    density: Floats = -((seen - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    return density
