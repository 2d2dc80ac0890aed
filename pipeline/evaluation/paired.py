"""Scores of each image against its truth: mean squared error, PSNR and SSIM, in the judged region and over the image.

Shapes: B images, C channels, H x W pixels, values in [0, 1]. Nothing is averaged over images here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.base import Floats

__all__ = ["METRICS", "score"]

METRICS = ("error_region", "error_image", "psnr_region", "psnr_image", "ssim_region", "ssim_image")

# An exact answer has infinite PSNR, which no mean survives; 100 dB is an error of 1e-5 grey levels out of 1.
MAX_PSNR = 100.0

# Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004: a Gaussian window of
# 11 x 11 pixels (radius 5) with sigma 1.5.
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5


def score(answer_BCHW: Tensor, truth_BCHW: Tensor, region_B1HW: Tensor) -> dict[str, Floats]:
    """All scores of a batch.

    Args:
        answer_BCHW: completed images, fp32 in [0, 1].
        truth_BCHW: true images, fp32 in [0, 1].
        region_B1HW: bool, True where the answer is judged; at least one pixel an image, of any shape.

    Returns:
        For each name in METRICS, float64 [B]: errors in squared grey levels, PSNR in dB (at most 100), SSIM in [-1, 1].

    Raises:
        ConfigError: images of one pixel's height or width, on which SSIM has no meaning.
    """
    # Imported here because torchmetrics takes seconds to load.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    weight = region_B1HW.to(truth_BCHW.dtype).expand_as(truth_BCHW)
    share = weight.mean(dim=(1, 2, 3))
    squared = (answer_BCHW - truth_BCHW).square()
    # Outside the region the truth itself is put in, so the image's PSNR counts the region's errors only, thinned
    # by the region's share of the pixels: 10 log10(share) puts that back, exactly and for any shape.
    inside = torch.where(region_B1HW, answer_BCHW, truth_BCHW)
    psnr = [
        peak_signal_noise_ratio(answer, truth_BCHW, data_range=1.0, reduction="none", dim=(1, 2, 3)) + shift
        for answer, shift in ((inside, 10 * torch.log10(share)), (answer_BCHW, 0.0))
    ]
    ssim_image, ssim_map = _ssim(answer_BCHW, truth_BCHW)
    scores = (
        (squared * weight).mean(dim=(1, 2, 3)) / share,
        squared.mean(dim=(1, 2, 3)),
        psnr[0].clamp(max=MAX_PSNR),
        psnr[1].clamp(max=MAX_PSNR),
        (ssim_map * weight).mean(dim=(1, 2, 3)) / share,
        ssim_image,
    )
    return {name: np.asarray(values.double().cpu().numpy()).reshape(-1) for name, values in zip(METRICS, scores, strict=True)}


def _ssim(answer_BCHW: Tensor, truth_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM of each image [B] and its map [B, C, H, W].

    The window shrinks with the image where its radius would not fit (sides below 6 pixels), because reflection
    padding needs one pixel more than the radius; its sigma shrinks in proportion.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(truth_BCHW.shape[-2:])
    if side < 2:
        raise ConfigError(
            f"evaluation: images of {side} pixel have no structure to compare", "use images of at least 2 x 2 pixels"
        )
    # torchmetrics takes the radius from sigma: int(3.5 * sigma + 0.5).
    sigma = SSIM_SIGMA if side > SSIM_RADIUS else (side - 1) / 3.5
    similarity, full = structural_similarity_index_measure(
        answer_BCHW, truth_BCHW, sigma=sigma, reduction="none", data_range=1.0, return_full_image=True
    )
    return similarity, full
