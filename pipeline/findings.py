"""What an audit found, as records that pass between its worker and the command line."""

from __future__ import annotations

from typing import Literal

from pipeline.records import record

__all__ = ["OVER", "Audit", "Finding", "Found", "Says", "Series"]

OVER = "over-ascended"
"""The control that was driven too far."""

Says = Literal["still there", "over-forgotten", "not told apart", "no power", "not computed"]


@record
class Finding:
    """One attack on one model's images of one group, beside the retrained model.

    `value` is 0 where nobody can tell the model from the retrained one; below 0 the images are better known than there, above it
    they are more alien. Two-sided, because either gives an image away. `measure` says what the value is.
    """

    attack: str
    group: str
    subject: str
    measure: str
    says: Says
    value: float | None = None
    low: float | None = None
    high: float | None = None
    kept_low: float | None = None
    """The same attack on kept images that no model was trained on: the difference between two trainings. None: not measured."""
    kept_high: float | None = None
    samples: int = 0
    epsilon_low: float | None = None
    """Largest epsilon that the attack refutes at the audit's confidence; None: the attack bounds no epsilon."""
    note: str = ""


@record
class Series:
    """The figures behind a finding, for its pictures: ROC curve and null distribution.

    own: a score of each image in the model under attack (or of images that it was trained on) · other: what these are told from,
    the same score in the retrained model (or of images it never saw); higher means more like a member in both · null: draws of
    the attack's statistic where nothing is left to find · observed: the statistic itself.
    """

    attack: str
    group: str
    subject: str
    score: str
    """What one score is, in words for an axis."""
    own: tuple[float, ...]
    other: tuple[float, ...]
    statistic: str = ""
    null: tuple[float, ...] = ()
    observed: float | None = None


@record
class Found:
    """What one attack found of one group, and the figures behind it."""

    findings: tuple[Finding, ...]
    series: tuple[Series, ...] = ()


@record
class Audit:
    """All findings of a run. `passed` is None where no attack had the power to find anything."""

    run_id: str
    weights_sha256: str
    findings: tuple[Finding, ...]
    passed: bool | None
    words: str
    confidence: float
    schema: Literal["audit/1"] = "audit/1"
