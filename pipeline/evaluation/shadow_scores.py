"""Findings of an attack with shadow runs: can models that forgot the images be told from models that never saw them?

K runs of one configuration, at seeds of their own, each give a model that was trained on the images and forgot them, and one that
was retrained without. Each run is left out in turn, and both of its models are judged by the likelihood ratios of the others
(`likelihood_ratio`).

What is counted is models, not images: all images of one model were forgotten together, in one training, so a model is one trial,
judged by the mean of its images' ratios. The threshold is 0, where both kinds are as likely; nothing is chosen on what is judged.
Decisions about different runs share most of their shadows and so vary more than independent ones (in simulations by a third, as
standard deviation). For that half the error is kept back: the bound is that of the better of two attacks.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from pipeline.errors import ConfigError
from pipeline.evaluation.base import Floats, Interval
from pipeline.evaluation.epsilon_bound import rates_epsilon
from pipeline.evaluation.likelihood_ratio import LEAST_ERROR, likelihood_ratios
from pipeline.findings import Finding, Found, Says, Series

__all__ = ["LEAST_SHADOWS", "largest_epsilon", "shadow_scores", "shadows_needed"]

LEAST_SHADOWS = 2
"""Fewer show no spread."""
ATTACKS = 2
NULL = 400
"""Draws of the statistic without a difference, for its picture."""
SHOWN = 1000
"""Scores of a side in the picture at most; of more, evenly spaced quantiles."""


def shadow_scores(
    forgot_KN: Floats,
    never_KN: Floats,
    *,
    kept: tuple[Floats, Floats] | None,
    group: str,
    subject: str,
    delta: float,
    confidence: float = 0.95,
) -> Found:
    """Hold K models that had the images against K that never had.

    Args:
        forgot_KN: errors of N images in the K models of this subject (trained on the images; `unlearned`: and forgot them),
            float64 [K, N], at least 0. The run under audit is the first row.
        never_KN: errors of the same images in the runs' retrained models, in the same order.
        kept: the same two of unseen kept images, which no model was trained on; None where there are none.
        group, subject: of the finding.
        delta: of the claim that is attacked, in [0, 1).
        confidence: in (0, 1), of intervals and bound.

    Returns:
        The finding. Its value is the mean over runs of log(error / error in the retrained model), with Student's interval over
        the K runs: below 0 the images are still better known. `epsilon_low` is from the likelihood ratios, which also see what
        no mean shows. The series are the ratios of single images, all runs pooled: a picture, from which no bound follows.

    Raises:
        ConfigError: fewer than three runs, or delta or confidence outside its range.
    """
    num = len(forgot_KN)
    if num <= LEAST_SHADOWS:
        raise ConfigError(f"shadows: {num - 1} shadow runs", f"train at least {LEAST_SHADOWS}")
    gaps = _gaps(forgot_KN, never_KN)
    found = _student(gaps, confidence)
    none = Interval(value=0.0, low=0.0, high=0.0)
    usual = none if kept is None else _student(_gaps(*kept), confidence)
    says: Says = "not told apart"
    if found.high < min(0.0, usual.low):
        says = "still there"
    elif found.low > max(0.0, usual.high):
        says = "over-forgotten"
    own, other = _ratios(forgot_KN, never_KN)
    missed, wrong = int((own.mean(axis=1) <= 0).sum()), int((other.mean(axis=1) >= 0).sum())
    most = largest_epsilon(num - 1, delta, confidence)
    power = f"{num - 1} shadows can show epsilon {most:.2f}"
    if not most:
        power = f"{num - 1} shadows can show no epsilon, it takes {shadows_needed(delta, confidence)}"
    finding = Finding(
        attack="shadows",
        group=group,
        subject=subject,
        measure=f"mean log ratio of errors over {num} runs",
        says=says,
        value=found.value,
        low=found.low,
        high=found.high,
        kept_low=None if kept is None else usual.low,
        kept_high=None if kept is None else usual.high,
        samples=forgot_KN.shape[1],
        epsilon_low=_epsilon(wrong, missed, num, delta, confidence),
        note=f"log ratio of errors over {num} runs; likelihood ratios take {num - missed} of {num} models for trained on, and "
        f"{wrong} of {num} retrained ones (images pooled: AUC {_auc(own.ravel(), other.ravel()):.3f}); {power}",
    )
    signs = np.random.Generator(np.random.Philox(num)).integers(0, 2, size=(NULL, num)) * 2 - 1
    series = Series(
        attack="shadows",
        group=group,
        subject=subject,
        score=f"log likelihood ratio of an image, {num} runs pooled",
        own=_shown(own),
        other=_shown(other),
        statistic="mean log ratio of errors",
        null=tuple((signs @ gaps / num).tolist()),
        observed=found.value,
    )
    return Found(findings=(finding,), series=(series,))


def largest_epsilon(shadows: int, delta: float, confidence: float) -> float:
    """The epsilon that so many shadow runs would show if no decision were wrong; 0 where they can show none.

    Raises:
        ConfigError: delta or confidence outside its range.
    """
    return _epsilon(0, 0, shadows + 1, delta, confidence)


def shadows_needed(delta: float, confidence: float) -> int:
    """The fewest shadow runs that could show an epsilon above 0."""
    # No error in K trials leaves a rate of level^(1/K), and both rates must leave more than delta: 2 level^(1/K) < 1 - delta.
    level = (1 - confidence) / (2 * ATTACKS)
    num = max(LEAST_SHADOWS, math.floor(math.log(level) / math.log((1 - delta) / 2)) - 1)
    while not largest_epsilon(num, delta, confidence):
        num += 1
    return num


def _epsilon(wrong: int, missed: int, num: int, delta: float, confidence: float) -> float:
    return rates_epsilon(
        false_positives=wrong,
        negatives=num,
        false_negatives=missed,
        positives=num,
        delta=delta,
        confidence=confidence,
        attacks=ATTACKS,
    )


def _ratios(forgot_KN: Floats, never_KN: Floats) -> tuple[Floats, Floats]:
    """Likelihood ratios of both models of each run, judged by all other runs; two arrays [K, N]."""
    own, other = np.empty_like(forgot_KN), np.empty_like(never_KN)
    for number in range(len(forgot_KN)):
        rest = np.arange(len(forgot_KN)) != number
        for errors, ratios in ((forgot_KN, own), (never_KN, other)):
            ratios[number] = likelihood_ratios(forgot_KN[rest], never_KN[rest], errors[number])
    return own, other


def _gaps(errors_KN: Floats, reference_KN: Floats) -> Floats:
    """Mean over images of log(error / reference), fp64 [K]."""
    one, other = (np.log(np.maximum(errors, LEAST_ERROR)) for errors in (errors_KN, reference_KN))
    gaps: Floats = (one - other).mean(axis=1)
    return gaps


def _student(values: Floats, confidence: float) -> Interval:
    """Mean of independent values, with Student's interval (1908)."""
    reach = float(special.stdtrit(len(values) - 1, (1 + confidence) / 2)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def _auc(own: Floats, other: Floats) -> float:
    """How often a score of `own` is above one of `other`, ties counted half."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, own, "left") + np.searchsorted(ordered, own, "right")
    return float(below.mean() / (2 * len(other)))


def _shown(ratios_KN: Floats) -> tuple[float, ...]:
    values = np.sort(ratios_KN, axis=None)
    if len(values) > SHOWN:
        values = np.quantile(values, (np.arange(SHOWN) + 0.5) / SHOWN)
    return tuple(values.tolist())
