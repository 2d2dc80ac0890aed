"""What feature extractors see of the first images of each slice, batch by batch on all ranks, and the figures made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.config import EvaluationConfig
from pipeline.evaluation.base import Resampling
from pipeline.evaluation.distribution import View, figures
from pipeline.evaluation.extractors import Absent, Extractor, load
from pipeline.evaluation.perceptual import Encoded, encode, join
from pipeline.evaluation.selftest import selftest
from pipeline.evaluation.splits import Slice
from pipeline.records import MetricResult

__all__ = ["Eyes", "Seen"]

Seen = dict[tuple[str, int, int], tuple[Encoded, dict[str, Encoded]]]
"""(extractor, slice, first image) -> what it made of the truths, and of each subject's completions."""


class Eyes:
    """The extractors that a run asks for, tested on known inputs before they see an image.

    Args:
        config: `extractors` and `extractor_samples`.
        device: where they run.
    """

    def __init__(self, config: EvaluationConfig, device: torch.device) -> None:
        self._limit = config.extractor_samples
        self._found = {name: load(name, weights, str(device)) for name, weights in config.extractors.items()}
        selftest([item for item in self._found.values() if isinstance(item, Extractor)])

    @torch.no_grad()
    def look(self, number: int, start: int, truth_BCHW: Tensor, answers: Mapping[str, Tensor]) -> Seen:
        """See a batch: images `start` on of slice `number`; those beyond the limit are not looked at."""
        count = min(len(truth_BCHW), self._limit - start)
        if count <= 0:
            return {}
        cut = {subject: images[:count] for subject, images in answers.items()}
        eyes = {name: item for name, item in self._found.items() if isinstance(item, Extractor)}
        return {(name, number, start): encode(item, truth_BCHW[:count], cut) for name, item in eyes.items()}

    def figures(
        self, parts: Sequence[Seen], slices: Sequence[Slice], subjects: Sequence[str], answering: Sequence[str], how: Resampling
    ) -> dict[str, tuple[MetricResult, ...]]:
        """The figures of each subject.

        Args:
            parts: what every rank saw.
            slices: of the evaluation.
            subjects: to report on; those that are not `answering` get figures without value.
            answering: the models that were there.
            how: intervals are made.
        """
        places = [(item.split, item.group) for item in slices]
        seen = {where: what for part in parts for where, what in part.items()}
        found: dict[str, tuple[MetricResult, ...]] = dict.fromkeys(subjects, ())
        for name, item in self._found.items():
            view = item if isinstance(item, Absent) else self._view(name, item, seen, slices, answering)
            for subject in subjects:
                found[subject] += figures(subject, view, places, how)
        return found

    def _view(self, name: str, item: Extractor, seen: Seen, slices: Sequence[Slice], answering: Sequence[str]) -> View:
        empty = Encoded(features=np.empty((0, item.description.width), dtype=np.float32))
        truth, answers = {}, {subject: {} for subject in answering}  # type: ignore[var-annotated]
        for number, place in enumerate(slices):
            starts = sorted(start for extractor, where, start in seen if extractor == name and where == number)
            where = place.split, place.group
            truth[where] = join([seen[name, number, start][0] for start in starts]) if starts else empty
            for subject in answering:
                parts = [seen[name, number, start][1][subject] for start in starts]
                answers[subject][where] = join(parts) if parts else empty
        return View(extractor=item.description, truth=truth, answers=answers)
