"""Per-image scores of all subjects -> the figures of a run, each with its interval.

Figures: the six of `paired.METRICS` on every split; `ks`, `ks_detectable` (distance of region errors to the retrained
model's); `membership` (AUC), `membership_distance` (from 0.5) per group; `error_ratio` (region error on unseen retain
over the retrained model's).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline.evaluation.base import Floats, Interval, Resampling, figure, missing
from pipeline.evaluation.distance import detectable, ks_interval
from pipeline.evaluation.membership import distance_from_chance, membership_auc, verdict
from pipeline.evaluation.paired import METRICS
from pipeline.records import Evaluation, Evaluations, MetricResult

__all__ = ["REFERENCE", "SUBJECTS", "Scores", "summarise"]

SUBJECTS = ("original", "unlearned", "retrained")
REFERENCE = "retrained"
NO_REFERENCE = "no retrained model"
NO_IMAGES = "no images in this split"

Place = tuple[str, str]
"""Split and group; the group is empty for the two retain splits."""

Scores = Mapping[str, Mapping[Place, Mapping[str, Floats]]]
"""subject -> (split, group) -> metric -> float64 [N]. The N of a place and its images are the same for all subjects."""


def summarise(scores: Scores, places: list[Place], resampling: Resampling, subjects: tuple[str, ...] = SUBJECTS) -> Evaluations:
    """All figures of all subjects.

    Args:
        scores: per-image scores. A subject that is absent gets figures without value and a note; so does an empty split.
        places: splits and groups in the order to report.
        resampling: how intervals are made.
        subjects: what to report on, in order.
    """
    return Evaluations(evaluations=tuple(_of_subject(name, scores, places, resampling) for name in subjects))


def _of_subject(subject: str, scores: Scores, places: list[Place], resampling: Resampling) -> Evaluation:
    results: list[MetricResult] = []
    for place in places:
        results += _paired(subject, scores, place, resampling)
        if place[0] in ("forget", "unseen", "unseen_retain"):
            results += _to_reference(subject, scores, place, resampling)
        if place[0] == "forget":
            results += _membership(subject, scores, place[1], resampling)
        if place[0] == "unseen_retain":
            results.append(_ratio(subject, scores, place, resampling))
    return Evaluation(subject=subject, results=tuple(results))


def _absent(subject: str, scores: Scores, *places: Place) -> str:
    """Why a figure of this subject cannot be computed; empty if it can."""
    if subject not in scores:
        return NO_REFERENCE if subject == REFERENCE else f"no {subject} model"
    return NO_IMAGES if any(not len(scores[subject][place][METRICS[0]]) for place in places) else ""


def _paired(subject: str, scores: Scores, place: Place, resampling: Resampling) -> list[MetricResult]:
    if why := _absent(subject, scores, place):
        return [missing(name, *place, why) for name in METRICS]
    kept = place[0] in ("retain", "unseen_retain")
    results = []
    for name in METRICS:
        values = scores[subject][place][name]
        # On images to forget, and their like, good means: as the retrained model does, neither higher nor lower.
        better: Literal["lower", "higher", "reference"] = (
            "reference" if not kept else "lower" if name.startswith("error") else "higher"
        )
        interval = resampling.mean(values, f"{subject}|{place}|{name}")
        results.append(figure(name, *place, interval, samples=len(values), better=better))
    return results


def _to_reference(subject: str, scores: Scores, place: Place, resampling: Resampling) -> list[MetricResult]:
    """KS distance to the retrained model's errors, and the smallest distance that could be seen."""
    if subject == REFERENCE:
        return []
    if why := _absent(subject, scores, place) or _absent(REFERENCE, scores, place):
        return [missing(name, *place, why) for name in ("ks", "ks_detectable")]
    errors, reference = (scores[name][place]["error_region"] for name in (subject, REFERENCE))
    interval = ks_interval(errors, reference, resampling, f"{subject}|{place}|ks")
    limit = detectable(len(errors))
    return [
        figure("ks", *place, interval, samples=len(errors), better="lower"),
        MetricResult(name="ks_detectable", split=place[0], group=place[1], value=limit, samples=len(errors)),
    ]


def _membership(subject: str, scores: Scores, group: str, resampling: Resampling) -> list[MetricResult]:
    places: list[Place] = [("forget", group), ("unseen", group)]
    if why := _absent(subject, scores, *places):
        return [missing(name, *places[0], why) for name in ("membership", "membership_distance")]
    forget, unseen = (scores[subject][place]["error_region"] for place in places)
    auc = membership_auc(forget, unseen, resampling, f"{subject}|{group}|membership")
    words, num = verdict(auc, len(forget), len(unseen)), min(len(forget), len(unseen))
    away: Interval = distance_from_chance(auc)
    return [
        figure("membership", *places[0], auc, samples=num, note=words),
        figure("membership_distance", *places[0], away, samples=num, better="lower", note=words),
    ]


def _ratio(subject: str, scores: Scores, place: Place, resampling: Resampling) -> MetricResult:
    """Mean region error over the retrained model's, on the same images; above 1 is worse than retraining."""
    if why := _absent(subject, scores, place) or _absent(REFERENCE, scores, place):
        return missing("error_ratio", *place, why)
    own, reference = (scores[name][place]["error_region"] for name in (subject, REFERENCE))
    if not reference.mean() > 0:
        return missing("error_ratio", *place, "the retrained model makes no error")
    return figure("error_ratio", *place, resampling.ratio(own, reference, f"{subject}|ratio"), samples=len(own), better="lower")
