"""Can another decoder still see it? Hidden pixels read off the frozen encoder's features by ridge regression.

Unlearning may change the decoder alone and leave in the encoder's features what the images were. For each model a linear decoder
is fitted in closed form on retained images, from features of the degraded image to all pixels of the true one, and judged on
forget and on unseen images in the hidden region. Errors below the retrained model's mean that something is still seen there.

The penalty is that of least generalised cross-validation (Golub, Heath & Wahba, Generalized Cross-Validation as a Method for
Choosing a Good Ridge Parameter, 1979). N retained images, M judged ones, F features, D after projection, P = C x H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.draws import draws_of_rows, uniform
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.base import Floats, Interval, Resampling
from pipeline.evaluation.distance import detectable, ks_interval
from pipeline.evaluation.membership import membership_auc
from pipeline.evaluation.relearn import Views
from pipeline.evaluation.summary import REFERENCE
from pipeline.models.base import ImageModel, paste
from pipeline.records import record

__all__ = [
    "PENALTIES",
    "WIDTH",
    "Decoded",
    "decoder_answers",
    "decoder_errors",
    "features",
    "project",
    "ridge_weights",
    "second_decoder",
]

WIDTH = 1024
"""D, numbers an image at most."""
PENALTIES = tuple(10.0**power for power in range(-6, 4))
"""What is tried, in units of the features' mean variance times N."""

# Elements of one block of pixels: 32 MiB of float64.
BLOCK = 4_000_000


@record
class Decoded:
    """What the second decoder reads off one subject's features. Errors are mean squared errors in the region."""

    error: Interval
    """Mean over forget images."""
    unseen_error: Interval
    membership: Interval
    """AUC of "lower error means still seen", forget against unseen images; see `membership.verdict`. 0.5 is unremarkable."""
    ks: Interval | None
    """KS distance of the forget images' errors to those of the retrained model's second decoder; None without that model."""
    ks_detectable: float
    ratio: Interval | None
    """Mean error on forget images over the retrained model's. Below 1: still seen. Above 1: less than if never trained on."""
    penalty: float
    """The ridge penalty that was chosen, in units of squared features summed over retained images."""
    width: int
    """D."""
    retained: int
    """N."""
    samples: int
    """Forget images."""
    unseen_samples: int
    confidence: float
    errors: tuple[float, ...]
    """Of each forget image, in the order that they were given."""
    null: tuple[float, ...]
    """Draws of `ratio` with the subject and the retrained model swapped in a random half of the images; empty without it."""


def second_decoder(
    models: Mapping[str, ImageModel],
    *,
    retained: Views,
    forget: Views,
    unseen: Views,
    resampling: Resampling,
    label: str,
    reference: str = REFERENCE,
    batch_size: int = 64,
) -> dict[str, Decoded]:
    """Fit and judge a second decoder of each subject.

    Args:
        models: by subject, in eval mode; `reference` names the retrained one, which may be absent.
        retained: at least 2 images to fit on, trained on by all subjects; some thousands where there are as many.
        forget, unseen: images to judge, under their masks; unseen ones of the same kind, which no model was trained on.
        resampling: how intervals are made; its seed makes the projection and the draws too.
        label: the figure's own name within the run.
        batch_size: images encoded at once.

    Raises:
        ConfigError: features whose number changes from image to image.
        CheckpointError: features that are not finite.
    """
    found = {
        name: decoder_errors(model, retained=retained, judged=[forget, unseen], seed=resampling.seed, batch_size=batch_size)
        for name, model in models.items()
    }

    def of_subject(name: str) -> Decoded:
        (own, other), penalty, width = found[name]
        compared = found[reference][0][0] if reference in found and name != reference else None
        return Decoded(
            error=resampling.mean(own, f"{label}/error"),
            unseen_error=resampling.mean(other, f"{label}/unseen"),
            membership=membership_auc(own, other, resampling, f"{label}/membership"),
            ks=None if compared is None else ks_interval(own, compared, resampling, f"{label}/ks"),
            ks_detectable=detectable(len(own)),
            ratio=None if compared is None else resampling.ratio(own, compared, f"{label}/ratio"),
            penalty=penalty,
            width=width,
            retained=len(retained),
            samples=len(own),
            unseen_samples=len(other),
            confidence=resampling.confidence,
            errors=tuple(own.tolist()),
            null=() if compared is None else _null(own, compared, resampling, f"{label}/swapped"),
        )

    return {name: of_subject(name) for name in models}


def _null(own: Floats, compared: Floats, resampling: Resampling, label: str) -> tuple[float, ...]:
    mine, theirs = resampling.swapped(own, compared, label)
    return tuple((mine / theirs).tolist())


@torch.no_grad()
def decoder_errors(
    model: ImageModel, *, retained: Views, judged: Sequence[Views], seed: int, batch_size: int = 64
) -> tuple[list[Floats], float, int]:
    """Errors of the second decoder on each of the judged sets, fp64 [M] each, the penalty chosen, and D.

    Mean squared error in each image's own region, over all channels; pixels in [0, 1], answers not clamped.
    """
    taught_ND, *seen = features(model, [retained, *judged], seed=seed, batch_size=batch_size)
    images_NP = retained.target_BCHW.flatten(1)
    weights_MN, penalty = ridge_weights(taught_ND, torch.cat(seen), images_NP)
    truth_MP = torch.cat([views.target_BCHW.flatten(1) for views in judged])
    mask_MP = torch.cat([views.region_B1HW.expand_as(views.target_BCHW).flatten(1) for views in judged])
    total = torch.zeros(len(truth_MP), dtype=torch.float64, device=truth_MP.device)
    size = max(1, BLOCK // max(len(images_NP), len(truth_MP)))
    for images, truth, mask in zip(*(part.split(size, dim=1) for part in (images_NP, truth_MP, mask_MP)), strict=True):
        total += ((weights_MN @ images.double() - truth.double()).square() * mask).sum(1)
    errors = (total / mask_MP.sum(1)).cpu()
    return [part.numpy() for part in errors.split([len(views) for views in judged])], penalty, taught_ND.shape[1]


@torch.no_grad()
def decoder_answers(model: ImageModel, *, retained: Views, shown: Views, seed: int, batch_size: int = 64) -> Tensor:
    """What the second decoder sees in a few images, to be looked at: fp32 [M, C, H, W] in [0, 1], known pixels put back.

    The decoder that `decoder_errors` judges on the same `retained` images and seed, whatever else it is shown.
    """
    taught_ND, seen_MD = features(model, [retained, shown], seed=seed, batch_size=batch_size)
    weights_MN, _ = ridge_weights(taught_ND, seen_MD, retained.target_BCHW.flatten(1))
    answers = (weights_MN @ retained.target_BCHW.flatten(1).double()).float().clamp(0, 1).view_as(shown.target_BCHW)
    return paste(answers, shown.visible_BCHW, shown.region_B1HW)


@torch.no_grad()
def features(model: ImageModel, sets: Sequence[Views], *, seed: int, batch_size: int = 64) -> list[Tensor]:
    """The encoder's features of each set, fp64 [N, D], projected to at most WIDTH numbers an image.

    The model is shown the degraded image in the place of the true one too: where training feeds an encoder true pixels (noisy,
    or as codes), the features would hold them whatever the weights are. All images get the same draws, `model.probe_draws` of
    them one beside the other, so that noise, timestep and order of patches are the same for all and a feature means the same.
    Masks that differ between images still make a MAE's tokens stand for different places; a fixed region serves it better.
    """
    found, sizes = [], set()
    for views in sets:
        parts = []
        for batch in views.batches(batch_size):
            flat_BF = torch.cat([_encoded(model, batch, seed, number) for number in range(model.probe_draws)], dim=1)
            sizes.add(flat_BF.shape[1])
            parts.append(project(flat_BF, WIDTH, seed))
        if len(sizes) > 1:
            cure = "judge it under a mask that hides as many patches in every image"
            raise ConfigError(f"second decoder: {sorted(sizes)} features an image, not always as many", cure)
        found.append(torch.cat(parts))
    if not all(bool(torch.isfinite(part).all()) for part in found):
        raise CheckpointError("second decoder: features that are not finite", "train the model again, in fp32")
    return found


def _encoded(model: ImageModel, batch: Views, seed: int, number: int) -> Tensor:
    drawn = torch.from_numpy(draws_of_rows(np.zeros(len(batch)), seed, number)).to(batch.draws_B.device)
    return model(batch.visible_BCHW, batch.visible_BCHW, batch.region_B1HW, drawn, want="features").flatten(1)


def project(features_NF: Tensor, width: int, seed: int) -> Tensor:
    """Features fp64 [N, width] by a random projection; as they are, fp64 [N, F], where F is at most `width`.

    A count sketch (Charikar, Chen & Farach-Colton, Finding Frequent Items in Data Streams, 2002) with buckets of equal size:
    features get random signs, are shuffled and dealt into `width` sums. Inner products are kept on average, as by a Gaussian
    matrix, which would need F x width numbers: gigabytes for a U-Net. A function of seed, F and width on any device.
    """
    num = features_NF.shape[1]
    if num <= width:
        return features_NF.double()
    drawn = torch.from_numpy(draws_of_rows(np.zeros(1), seed)).to(features_NF.device)
    order, signs = uniform(drawn, num, purpose=95)[0].argsort(stable=True), uniform(drawn, num, purpose=96)[0]
    dealt = features_NF.double()[:, order] * torch.where(signs < 0.5, -1.0, 1.0).double()
    return torch.nn.functional.pad(dealt, (0, -num % width)).unflatten(1, (-1, width)).sum(1)


def ridge_weights(taught_ND: Tensor, judged_MD: Tensor, images_NP: Tensor) -> tuple[Tensor, float]:
    """What ridge regression answers for the judged images, as weights of the retained ones.

    With centred features X and images Y, W = (X'X + penalty I)^-1 X'Y. The answer mean(Y) + x W is linear in Y, so it is a sum
    of retained images whose weights add up to 1. These N numbers stand for W, which would have D x P.

    The penalty minimises N RSS / (N - 1 - tr H)^2 over PENALTIES, with RSS the squared residuals of all pixels, H the matrix
    that turns Y into its fit, and 1 for the mean; one penalty for all pixels. All of it in float64 from X = U S V'.

    Args:
        taught_ND: features of the retained images, fp64, N at least 2.
        judged_MD: features of the judged images, fp64.
        images_NP: pixels of the retained images; taken to fp64 in blocks.

    Returns:
        Weights fp64 [M, N], and the penalty.
    """
    (num, width), center = taught_ND.shape, taught_ND.mean(0)
    if num < 2:
        raise ValueError(f"a ridge regression on {num} images")
    left_NR, singular_R, axes_RD = torch.linalg.svd(taught_ND - center, full_matrices=False)
    total, shares_R = torch.zeros_like(singular_R[0]), torch.zeros_like(singular_R)
    for pixels in images_NP.split(max(1, BLOCK // num), dim=1):
        centred = pixels.double() - pixels.double().mean(0)
        total, shares_R = total + centred.square().sum(), shares_R + (left_NR.T @ centred).square().sum(1)
    # With no more images than features nothing is out of reach, and the difference would only be rounding.
    beyond = (total - shares_R.sum()).clamp(min=0) if num > width else torch.zeros_like(total)
    spectrum_R = singular_R.square()
    # Features that are all the same have no variance to measure penalties in, and any penalty gives the mean image.
    unit = float(spectrum_R.sum() / width) or 1.0

    def score(penalty: float) -> float:
        left_over_R = penalty / (spectrum_R + penalty)
        free = num - 1 - len(singular_R) + left_over_R.sum()
        return float(num * (beyond + (left_over_R.square() * shares_R).sum()) / free.square())

    penalty = min((unit * size for size in PENALTIES), key=score)
    shrunk_MR = ((judged_MD - center) @ axes_RD.T) * (singular_R / (spectrum_R + penalty))
    # Centred once more: features that hardly differ are centred up to rounding only, which the step above magnifies.
    return shrunk_MR @ (left_NR - left_NR.mean(0)).T + 1 / num, penalty
