"""The metrics measure inputs whose answers are known, before they measure a model.

A library of another version that counts, scales or resizes otherwise is found here, and not in a report. Without an
extractor this takes well under a second once torchmetrics is loaded; with one, a pass over a single image more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import IntegrityError
from pipeline.evaluation.base import Resampling, auc_of_counts
from pipeline.evaluation.distance import ks_interval
from pipeline.evaluation.extractors import Extractor
from pipeline.evaluation.frechet import Moments, frechet_distance
from pipeline.evaluation.inception_score import scores_of_splits
from pipeline.evaluation.kid import kid_interval
from pipeline.evaluation.paired import score
from pipeline.evaluation.perceptual import cosine_distance, map_distance

__all__ = ["FINGERPRINTS", "pattern", "selftest"]

# Digest of the weights -> the first features of `pattern()`, on a CPU in fp32. Other processors differ in the fourth digit.
FINGERPRINTS: dict[str, tuple[float, ...]] = {
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": (
        *(0.0, 0.0, 0.0, 0.0, 0.0419, 0.0, 0.0, 1.6027, 0.0, 0.0, 0.0708, 0.0),
        *(0.0124, 0.2341, 0.1218, 0.0, 1.3205, 0.3125, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0079),
    ),
}
TOLERANCE = 5e-3

Check = tuple[str, float, float]
"""What is measured, what came out, what must come out."""


def selftest(extractors: Iterable[Extractor] = ()) -> None:
    """Measure what is known.

    Args:
        extractors: networks that will be used; one whose weights have a known fingerprint must reproduce it, any other
            must give finite features of its stated width, the same twice.

    Raises:
        IntegrityError: a figure comes out otherwise, with the figure and both values.
    """
    for name, found, wanted in _arithmetic():
        if not math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-6):
            raise IntegrityError(f"evaluation self-test: {name} is {found:.6g} and must be {wanted:.6g}", _cure())
    for extractor in extractors:
        _check_features(extractor)


def pattern() -> Tensor:
    """One fixed image fp32 [1, 3, 96, 96] in [0, 1]: waves of another direction in each channel."""
    steps = torch.arange(96, dtype=torch.float32) / 96
    rows, columns = steps[:, None], steps[None, :]
    waves = [rows * 3 + columns, rows - columns * 5, rows * columns * 9]
    return torch.stack([0.5 + 0.5 * torch.sin(2 * math.pi * wave) for wave in waves])[None]


def _arithmetic() -> Iterator[Check]:
    yield from _paired()
    how = Resampling(seed=0, resamples=2, confidence=0.95)
    low, high = np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0, 5.0])
    yield "Kolmogorov-Smirnov distance", ks_interval(low, high, how, "x").value, 0.5
    # Of 16 pairs 13 are in order and 2 are equal.
    yield "AUC", how.unpaired(low, high, auc_of_counts, "x").value, 14 / 16
    # Corners of a box: mean 0, covariance a^2 4/3 in each of two directions.
    box = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    one, two = Moments.of(box), Moments.of(3 * box + np.array([1.0, 2.0]))
    yield "Frechet distance", frechet_distance(one, two), 5 + 2 * (4 / 3) * (3 - 1) ** 2
    # Kernels of 1-dimensional 0 and 1: k(0, y) = 1, k(1, 1) = 8.
    zeros, ones = np.zeros((3, 1)), np.ones((3, 1))
    yield "KID", kid_interval(zeros, ones, how, "x", paired=False).value, 1 + 8 - 2
    yield "KID of the same images", kid_interval(box, box, how, "x", paired=True).value, 0
    yield "score of unsure classes", scores_of_splits(np.zeros((8, 4)), 2)[1], 1
    yield "score of sure classes", scores_of_splits(np.tile(1e3 * np.eye(4), (2, 1)), 2)[0], 4
    angle = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, math.sqrt(3)]])
    yield "cosine distance", float(cosine_distance(*angle)), 0.5
    maps = [torch.ones(1, 2, 3, 3) * torch.tensor(v).view(1, 2, 1, 1) for v in ([2.0, 0.0], [0.0, 5.0])]
    yield "map distance", float(map_distance(maps[:1], maps[1:])), 2


def _paired() -> Iterator[Check]:
    """Even images of 0.5 and 0.6: error 0.01, 20 dB, and SSIM's first factor, since neither has structure."""
    truth, answer = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.6)
    region = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    region[..., :4] = True
    found = score(torch.where(region, answer, truth), truth, region)
    yield "error in the region", found["error_region"][0], 0.01
    yield "error over the image", found["error_image"][0], 0.0025
    yield "PSNR in the region", found["psnr_region"][0], 20
    yield "PSNR over the image", found["psnr_image"][0], 20 + 10 * math.log10(4)
    even = score(answer, truth, region)["ssim_image"][0]
    yield "SSIM", even, (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)


def _check_features(extractor: Extractor) -> None:
    about, features = extractor.description, extractor.features(pattern())
    name = f"evaluation self-test: {about.name}"
    if features.shape != (1, about.width) or not bool(torch.isfinite(features).all()):
        raise IntegrityError(f"{name} gives features of shape {tuple(features.shape)}, or not finite", _cure())
    found, known = features[0].double().cpu(), FINGERPRINTS.get(about.weights_sha256)
    wanted = extractor.features(pattern())[0].double().cpu() if known is None else torch.tensor(known, dtype=torch.float64)
    gap = float((found[: len(wanted)] - wanted).abs().max())
    if gap > TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise IntegrityError(f"{name} gives features that differ by {gap:.3g} from those stored for its weights", _cure())


def _cure() -> str:
    return f"install the versions in .ci/constraints.txt (here: torch {torch.__version__}, numpy {np.__version__})"
