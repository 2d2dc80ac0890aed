"""The frozen records that pass between stages; no torch, no I/O.

A record is immutable, keyword-only and slotted, refuses unknown fields when decoded (`pipeline.decode`) and is
addressed by the sha256 of its canonical JSON. Raw image keys and subjects appear in `DeletionRequest` only; it lies in a run's
private `shards/` folder beside the index and is never published, logged or reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, dataclass_transform

__all__ = [
    "Assumption",
    "Calibration",
    "Certificate",
    "Coverage",
    "DeletionRequest",
    "Erasure",
    "Evaluation",
    "Evaluations",
    "FileRef",
    "Gone",
    "Group",
    "GroupLevel",
    "Manifest",
    "MetricResult",
    "NoisyMeasures",
    "PhaseOutcome",
    "Receipt",
    "RequestBatch",
    "Selector",
    "ShardRef",
    "Split",
    "record",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only, slotted dataclass that refuses unknown fields when decoded."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)


@record
class Selector:
    """Which images a request means."""

    kind: Literal["keys", "label", "prefix", "digest", "likeness"]
    values: tuple[str, ...]


@record
class DeletionRequest:
    """One person's or owner's wish that images be forgotten."""

    request_id: str
    selector: Selector
    copies: Literal["stop", "include", "ignore"] = "stop"
    """What happens when retained images turn out to be copies of images that this request means."""
    subject: str = ""
    received_at: str = ""
    due_at: str = ""
    basis: str = ""
    note: str = ""


@record
class RequestBatch:
    """The requests that one run serves."""

    requests: tuple[DeletionRequest, ...]
    schema: Literal["request-batch/1"] = "request-batch/1"


@record
class FileRef:
    """One published file. `uri` is relative to the run folder where the file lies below the output folder."""

    uri: str
    sha256: str
    bytes: int


@record
class ShardRef:
    """One WebDataset shard, and where its rows of the index lie. `origin` says whether it is the source's own file, a
    rewritten copy without the forgotten samples, or a shard of forgotten samples. `samples` counts the rows, which in a
    split may be a part of the shard."""

    uri: str
    sha256: str
    bytes: int
    samples: int
    origin: Literal["original", "rewritten", "forget"]
    keys_digest: str = ""
    """`KeysDigest` of the rows."""
    index: str = ""
    """Parquet file that holds the rows, as one row group."""
    row_group: int = 0


@record
class Group:
    """Forget images of one kind: a whole class, or single images. Each group has its own level lambda."""

    name: str
    kind: Literal["class", "images"]
    labels: tuple[int, ...]
    samples: int


@record
class Split:
    """A set of samples: `original` is what the original model saw, `calibration` and `holdout` were never trained on."""

    name: Literal["original", "forget", "retain", "calibration", "holdout"]
    shards: tuple[ShardRef, ...]
    samples: int
    keys_digest: str


@record
class Manifest:
    """What the run reads: groups, splits, shards by digest, and the index that locates every sample."""

    run_id: str
    batch_digest: str
    requests: int
    source: str
    source_digest: str
    source_folder: str
    """Where the packed source lies, relative to the run folder where it lies below the output folder."""
    classes: tuple[str, ...]
    seed: int
    groups: tuple[Group, ...]
    splits: tuple[Split, ...]
    index: tuple[FileRef, ...]
    """The Parquet files that hold the rows of all splits: parts of the source's index, and the run's own."""
    shards_clean: int
    shards_rewritten: int
    quarantined: int = 0
    """Samples and shards of the source that were set aside as faulty."""
    exact_copies: int = 0
    """Retained images whose bytes equal those of a forgotten one, by the requests' leave."""
    near_copies: int | None = None
    """Retained images that look like a forgotten one, by the requests' leave; None: not looked for."""
    schema: Literal["manifest/2"] = "manifest/2"

    def split(self, name: str) -> Split:
        """The split called `name`; KeyError if the manifest has none."""
        for split in self.splits:
            if split.name == name:
                return split
        raise KeyError(name)


@record
class GroupLevel:
    """The out-of-distribution level lambda of one group, and how it was found.

    `level`, `low` and `high` are mean training losses (for the autoencoder: mean squared error in the hidden region,
    pixels in [0, 1]). `auc` is the probability that a forget image has a lower error than a reference image that the
    original never saw; 0.5 means indistinguishable.
    """

    group: str
    method: Literal["number", "held_out", "shadow"]
    level: float
    low: float
    high: float
    original_error: float
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    already_unseen: bool
    samples: int


@record
class Calibration:
    """Levels for all groups, the original's error on unseen retained images, and what the calibration cost."""

    levels: tuple[GroupLevel, ...]
    retain_error: float
    sample_gradients: int
    schema: Literal["calibration/1"] = "calibration/1"


@record
class Coverage:
    """Proof of what a phase read: every key the same number of times, apart from `skipped` reads of images with a
    tombstone. Digests are order-free sums of key hashes, the skipped ones included."""

    split: str
    passes: int
    samples_expected: int
    samples_seen: int
    keys_digest: str
    expected_digest: str
    complete: bool
    skipped: int = 0


@record
class PhaseOutcome:
    """How one phase ended."""

    phase: str
    reason: str
    steps: int
    samples: int
    sample_gradients: int
    seconds: float
    parameters: int
    coverage: tuple[Coverage, ...] = ()
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    schema: Literal["phase/1"] = "phase/1"


@record
class NoisyMeasures:
    """What a certified phase did, measured on the weights that it wrote: see `pipeline.engine.noisy` for the lengths.

    planned: steps that the mechanism was accounted for · dimension: weights in the vector · buffers: names of buffers that are
    not as the model is built, or carry statistics of data · outside: names of weights that are not in the vector and not those of
    the declared base · held_in: files of the run in which the noise's key was found · destroyed: the key was overwritten · reads:
    splits that were read · left: files that the phase left beside its last weights · other_settings: a run of the same batch that
    was certified with other settings before, or empty · base_sha256: of the declared base
    """

    steps: int
    planned: int
    dimension: int
    start_norm: float
    step_norm: float
    noise_low: float
    noise_high: float
    ball_norm: float | None
    weights_norm: float
    buffers: tuple[str, ...]
    outside: tuple[str, ...]
    held_in: tuple[str, ...]
    destroyed: bool
    reads: tuple[str, ...]
    left: tuple[str, ...]
    other_settings: str
    base_sha256: str = ""
    schema: Literal["noisy-measures/1"] = "noisy-measures/1"


@record
class Assumption:
    """One condition of a certificate, and whether it was seen to hold."""

    name: str
    state: Literal["checked", "declared", "failed"]
    text: str


@record
class Certificate:
    """What is promised of one file of weights, or why nothing is. `epsilon` and all numbers of the account are None where one
    assumption failed."""

    granted: bool
    epsilon: float | None
    delta: float | None
    mechanism: str
    reference: str
    """The procedure whose weights cannot be told from these."""
    accountant: str
    formula: float | None
    """Epsilon by our own formula, beside the accountant's."""
    assumptions: tuple[Assumption, ...]
    schema: Literal["certificate/1"] = "certificate/1"

    @property
    def failed(self) -> tuple[Assumption, ...]:
        """Assumptions that do not hold."""
        return tuple(item for item in self.assumptions if item.state == "failed")


@record
class MetricResult:
    """One figure with its bootstrap interval. `value` is None when it was not computed, and `note` says why."""

    name: str
    split: str
    group: str
    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    better: Literal["lower", "higher", "reference"] = "reference"
    note: str = ""


@record
class Evaluation:
    """All figures of one subject: original, unlearned or retrained."""

    subject: str
    results: tuple[MetricResult, ...]
    schema: Literal["evaluation/1"] = "evaluation/1"

    def find(self, name: str, split: str, group: str) -> MetricResult | None:
        """The result with this name, split and group, or None."""
        for result in self.results:
            if (result.name, result.split, result.group) == (name, split, group):
                return result
        return None


@record
class Evaluations:
    """What a run measured: one evaluation a subject, in the order original, unlearned, retrained."""

    evaluations: tuple[Evaluation, ...]
    schema: Literal["evaluations/1"] = "evaluations/1"

    def subject(self, name: str) -> Evaluation | None:
        """The evaluation of the subject called `name`, or None."""
        for evaluation in self.evaluations:
            if evaluation.subject == name:
                return evaluation
        return None


@record
class Gone:
    """A version of an object that was removed, and the sha256 that its bytes were known by; empty where none was."""

    uri: str
    version: str
    bytes: int
    sha256: str


@record
class Erasure:
    """Proof that the images of a batch were removed from the source: what went, what took its place, what was swept.

    `remaining` names what this program does not remove; `swept` what was looked at afterwards, and how often.
    """

    run_id: str
    batch_digest: str
    source: str
    generation: int
    images: int
    removed: tuple[Gone, ...]
    replaced: tuple[FileRef, ...]
    uploads_aborted: int
    cached_ranges: int
    swept: Mapping[str, int]
    remaining: tuple[str, ...]
    started_at: str
    ended_at: str
    schema: Literal["erasure/1"] = "erasure/1"


@record
class Receipt:
    """Proof that a stage ran: written last. `inputs` maps each needed stage to the digest of its outputs."""

    stage: str
    inputs: Mapping[str, str]
    outputs: tuple[FileRef, ...]
    config_digest: str
    code_version: str
    world_size: int
    started_at: str
    ended_at: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schema: Literal["receipt/1"] = "receipt/1"
