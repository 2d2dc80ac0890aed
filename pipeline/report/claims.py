"""What may be said of the released model, why no more, and what is expressly not claimed.

An audit can refute a claim of forgetting, never certify one; so the words are "measured; no certificate", unless a certified
phase earned a certificate by all its assumptions.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.report.numbers import between, count, decimals, ratio

__all__ = ["WORDS", "claims"]

WORDS = "measured; no certificate"

WEAK = 10.0
"""Epsilons above this are called weak."""
NO_GUARANTEE = "An (ε, δ) guarantee of any kind."
NOT_CLAIMED = (
    "That no trace of the forgotten images is left: measurements can show a trace, never its absence.",
    NO_GUARANTEE,
    "Resistance to attacks that were not run: relearning, extraction, poisoning, attacks with shadow models.",
    "That every single image is forgotten: the figures describe groups, and a group can look right while one image does not.",
    "That other files are clean: the source data, the original weights and earlier checkpoints still hold what they held.",
    "Legal compliance: a report states facts; whether they suffice is for those who must answer for it.",
)


BEYOND = (
    "That the certificate covers anything but the last weights: this report and its figures were made with the forgotten images "
    "at hand, and earlier files of the run hold what they held."
)


def claims(facts: dict[str, Any]) -> dict[str, Any]:
    """`tier` (E exact, C certified; empty: measured, since an audit comes later), `words`, `reasons` (why no more), `may_say`
    (measured statements), `not_claimed`, `limits` (of these tests), `closeness` (a label and a text, or None)."""
    certificate, exactness = facts.get("certificate") or {}, facts.get("exactness") or {}
    granted, exact = bool(certificate.get("granted")), bool(exactness.get("granted"))
    return {
        "tier": "E" if exact else "C" if granted else "",
        "words": exactness["words"] if exact else _certified(certificate) if granted else WORDS,
        "reasons": [] if exact or granted else [*_inexact(exactness), *_withheld(certificate), *_reasons(facts)],
        "may_say": _may_say(facts),
        "limits": _limits(facts),
        "closeness": _closeness(facts),
        "not_claimed": [
            *([BEYOND] if granted else []),
            *(text for text in NOT_CLAIMED if not (granted and text == NO_GUARANTEE)),
        ],
    }


def _certified(certificate: dict[str, Any]) -> str:
    return (
        f"certified at (ε = {certificate['epsilon']:.4g}, δ = {certificate['delta']:.3g}), for the released weights taken alone, "
        f"with respect to {certificate['reference']}"
    )


def _inexact(exactness: dict[str, Any]) -> list[str]:
    failed = [item for item in exactness.get("conditions", ()) if item["state"] == "failed"]
    return [f"The model is not shown to be trained without these samples. {item['name']}, {item['text']}." for item in failed]


def _withheld(certificate: dict[str, Any]) -> list[str]:
    failed = [item for item in certificate.get("assumptions", ()) if item["state"] == "failed"]
    return [f"A certificate was asked for and is withheld. {item['name']}, {item['text']}." for item in failed]


def _reasons(facts: dict[str, Any]) -> list[str]:
    if not any(phase["phase"] in ("forget", "retain") for phase in facts["done"]["phases"]):
        return ["The method moves no weight: the released model is the original, and holds what it held."]
    if facts.get("certificate"):
        return []  # its assumptions say it
    reasons = [
        "At best it can be shown how far unlearning moved the model from the original. Forgetting is about its distance "
        "to a model that never saw the images, and no bound covers that.",
        "No calibrated noise was added, so nothing hides what the weights may still hold.",
    ]
    if facts["done"]["retention"]["mode"] in ("guarded", "joint"):
        reasons.append(f"In this run {facts['done']['retention']['excludes']}.")
    return reasons


def _may_say(facts: dict[str, Any]) -> list[str]:
    said = []
    for row in facts["distance"]:
        if row["split"] != "forget" or row["unlearned"]["value"] is None:
            continue
        own, before = row["unlearned"], row["original"]
        said.append(
            f"{row['group']}: on {count(row['n'])} forgotten images the errors lie at KS distance {decimals(own['value'])} "
            f"({between(own)}) from a retrained model’s; the original’s lie at {decimals(before['value'])}."
        )
    for row in facts["membership"]:
        own = row["unlearned"]
        if own["value"] is not None:
            said.append(
                f"{row['group']}: a membership test by error scores {decimals(own['value'])} ({between(own)}); "
                f"0.5 is chance. In words: {own['note']}."
            )
    own = facts["utility"]["unlearned"]
    if own["value"] is not None:
        said.append(f"On unseen images of kept kinds the error is {ratio(own['value'])} the retrained model’s ({between(own)}).")
    return said


def _closeness(facts: dict[str, Any]) -> dict[str, str] | None:
    """The statement that ascent with noise allows (the kind that arXiv 2502.04260 makes), under the name of what it is."""
    found = facts.get("closeness")
    if not found or not math.isfinite(found["epsilon"]):
        return None
    return {
        "label": "Closeness to the ascended original, not unlearning",
        "text": f"Ascent moved the weights by {found['moved']:.4g}, and each then got Gaussian noise of standard deviation "
        f"{found['noise']:.4g}. So the ascended weights are (ε = {found['epsilon']:.4g}, δ = {found['delta']:.3g})-close to the "
        "original model’s weights with the same noise. The original saw the images: the statement is best where nothing was "
        "forgotten, and says nothing about a model that never saw them.",
    }


def _price(facts: dict[str, Any]) -> list[str]:
    """What a certificate's figures mean, and what it cost."""
    certificate = facts.get("certificate") or {}
    if not certificate.get("granted"):
        return []
    epsilon = certificate["epsilon"]
    times = f"{math.exp(epsilon):,.3g}" if epsilon < 100 else f"10^{epsilon / math.log(10):.0f}"
    said = [
        f"ε = {epsilon:.4g} allows that what is seen of the weights is e^ε = {times} times as likely as it would be without the "
        f"forgotten images{'' if epsilon <= WEAK else ': so large an ε promises next to nothing'}."
    ]
    for row in facts.get("table", ()):
        before, after = row["original"]["error"], row["unlearned"]["error"]
        if row["split"] == "unseen_retain" and before and after is not None:
            said.append(
                f"The noise has its price: on unseen images of kept kinds the error is {ratio(after / before)} the original’s."
            )
    return said


def _limits(facts: dict[str, Any]) -> list[str]:
    limits = _price(facts)
    if facts["utility"]["unlearned"]["value"] is None:
        limits.append("Nothing was compared with a retrained model, so the main test of forgetting is missing.")
    else:
        limits.append("One retrained model is the yardstick. Two retrainings with different seeds also differ from each other.")
    blind = [row["group"] for row in facts["membership"] if row["original"]["value"] is not None and not row["power"]]
    for group in blind:
        limits.append(
            f"{group}: the membership test does not find these images in the original model either, so passing it shows nothing."
        )
    for row in facts["distance"]:
        before = row["original"]["value"]
        if row["split"] == "forget" and before is not None and before <= row["detectable"]:
            limits.append(
                f"{row['group']}: the original model is already within chance of the retrained one; there was little to forget."
            )
    for level in facts["levels"]:
        if level["already_unseen"]:
            limits.append(
                f"{level['group']}: these images already looked unseen to the original model; the run did no more than it must."
            )
    return limits
