"""What a viewer would call different: distances of each image to its truth in an extractor's features and maps.

`encode` is what a stage calls on a batch: one pass of the network over each image gives everything that is measured later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.base import Floats
from pipeline.evaluation.extractors import Extractor, Seen

__all__ = ["CHUNK", "Encoded", "cosine_distance", "encode", "join", "map_distance", "paired_names"]

# Images in the network at once: at 128 pixels EfficientNet-Lite0 holds about 5 MB an image, at 224 about 15 MB.
CHUNK = 32

Singles = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """What one extractor made of N images: features float32 [N, F], logits float32 [N, K] (None without classes), and for
    completed images the distances to their truths, float64 [N] for each of `paired_names`."""

    features: Singles
    logits: Singles | None = None
    distances: Mapping[str, Floats] = dataclasses.field(default_factory=dict)


def encode(extractor: Extractor, truth_BCHW: Tensor, answers: Mapping[str, Tensor]) -> tuple[Encoded, dict[str, Encoded]]:
    """Features of true and completed images, and each completed image's distances to its truth.

    Args:
        extractor: the network; the results of an image do not depend on the others in its batch.
        truth_BCHW: fp32 in [0, 1], 1 or 3 channels, any B from 1 up: CHUNK of them are in the network at once.
        answers: each subject's completed images, same shape and range.

    Returns:
        The truths', and each subject's.
    """
    truths: list[Encoded] = []
    parts: dict[str, list[Encoded]] = {subject: [] for subject in answers}
    for start in range(0, len(truth_BCHW), CHUNK):
        true = extractor.see(truth_BCHW[start : start + CHUNK])
        truths.append(_keep(true, {}))
        for subject, images in answers.items():
            seen = extractor.see(images[start : start + CHUNK])
            parts[subject].append(_keep(seen, _distances(extractor.description.name, seen, true)))
    return join(truths), {subject: join(found) for subject, found in parts.items()}


def join(parts: Sequence[Encoded]) -> Encoded:
    """Batches of one extractor and subject, at least one, put together in their order."""
    logits = [part.logits for part in parts if part.logits is not None]
    return Encoded(
        features=np.concatenate([part.features for part in parts]),
        logits=np.concatenate(logits) if logits else None,
        distances={name: np.concatenate([part.distances[name] for part in parts]) for name in parts[0].distances},
    )


def paired_names(extractor: str) -> tuple[str, ...]:
    """Names of the distances of an image to its truth that the extractor called so gives."""
    cosine = "clip_distance" if extractor == "clip" else f"cosine_{extractor}"
    return (cosine, "lpips_like_efflite0") if extractor == "efflite0" else (cosine,)


def cosine_distance(first_BF: Tensor, second_BF: Tensor) -> Tensor:
    """1 - cosine of the angle between features [B, F] of the same images: fp64 [B] in [0, 2]; 1 where one is all zeros.

    On CLIP's embeddings this is the CLIP distance (1 - CLIP-I of Ruiz et al., DreamBooth, 2023).
    """
    cosine = torch.nn.functional.cosine_similarity(first_BF.double(), second_BF.double(), dim=1, eps=1e-12)
    return 1 - cosine.clamp(-1, 1)


def map_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Distance in feature maps after Zhang et al., The Unreasonable Effectiveness of Deep Features, 2018, equation 1, with
    weights of 1 in place of learnt ones: LPIPS-like, and not LPIPS.

    At each place of a map the channels are scaled to length 1; squared differences are summed over channels and averaged
    over places, then over maps.

    Args:
        first, second: the same maps of the same B images, each [B, C, H, W].

    Returns:
        fp64 [B] in [0, 4]; 0 for equal maps.
    """
    each = [(_unit(one) - _unit(two)).square().sum(dim=1).mean(dim=(1, 2)) for one, two in zip(first, second, strict=True)]
    return torch.stack(each).double().mean(dim=0)


def _unit(maps_BCHW: Tensor) -> Tensor:
    return maps_BCHW / maps_BCHW.norm(dim=1, keepdim=True).clamp_min(1e-10)


def _distances(extractor: str, seen: Seen, true: Seen) -> dict[str, Floats]:
    found = [cosine_distance(seen.features, true.features)]
    if seen.maps:
        found.append(map_distance(seen.maps, true.maps))
    return {name: np.asarray(values.cpu().numpy()) for name, values in zip(paired_names(extractor), found, strict=True)}


def _keep(seen: Seen, distances: Mapping[str, Floats]) -> Encoded:
    logits = None if seen.logits is None else _singles(seen.logits)
    return Encoded(features=_singles(seen.features), logits=logits, distances=distances)


def _singles(values: Tensor) -> NDArray[Any]:
    return np.asarray(values.float().cpu().numpy())
