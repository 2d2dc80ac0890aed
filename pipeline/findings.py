"""What an audit found, as records that pass between its worker and the command line."""

from __future__ import annotations

from typing import Literal

from pipeline.records import record

__all__ = ["Audit", "Finding", "Says"]

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
    note: str = ""


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
