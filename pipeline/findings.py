"""What an audit found and what training can prove of itself, as records between workers, stages and the command line."""

from __future__ import annotations

from typing import Literal

from pipeline.records import Assumption, FileRef, PhaseOutcome, record

__all__ = ["Audit", "Exactness", "Finding", "Found", "Says", "Series", "TrainedSlice", "TrainingOrder"]

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
