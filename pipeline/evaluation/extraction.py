"""Extraction under a fixed mask: is a completion nearer to the image's own truth than to that of any other of its kind?

Each forget image is completed under its fixed mask, and its truth is searched for among M other images (the gallery) by the
error of the hidden pixels. A completion whose own truth comes first was guessed better than chance, by what was learned of the
image or of its kind; unseen images tell how much of that any image of the kind gets, a retrained model how much is left. After
the inpainting attack of Carlini et al., Extracting Training Data from Diffusion Models, arXiv 2301.13188, 2023.

Images are compared as the 8-bit images that are looked at. Their distances are then whole numbers, which float64 adds without
rounding in any order: ranks depend on no block size and no machine, and ties are ties.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.evaluation.base import Floats, Interval, Resampling, exact_rate
from pipeline.evaluation.relearn import Views
from pipeline.evaluation.summary import REFERENCE
from pipeline.models.base import ImageModel
from pipeline.records import record

__all__ = ["Extraction", "completions", "extraction", "first_rate", "ranks"]

Ranks = NDArray[np.int64]


@record
class Extraction:
    """How often one subject's completions find their own truth first."""

    rate: Interval
    """Share of forget images whose own truth is strictly the nearest of M + 1, with its Clopper-Pearson interval."""
    reciprocal_rank: Interval
    """Mean of 1 / rank over forget images, in (0, 1]; 1 where every truth is first."""
    control_rate: Interval
    """`rate` of unseen images, in the same gallery."""
    control_reciprocal_rank: Interval
    difference: Interval | None
    """Rate less the retrained model's, paired by image. Above 0: the images can still be told from their like. Below 0: the
    answers avoid them. None without a retrained model."""
    discordant: int | None
    """Forget images that exactly one of both models finds. Where it is 0 the difference is 0 in every resample, and only the
    rates' own intervals say what n images can show."""
    samples: int
    """n, forget images."""
    unseen_samples: int
    gallery: int
    """M, other images; a guess at random is first with the chance 1 / (M + 1)."""
    confidence: float
    ranks: tuple[int, ...]
    """Of each forget image, in the order that they were given."""
    null: tuple[float, ...]
    """Draws of `difference` with the subject and the retrained model swapped in a random half of the images; empty without it."""


def extraction(
    models: Mapping[str, ImageModel],
    *,
    forget: Views,
    unseen: Views,
    gallery_MCHW: Tensor,
    resampling: Resampling,
    label: str,
    reference: str = REFERENCE,
    batch_size: int = 64,
    block: int = 64,
) -> dict[str, Extraction]:
    """Search for the truths of all subjects' completions.

    Args:
        models: by subject, in eval mode; `reference` names the retrained one, which may be absent.
        forget: n forget images under their fixed masks.
        unseen: images of the same kind that no model was trained on; the control.
        gallery_MCHW: truths of M other images of the same kind, fp32 [M, C, H, W] in [0, 1], at least 1. Neither an image of
            `forget` or `unseen` nor a copy of one: an image with a copy in the gallery can never be first.
        resampling: how intervals are made.
        label: the figure's own name within the run.
        batch_size: images completed at once.
        block: images and gallery images compared at once; bounds memory at about 8 x `block` images in float64.

    Raises:
        CheckpointError: a completion that is not finite.
        ValueError: an empty gallery, or images of other shapes in it.
    """
    found: dict[str, list[Ranks]] = {
        name: [ranks(completions(model, views, batch_size), views, gallery_MCHW, block=block) for views in (forget, unseen)]
        for name, model in models.items()
    }

    def of_subject(name: str) -> Extraction:
        own, control = found[name]
        difference, discordant, null = None, None, ()
        if reference in found and name != reference:
            first, theirs = ((places == 1).astype(np.float64) for places in (own, found[reference][0]))
            gaps: Floats = first - theirs
            mine, other = resampling.swapped(first, theirs, f"{label}/swapped")
            null = tuple((mine - other).tolist())
            difference, discordant = resampling.mean(gaps, f"{label}/difference"), int(np.count_nonzero(gaps))
        return Extraction(
            rate=first_rate(own, resampling.confidence),
            reciprocal_rank=resampling.mean(1 / own, f"{label}/reciprocal"),
            control_rate=first_rate(control, resampling.confidence),
            control_reciprocal_rank=resampling.mean(1 / control, f"{label}/control"),
            difference=difference,
            discordant=discordant,
            samples=len(own),
            unseen_samples=len(control),
            gallery=len(gallery_MCHW),
            confidence=resampling.confidence,
            ranks=tuple(own.tolist()),
            null=null,
        )

    return {name: of_subject(name) for name in models}


@torch.no_grad()
def completions(model: ImageModel, views: Views, batch_size: int = 64) -> Tensor:
    """The model's answers, fp32 [N, C, H, W] in [0, 1]. Raises CheckpointError for one that is not finite."""
    parts = [model.complete(part.visible_BCHW, part.region_B1HW, part.draws_B).float() for part in views.batches(batch_size)]
    answers = torch.cat(parts)
    if not bool(torch.isfinite(answers).all()):
        raise CheckpointError("extraction: an answer with values that are not finite", "train the model again, in fp32")
    return answers


@torch.no_grad()
def ranks(answers_NCHW: Tensor, views: Views, gallery_MCHW: Tensor, *, block: int = 64) -> Ranks:
    """The place of each image's own truth among the gallery, by the squared error to the answer in the image's region.

    1 + the number of gallery images that are at least as near: a tie counts against the truth, since what fits another image
    as well does not single this one out.

    Args:
        answers_NCHW: fp32 in [0, 1]; only the region counts.
        views: the images' truths and regions.
        gallery_MCHW, block: see `extraction`.

    Returns:
        int64 [N], from 1 to M + 1; the same for every block size.
    """
    if not len(gallery_MCHW) or gallery_MCHW.shape[1:] != views.target_BCHW.shape[1:]:
        raise ValueError(f"a gallery {tuple(gallery_MCHW.shape)} for images {tuple(views.target_BCHW.shape)}")
    found = []
    for start in range(0, len(views), block):
        part = views.part(slice(start, start + block))
        mask = part.region_B1HW.expand_as(part.target_BCHW).flatten(1).double()
        answer, truth = _levels(answers_NCHW[start : start + block]) * mask, _levels(part.target_BCHW)
        own = ((answer - truth) * mask).square().sum(1, keepdim=True)
        energy = answer.square().sum(1, keepdim=True)
        nearer = torch.zeros(len(part), dtype=torch.int64, device=mask.device)
        for other in gallery_MCHW.split(block):
            levels = _levels(other.to(mask.device))
            # |m (a - g)|^2, multiplied out: whole numbers below 2^53 up to 10^10 pixels, so nothing is rounded.
            gaps = energy - 2 * (answer @ levels.T) + mask @ levels.square().T
            nearer += (gaps <= own).sum(1)
        found.append((nearer + 1).cpu().numpy())
    return np.concatenate(found)


def first_rate(places: Ranks, confidence: float) -> Interval:
    """Share of ranks [N] that are 1, with the exact interval of a binomial rate (Clopper & Pearson 1934).

    Args:
        places: from `ranks`, at least one.
        confidence: of the two-sided interval, in (0, 1).
    """
    return exact_rate(int((places == 1).sum()), len(places), confidence)


def _levels(images_BCHW: Tensor) -> Tensor:
    """fp32 [B, C, H, W] in [0, 1] -> whole numbers from 0 to 255, fp64 [B, C * H * W]."""
    return images_BCHW.float().clamp(0, 1).mul(255).round().double().flatten(1)
