"""Figures of a subject's completed images as a set: KID, Frechet distance, Inception Score, and distances of each image to
its truth, by one extractor.

The main one is `kid_to_retrained_NAME`: how far the completions lie from those of the model that never saw the forgotten
images, on the same images. Only the FID's own network lends its name: `fid_inception`, `inception_score`; others are
called `fd_NAME`, `class_score_NAME`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pipeline.evaluation.base import Resampling, figure, missing
from pipeline.evaluation.extractors import Absent, Description
from pipeline.evaluation.frechet import frechet_interval, refusal
from pipeline.evaluation.inception_score import SPLITS, inception_score_interval
from pipeline.evaluation.kid import MINIMUM, kid_interval
from pipeline.evaluation.perceptual import Encoded, paired_names
from pipeline.evaluation.summary import REFERENCE, Place
from pipeline.records import MetricResult

__all__ = ["View", "figures", "names"]

Better = Literal["lower", "higher", "reference"]
KEPT = ("retain", "unseen_retain")
SCORED = ("inception", "efflite0")
"""Extractors with classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """All that one extractor saw in a run, gathered from all ranks in the order of the images.

    Args:
        extractor: which network, and how it was fed.
        truth: the true images of each split and group; features float32 [N, F], N may be 0.
        answers: each subject's completions of the same images in the same order, with distances to the truth. A subject
            that is not there gets figures without value; without the reference, what compares with it is not computed.
    """

    extractor: Description
    truth: Mapping[Place, Encoded]
    answers: Mapping[str, Mapping[Place, Encoded]]


@dataclasses.dataclass(frozen=True)
class Target:
    """A set to compare completions with: the figures' infix, the set or why there is none, whether of the same images."""

    infix: str
    found: Encoded | str
    paired: bool
    better: Better


def figures(subject: str, view: View | Absent, places: Sequence[Place], resampling: Resampling) -> tuple[MetricResult, ...]:
    """All figures of one subject by one extractor.

    For each place: KID and Frechet distance to the truth (`kid_NAME`), to the retrained model's completions
    (`kid_to_retrained_NAME`, not for that model itself) and, for forget images, to true unseen images of the same kind
    (`kid_to_unseen_NAME`); the classifier's score; the distances of each image to its truth. A Frechet distance of fewer
    than 2,048 images is refused once a place, by `fd_NAME` alone. Notes carry resize rule, input range and weights digest.

    Args:
        subject: whose completions; REFERENCE is the retrained model.
        view: what the extractor saw; if it is absent, every figure says why.
        places: splits and groups in the order to report.
        resampling: how intervals are made.
    """
    return tuple(result for place in places for result in _of_place(subject, view, place, resampling))


def names(extractor: str, place: Place, subject: str) -> tuple[str, ...]:
    """Names of the figures of a place, as given where nothing can be computed."""
    infixes = ["", *(["to_retrained"] if subject != REFERENCE else []), *(["to_unseen"] if place[0] == "forget" else [])]
    score = [_score_name(extractor)] if extractor in SCORED else []
    return (*(_name("kid", infix, extractor) for infix in infixes), _name("fd", "", extractor), *score, *paired_names(extractor))


def _of_place(subject: str, view: View | Absent, place: Place, resampling: Resampling) -> Iterator[MetricResult]:
    extractor = view.name if isinstance(view, Absent) else view.extractor.name
    why = view.why if isinstance(view, Absent) else _absent(subject, view, place)
    if isinstance(view, Absent) or why:
        yield from (missing(name, *place, why) for name in names(extractor, place, subject))
        return
    own, note = view.answers[subject][place], view.extractor.note
    targets = list(_targets(subject, view, place))
    for target in targets:
        yield _kid(subject, extractor, own, target, place, resampling, note)
    if why := refusal(len(own.features)):
        yield missing(_name("fd", "", extractor), *place, why)
    else:
        yield from (_frechet(extractor, own, target, place, resampling, note) for target in targets)
    if own.logits is not None:
        yield _score(subject, extractor, own, place, resampling, note)
    for name, values in own.distances.items():
        interval = resampling.mean(values, f"{subject}|{place}|{name}")
        yield figure(name, *place, interval, samples=len(values), better=_better(place, "lower"), note=note)


def _absent(subject: str, view: View, place: Place) -> str:
    if subject not in view.answers:
        return "no retrained model" if subject == REFERENCE else f"no {subject} model"
    return "" if len(view.answers[subject][place].features) else "no images in this split"


def _targets(subject: str, view: View, place: Place) -> Iterator[Target]:
    yield Target("", view.truth[place], True, _better(place, "lower"))
    if subject != REFERENCE:
        reference = view.answers.get(REFERENCE)
        yield Target("to_retrained", reference[place] if reference else "no retrained model", True, "lower")
    if place[0] == "forget":
        unseen = view.truth.get(("unseen", place[1]))
        yield Target("to_unseen", unseen or "no unseen images of this kind", False, "reference")


def _kid(
    subject: str, extractor: str, own: Encoded, target: Target, place: Place, resampling: Resampling, note: str
) -> MetricResult:
    name, found = _name("kid", target.infix, extractor), target.found
    if isinstance(found, str):
        return missing(name, *place, found)
    samples = min(len(own.features), len(found.features))
    if samples < MINIMUM:
        return missing(name, *place, f"{samples} images; a kernel distance needs {MINIMUM}")
    label = f"{subject}|{place}|{name}"
    interval = kid_interval(own.features, found.features, resampling, label, paired=target.paired)
    return figure(name, *place, interval, samples=samples, better=target.better, note=note)


def _frechet(extractor: str, own: Encoded, target: Target, place: Place, resampling: Resampling, note: str) -> MetricResult:
    name, found = _name("fd", target.infix, extractor), target.found
    why = found if isinstance(found, str) else refusal(len(found.features))
    if isinstance(found, str) or why:
        return missing(name, *place, why)
    interval = frechet_interval(own.features, found.features, paired=target.paired, confidence=resampling.confidence)
    samples = min(len(own.features), len(found.features))
    return figure(name, *place, interval, samples=samples, better=target.better, note=f"{note}; interval by jackknife")


def _score(subject: str, extractor: str, own: Encoded, place: Place, resampling: Resampling, note: str) -> MetricResult:
    name, samples = _score_name(extractor), len(own.features)
    if own.logits is None or samples < SPLITS:
        return missing(name, *place, f"{samples} images cannot be cut in {SPLITS} splits")
    interval = inception_score_interval(own.logits, resampling, f"{subject}|{place}|{name}")
    note = f"{note}; {SPLITS} splits of {samples // SPLITS} images, the highest score possible"
    return figure(name, *place, interval, samples=samples, better=_better(place, "higher"), note=note)


def _better(place: Place, kept: Better) -> Better:
    """On images to forget, and their like, good means: as the retrained model does, neither higher nor lower."""
    return kept if place[0] in KEPT else "reference"


def _name(kind: str, infix: str, extractor: str) -> str:
    kind = "fid" if (kind, extractor) == ("fd", "inception") else kind
    return "_".join(part for part in (kind, infix, extractor) if part)


def _score_name(extractor: str) -> str:
    return "inception_score" if extractor == "inception" else f"class_score_{extractor}"
