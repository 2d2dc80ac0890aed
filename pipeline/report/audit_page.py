"""audit.html: what a battery of attacks found, as one page that needs nothing but itself, in the look of report.html.

Its words keep to what an attack can show: one that finds something refutes forgetting, one that finds nothing proves nothing, and
one that would find nothing in any model is void.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.decode import plain
from pipeline.findings import AUDITED, MEASURED, OVER, TIERS, Audit, Finding, Series
from pipeline.report.audit_plots import Rates, null_histogram, roc_curves
from pipeline.report.page import environment
from pipeline.report.plots import Picture

__all__ = ["Drawn", "render"]

SUBJECTS = ("unlearned", "original", OVER)
"""The order of models in tables and plots; others follow."""
TITLES: Mapping[str, tuple[str, str]] = {
    "relearn": ("Relearning", "A copy of each model is trained on half of the images; how soon do the others come back?"),
    "second_decoder": ("Second decoder", "Can the hidden pixels be read off the frozen encoder, by a decoder of our own?"),
    "extraction": ("Extraction", "Is a completion nearer to the image’s own truth than to those of others of its kind?"),
    "canary": ("Canaries", "A coin decided which planted images were trained on. Do the losses tell how the coins fell?"),
    "poison": ("Gaussian poison", "Noise was added to images to forget. Does the model’s gradient still follow it?"),
    "backdoor": ("Backdoor", "Images with a trigger were taught a pattern. Does the trigger still bring it up?"),
    "shadows": ("Likelihood ratio", "Are an image’s errors those of models that forgot it, or of ones without it?"),
}
VERDICTS: Mapping[str, tuple[str, str]] = {
    "still there": ("found", "Something of the images is still in the model. This refutes forgetting."),
    "over-forgotten": ("found, too far", "The images are more alien to the model than ones it never saw, so they stand out."),
    "not told apart": ("not found", "The attack has power here and found nothing. That is no proof: a stronger one may."),
    "no power": ("void", "The attack does not find the images where they are known to be, so its pass says nothing."),
    "not computed": ("not computed", "Nothing is said."),
}
"""Short and whole, for what a finding says of the unlearned model."""
CLAIMS: Mapping[str, str] = {
    "E": f"tier E, {TIERS['E']}: as the run’s report says",
    "C": f"tier C, {TIERS['C']}: as the run’s report says, and no attack here refutes it",
    "A": f"tier A, {TIERS['A']}, no certificate: no attack with power tells the model from the retrained one",
    "": "nothing beyond what was measured: no tier is reached",
}
"""By the audit's tier."""
LOOSE = ("relearn", "second_decoder")
"""Attacks that, beside one retrained model, find more in models without the images than their level allows; power.md."""
ALONE = (
    "By itself it is a reason to look: beside one retrained model this attack raises more false alarms than its interval "
    "promises. Shadow runs (--shadows) show how far retrained models lie apart, and make it a finding."
)
BLUNT = "The model that was driven too far on purpose is not found either: of over-forgetting this attack says nothing."
LIKE_KEPT = "The model is apart from its reference here, but as far apart on unseen kept images, so it is not laid to these."


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """The figures behind a finding, and their ROC curve; None where they hold only one kind of image."""

    series: Series
    rates: Rates | None


def render(audit: Audit, drawn: Sequence[Drawn], images: Mapping[str, bytes], planted: bytes | None) -> str:
    """The page as HTML text.

    Args:
        audit: all findings.
        drawn: the figures behind them, as many as there are.
        images: group name -> PNG bytes: images of its kind that no model was trained on, and what is made of them.
        planted: PNG bytes of planted images; None where nothing was planted.
    """
    groups = [_group(name, audit, drawn, images) for name in dict.fromkeys(item.group for item in audit.findings)]
    own = [item for item in audit.findings if item.subject == "unlearned"]
    bounds = [item.epsilon_low for item in own if item.epsilon_low is not None]
    return (
        environment()
        .get_template("audit.html.j2")
        .render(
            audit=audit,
            summary=_summary(audit.passed),
            groups=groups,
            counts=_counts(own),
            epsilon=max(bounds, default=None),
            bounds=len(bounds),
            bounded=any(attack["bounded"] for group in groups for attack in group["attacks"]),
            planted=planted,
            claim=CLAIMS[audit.tier],
            judged=[plain(rule) for rule in audit.verdict.rules],
            measured=AUDITED | MEASURED,
        )
    )


def _summary(passed: bool | None) -> str:
    if passed is None:
        return "No attack had the power to judge this model"
    return "No attack with power tells the forgotten images apart" if passed else "The forgotten images give themselves away"


def _counts(own: Sequence[Finding]) -> list[tuple[str, int, str]]:
    """Label, number and explanation of what the attacks say of the unlearned model."""
    says = [item.says for item in own]
    return [
        (
            "found the images",
            says.count("still there") + says.count("over-forgotten"),
            "each speaks against a claim of forgetting",
        ),
        ("had power and found nothing", says.count("not told apart"), "which proves nothing"),
        ("void or not computed", says.count("no power") + says.count("not computed"), "these say nothing"),
    ]


def _group(name: str, audit: Audit, drawn: Sequence[Drawn], images: Mapping[str, bytes]) -> dict[str, Any]:
    mine = [item for item in audit.findings if item.group == name]
    attacks = [
        _attack(attack, name, [item for item in mine if item.attack == attack], drawn)
        for attack in dict.fromkeys(item.attack for item in mine)
    ]
    return {"name": name or "All images", "attacks": attacks, "images": images.get(name)}


def _attack(attack: str, group: str, findings: Sequence[Finding], drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Title, verdict, table and plots of one attack on one group."""
    title, question = TITLES.get(attack, (attack[:1].upper() + attack[1:], ""))
    rows = sorted(findings, key=lambda item: _place(item.subject))
    own = next((item for item in rows if item.subject == "unlearned"), None)
    short, words = VERDICTS[own.says] if own else VERDICTS["not computed"]
    if attack in LOOSE and own and own.trainings == 1 and own.says in ("still there", "over-forgotten"):
        words = (
            f"{words.split('.')[0].replace('Something of the images is still', 'Something of the images seems to be')}. {ALONE}"
        )
    far = next((item for item in rows if item.subject == OVER), None)
    if own and own.says == "not told apart" and far and far.says != "over-forgotten":
        words += f" {BLUNT}"
    if own and own.says in ("not told apart", "no power") and _apart(own):
        words += f" {LIKE_KEPT}"
    measures = list(dict.fromkeys(item.measure for item in rows if item.measure))
    return {
        "title": title,
        "question": question,
        "own": own,
        "short": short,
        "words": words,
        "rows": [item for item in rows if item.value is not None],
        "notes": list(dict.fromkeys(item.note for item in rows if item.note)),
        "measures": measures,
        "bounded": any(item.epsilon_low is not None for item in rows),
        "plots": _plots(f"{title}, {group}", rows, [item for item in drawn if _of(item) == (attack, group)]),
    }


def _apart(row: Finding) -> bool:
    """Whether the interval lies beside 0."""
    return row.low is not None and row.high is not None and not row.low <= 0 <= row.high


def _of(item: Drawn) -> tuple[str, str]:
    return item.series.attack, item.series.group


def _place(subject: str) -> int:
    return SUBJECTS.index(subject) if subject in SUBJECTS else len(SUBJECTS)


def _plots(subject: str, rows: Sequence[Finding], drawn: Sequence[Drawn]) -> list[tuple[str, Picture, str]]:
    """Title, plot and what to see in it, for each kind of score."""
    plots = []
    for score in dict.fromkeys(item.series.score for item in drawn):
        alike = sorted((item for item in drawn if item.series.score == score), key=lambda item: _place(item.series.subject))
        curves = {item.series.subject: item.rates for item in alike if item.rates is not None}
        if curves:
            least = 1 / max(2, *(len(part) for item in alike for part in (item.series.own, item.series.other)))
            hint = (
                f"An image’s score is {score}. Above the dotted line of chance, and far left most of all, images give "
                "themselves away as known; below it as alien."
            )
            plots.append(("ROC curves", roc_curves(curves, least=least, subject=subject), hint))
        plots += _null(subject, rows, [item.series for item in alike])
    return plots


def _null(subject: str, rows: Sequence[Finding], series: Sequence[Series]) -> list[tuple[str, Picture, str]]:
    """The null distribution of the first model that has one, with every model's statistic."""
    first = next((item for item in series if item.null and item.observed is not None), None)
    if first is None:
        return []
    observed = {item.subject: item.observed for item in series if item.observed is not None}
    kept = next((_kept(item, first) for item in rows if item.subject == first.subject), None)
    picture = null_histogram(np.array(first.null), observed, kept=kept, statistic=first.statistic, subject=subject)
    hint = "Bars: what chance among these images gives where nothing is left. A line far outside them is more than that chance"
    hint += f"; in the shade, unseen kept images set the {first.subject} model apart as much." if kept else "."
    return [("Where nothing is left", picture, hint)]


def _kept(row: Finding, series: Series) -> tuple[float, float] | None:
    """The finding's interval on kept images, where it is in the units of the series."""
    if row.kept_low is None or row.kept_high is None or row.value is None or series.observed is None:
        return None
    return (row.kept_low, row.kept_high) if np.isclose(row.value, series.observed, rtol=1e-4, atol=1e-9) else None
