"""What an audit found, what training can prove of itself, and what a verdict decided: records between all floors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline.records import Assumption, FileRef, PhaseOutcome, record

__all__ = [
    "AUDITED",
    "MEASURED",
    "OVER",
    "TIERS",
    "Audit",
    "Exactness",
    "Finding",
    "Found",
    "Judged",
    "Says",
    "Series",
    "Tier",
    "TrainedSlice",
    "TrainingOrder",
    "Verdict",
]

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
    trainings: int = 1
    """Retrained models whose spread `low` and `high` cover; 1: they cover which images were judged."""
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


Tier = Literal["E", "C", "A", "D", ""]
TIERS: Mapping[str, str] = {"E": "exact", "C": "certified", "A": "audited", "D": "data only"}
"""From the strongest to the weakest. An empty tier claims nothing."""
MEASURED: dict[str, str] = {
    "utility": "error on unseen images of kept kinds, over the retrained model's",
    "kept": "error on unseen images of kept kinds, over the original's",
    "distance": "KS distance to the retrained model's errors on forgotten images beyond what chance reaches, of the worst group",
    "membership": "gap between the intervals of the membership score and of the retrained model's, of the worst group",
    "cost": "sample gradients, over those of retraining",
    "epsilon": "certified epsilon",
    "tier": "claim tier: E exact, C certified, A audited, D data only",
}
"""What a rule of a run's verdict can be about."""
AUDITED: dict[str, str] = {
    "attacks": "attacks that told the released model from the retrained one",
    "epsilon_low": "largest epsilon that an attack refuted",
    "blind": "attacks without the power to find the images in the original model",
}
"""What a rule can be about once the attacks have been run."""


@record
class Judged:
    """One rule, and how it went. `bound` is the rule in words; `value` is what was measured, None where it was not computed."""

    metric: str
    bound: str
    value: float | str | None
    low: float | None = None
    high: float | None = None
    state: Literal["kept", "broken", "not computed"]
    reason: str = ""
    note: str = ""


@record
class Verdict:
    """`passed` needs every rule kept; one broken is `failed`; `undecided`: none is broken, but one was not computed; `no rules`:
    the configuration sets none, so nothing was decided."""

    outcome: Literal["passed", "failed", "undecided", "no rules"]
    rules: tuple[Judged, ...] = ()
    schema: Literal["verdict/1"] = "verdict/1"

    @property
    def words(self) -> str:
        """The outcome, and which rules made it."""
        named = {
            state: ", ".join(rule.metric for rule in self.rules if rule.state == state) for state in ("broken", "not computed")
        }
        if self.outcome == "failed":
            return f"failed: {named['broken']}"
        if self.outcome == "undecided":
            return f"undecided: {named['not computed']} not computed"
        return f"passed: {len(self.rules)} rules kept" if self.rules else "no rules were set, so nothing was decided"


@record
class Audit:
    """All findings of a run. `passed` is None where no attack had the power to find anything."""

    run_id: str
    weights_sha256: str
    findings: tuple[Finding, ...]
    passed: bool | None
    tier: Tier = ""
    """What may be claimed of the released model after the attacks."""
    words: str
    confidence: float
    verdict: Verdict = Verdict(outcome="no rules")
    schema: Literal["audit/1"] = "audit/1"


@record
class TrainedSlice:
    """One stage of training: what the weights at its end have seen.

    samples: in this slice and all before it · set_digest: of exactly these, keys and contents, in any order; see
    `pipeline.data.slices` · seed: of their order · outcome: of the stage alone · weights: relative to the folder that holds
    `order/`, where they lie below the output folder.
    """

    samples: int
    set_digest: str
    seed: int
    outcome: PhaseOutcome
    weights: FileRef


@record
class TrainingOrder:
    """The data-order ledger of one file of weights: in which slices its samples were read, and what each stage left behind.

    Which sample is in which slice is a function of its key and `seed`, so no key stands here, and deleting a sample moves no
    other one.
    """

    weights: str
    """Name of the weights."""
    split: str
    slices: int
    """Slices of the whole training; `trained` has fewer while it is under way."""
    seed: int
    """Of the slices and of the initial weights."""
    settings: str
    """Digest of all that decides the weights beside samples and seed."""
    inputs: tuple[str, ...]
    """Fields of the configuration that name weights made elsewhere."""
    kept: int
    """Slices that were taken over from an earlier training; the others were trained on from there."""
    trained: tuple[TrainedSlice, ...]
    mark: str
    """Digest of the stage's configuration and inputs: whether it may go on from here."""
    schema: Literal["training-order/1"] = "training-order/1"


@record
class Exactness:
    """Whether weights were trained without the forgotten samples, by proof and not by measurement, and what it rests on."""

    granted: bool
    words: str
    route: Literal["retrain", "rewind"]
    conditions: tuple[Assumption, ...]
    schema: Literal["exactness/1"] = "exactness/1"

    @property
    def failed(self) -> tuple[Assumption, ...]:
        """Conditions that do not hold."""
        return tuple(item for item in self.conditions if item.state == "failed")
