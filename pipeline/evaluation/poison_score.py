"""Gaussian poisoning score: does noise that was added to forget images before training still show in the model's gradients?

Secret noise xi_i ~ N(0, tau^2 I) is added to k forget images before the model is trained on them. After unlearning, g_i is the
gradient of the loss at the clean image, with respect to its pixels. If no trace of xi is left,
I_i = <xi_i, g_i> / (tau ||g_i||) is standard normal, whatever the model is (Pawelczyk et al., Machine Unlearning Fails to Remove
Data Poisoning Attacks, ICLR 2025, arXiv 2406.17216). A trace refutes forgetting; no trace proves nothing beyond the mean that
could have been seen.

Both nulls need xi as it was drawn, independent of the image. Clipping it to [0, 1] on its way into the image and rounding to 8
bits only weaken the trace. The difference of the stored images is another matter: where a pixel is white it can only be
negative, and the gradient there depends on the white as well, so they go together without any trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipeline.errors import ConfigError
from pipeline.evaluation.base import Floats
from pipeline.records import record

__all__ = ["PoisonScore", "poison_score"]

# Elements of one block of permutations: 32 MiB of places.
BLOCK = 4_000_000


@record
class PoisonScore:
    """How far the mean of I_i lies from 0. Where it is positive the loss rises along the noise, where negative it falls; training
    on noisy images and ascending on them leave opposite signs, and either is a trace."""

    mean: float
    z: float
    """sqrt(k) * mean; standard normal if nothing is left of the noise."""
    p_exact: float
    """Two-sided, of z against the standard normal; in [0, 1]."""
    p_permuted: float
    """Two-sided, against the same images with their noises exchanged; in [1 / (permutations + 1), 1]."""
    pairs: int
    """k, images that were judged."""
    left_out: tuple[int, ...]
    """Places of the images without a gradient, in the order given."""
    permutations: int
    detectable: float
    """The smallest mean, of either sign, that k pairs tell from chance at the confidence asked for. A true mean of this
    size is found in half of all audits."""
    confidence: float
    scores: tuple[float, ...]
    """I_i of each pair, in the order given; their mean is `mean`."""
    exchanged: tuple[float, ...]
    """The same with the gradient of the next image, the last with that of the first: what `scores` are like without a trace."""


def poison_score(
    noise: NDArray[np.floating],
    gradients: NDArray[np.floating],
    *,
    tau: float,
    seed: int,
    permutations: int = 9999,
    confidence: float = 0.95,
    zeros: Literal["refuse", "leave out"] = "refuse",
) -> PoisonScore:
    """Judge k pairs of noise and gradient.

    The normal null needs the noise to be normal with the given tau; the permutation null only that it was drawn alike for all
    images, so it also holds for noise that was rounded or cut before it was added, or whose tau isn't known well. The
    permutation null gives each noise the gradient of another image, by permutations drawn evenly from all k! of them. The
    few that leave an image its own noise belong to it: permutations without any fixed place are no group, and p-values from
    them alone come out too small, as if z were k / (k - 1) times as large. It needs gradients that differ: where all point
    the same way, exchanging them changes nothing and `p_permuted` is 1 whatever was left.

    Args:
        noise: as it was drawn, not as what is left of it in the stored images; float [k, D], finite.
        gradients: of the loss at the clean images, one row an image in the same order; float [k, D]. Only their directions
            count.
        tau: standard deviation that the noise was drawn with, in the units of `noise`; above 0.
        seed: of the permutations; they come from a counter-based generator and are the same on every machine.
        permutations: at least 1.
        confidence: in (0, 1); only `detectable` depends on it.
        zeros: what to do with images whose gradient is 0 and so has no direction. Leaving them out keeps both nulls, since
            without a trace the gradient does not depend on the noise.

    Returns:
        The score. Memory: k x k float64 beside float64 copies of the arguments.

    Raises:
        ConfigError: a gradient of 0 that was not to be left out, one that is not finite, fewer than two images to judge, or
            a confidence outside (0, 1).
        ValueError: shapes that differ or are not [k, D], noise that is not finite, tau or permutations out of range.
    """
    if noise.ndim != 2 or noise.shape != gradients.shape:
        raise ValueError(f"noise {noise.shape} and gradients {gradients.shape} are not both [k, D]")
    if not (tau > 0 and math.isfinite(tau) and permutations >= 1 and np.isfinite(noise).all()):
        raise ValueError(f"tau {tau}, {permutations} permutations, or noise that is not finite")
    if not 0 < confidence < 1:
        raise ConfigError(f"poisoning score: confidence {confidence} is not in (0, 1)", "give a confidence such as 0.95")
    kept, directions = _directions(gradients, zeros)
    num = len(kept)
    scores = (noise[kept].astype(np.float64) / tau) @ directions.T
    mean = float(np.trace(scores) / num)
    z = math.sqrt(num) * mean
    return PoisonScore(
        mean=mean,
        z=z,
        p_exact=float(2 * special.ndtr(-abs(z))),
        p_permuted=_permuted(scores, permutations, seed),
        pairs=num,
        left_out=tuple(int(place) for place in np.setdiff1d(np.arange(len(noise)), kept)),
        permutations=permutations,
        detectable=float(-special.ndtri((1 - confidence) / 2)) / math.sqrt(num),
        confidence=confidence,
        scores=tuple(float(score) for score in np.diagonal(scores)),
        exchanged=tuple(float(score) for score in scores[np.arange(num), np.arange(1, num + 1) % num]),
    )


def _directions(gradients: NDArray[np.floating], zeros: Literal["refuse", "leave out"]) -> tuple[NDArray[np.int64], Floats]:
    """Places [n] of the gradients that have a direction, and the directions, float64 [n, D] of length 1."""
    if not np.isfinite(gradients).all():
        places = np.flatnonzero(~np.isfinite(gradients).all(axis=1))
        raise ConfigError(
            f"poisoning score: the gradients of {len(places)} images are not finite (first: {places[:5].tolist()})",
            "check the loss of these images; a model that gives no finite loss can't be audited by gradients",
        )
    # The largest element first: squares of small fp32 gradients would vanish, and those of large ones overflow.
    largest = np.abs(gradients.astype(np.float64)).max(axis=1, initial=0)
    kept, dropped = np.flatnonzero(largest > 0), np.flatnonzero(largest == 0)
    if len(dropped) and zeros == "refuse":
        raise ConfigError(
            f"poisoning score: the gradients of {len(dropped)} images are 0 (first: {dropped[:5].tolist()})",
            'audit with a loss that depends on these pixels, or have such images left out with zeros="leave out"',
        )
    if len(kept) < 2:
        raise ConfigError(f"poisoning score: {len(kept)} images have a gradient, 2 are needed", "poison more images")
    scaled = gradients[kept].astype(np.float64) / largest[kept, None]
    return kept, scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def _permuted(scores: Floats, permutations: int, seed: int) -> float:
    """Share of permutations whose total lies at least as far from the mean over all permutations as the total of the true
    pairs, which count as one of them: so the p-value is valid for any number (Phipson & Smyth 2010).

    Args:
        scores: of noise i with gradient j, float64 [k, k].
    """
    centre = scores.sum() / len(scores)
    # A permutation that happens to be the identity sums the same numbers in another order: it must not count as less far.
    true = abs(np.trace(scores) - centre) - 1e-12 * np.abs(scores).sum() / len(scores)
    places = np.arange(len(scores))
    further = sum(
        int((abs(scores[places, block].sum(axis=1) - centre) >= true).sum()) for block in _blocks(len(places), permutations, seed)
    )
    return (1 + further) / (1 + permutations)


def _blocks(num: int, permutations: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of permutations of `num` places, int64 [block, num]."""
    generator, done = np.random.Generator(np.random.Philox(seed)), 0
    while done < permutations:
        block = min(permutations - done, max(1, BLOCK // num))
        yield generator.permuted(np.tile(np.arange(num), (block, 1)), axis=1)
        done += block
