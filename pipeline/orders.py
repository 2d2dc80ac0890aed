"""Orders and answers of the acts beside the chain: what the command line asks a worker, and what it gets back.

An act is a module of `pipeline.acts` with `run(order) -> answer`. Order and answer pass as JSON files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.audit_orders import AuditOrder, PlantedOrder, ShadowsOrder
from pipeline.config import NotNegativeFloat, RunConfig, ShardsConfig
from pipeline.records import RequestBatch, record
from pipeline.request_orders import LikenessOrder, LookupOrder
from pipeline.schedule_orders import SiftOrder, TraceOrder

__all__ = [
    "ACTS",
    "BatchOrder",
    "Budget",
    "CompareAnswer",
    "CompareOrder",
    "ComparedRun",
    "EraseOrder",
    "ErasurePlan",
    "Forecast",
    "IndexAnswer",
    "IndexOrder",
    "Linear",
    "Machine",
    "MeasureAnswer",
    "MeasureOrder",
    "PhaseFacts",
    "PictureAnswer",
    "PictureOrder",
    "PriceAnswer",
    "PriceOrder",
    "ProbeOrder",
    "Series",
    "TombstoneAnswer",
]


@record
class IndexOrder:
    """Build or refresh the index of a source. `task` is (i, n): only every n-th part, from the i-th on."""

    source: Mapping[str, Any]
    output: str
    shards: ShardsConfig = ShardsConfig()
    task: tuple[int, int] = (0, 1)


@record
class IndexAnswer:
    """What the index holds now. `complete` is false for one task of several, and then the counts are 0."""

    folder: str
    complete: bool
    generation: int = 0
    shards: int = 0
    training: int = 0
    unseen: int = 0
    bytes: int = 0
    classes: int = 0
    quarantine: tuple[str, ...] = ()


@record
class BatchOrder:
    """Something about one batch of a run: tombstones, or a forecast."""

    config: RunConfig
    batch: RequestBatch


@record
class TombstoneAnswer:
    """What streams skip from now on."""

    file: str
    images: int


@record
class Forecast:
    """What a batch would do to a source that is indexed: nothing is read but the index.

    `rewrite` names the shards that hold a forgotten image. `bytes_to_rewrite` is their size; cutting reads them twice,
    once to check them and once to copy. `bytes_of` gives the size of the shards of each split that a pass reads.
    """

    forget_samples: int
    retain_samples: int
    shards_clean: int
    rewrite: tuple[str, ...]
    bytes_to_rewrite: int
    index_bytes: int
    bytes_of: Mapping[str, int]
    groups: tuple[str, ...]


@record
class EraseOrder:
    """Erase the images of a finished run from their source, or (`do` false) say what that would remove."""

    folder: str
    do: bool


@record
class ErasurePlan:
    """What an erasure would remove. `locked` says what cannot be removed, and before which date."""

    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    versions: int
    bytes: int
    images: int
    locked: tuple[str, ...]
    remaining: tuple[str, ...]


@record
class ComparedRun:
    """One seed's run of a comparison. `failed` says of each method that is not in its evaluation why; `folder` is empty
    where none was left to evaluate."""

    seed: int
    folder: str
    failed: Mapping[str, str]


@record
class Budget:
    """What a method may cost, as a share of retraining, and lose on unseen retained images, over the retrained model."""

    cost: NotNegativeFloat = 0.20
    loss: NotNegativeFloat = 0.03


@record
class CompareOrder:
    """Draw up the comparison of finished runs in `folder`. `made_from` is noted in it, and tells whether it is current."""

    folder: str
    name: str
    methods: Mapping[str, Mapping[str, Any]]
    runs: tuple[ComparedRun, ...]
    budget: Budget
    made_from: str


@record
class CompareAnswer:
    """The files of the comparison, in its folder."""

    folder: str
    files: tuple[str, ...]


@record
class Linear:
    """Something that grows with samples: `fixed + each * samples`."""

    fixed: float
    each: float

    def at(self, samples: float) -> float:
        """The value for so many samples."""
        return self.fixed + self.each * samples


@record
class MeasureOrder:
    """Find out what the phases of a run compute, on GPUs or on processors. `groups` are the kinds of its groups of forget images;
    `started` is the wall clock when the worker was started."""

    config: RunConfig
    groups: tuple[str, ...] = ("class",)
    gpu: bool = False
    started: float = 0.0


@record
class PhaseFacts:
    """One phase of training, as its real loss computes it. Samples are of all streams together, FLOP as two for a
    multiplication with its addition; bytes are those alive at once beside weights, gradients and optimizer states."""

    phase: str
    """`train` (the retrained reference too), `calibrate` (a shadow), `forget` or `retain`."""
    parameters: int
    trained: int
    largest: int
    """Elements of the largest parameter that moves."""
    buffer_bytes: int
    flop: Linear
    """Of forward and backward, recomputation included."""
    activations: Linear
    """Bytes."""
    companions: int
    """Frozen fp32 models (teacher, shadow) that every rank holds whole beside the one that moves."""
    calls: int
    """Passes through the model that moves, in a step."""
    quiet_calls: int
    """Passes through the others, without gradient."""
    sums: int
    """Sums over ranks of a few numbers, in a step's loss."""
    reads: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    passes: int | None = None
    share: float | None = None
    probe_steps: int = 0
    """Steps between looks at unseen images; 0: none."""
    leveled: bool = False
    """Whether the forget images' losses are measured after each pass."""
    steps: int | None = None
    """Of a phase whose length is neither passes nor a share."""
    prepares: bool = False
    """Whether the method does something with the forget images before the first step, which is not counted here."""


@record
class MeasureAnswer:
    """What a run's model computes, and what a process of it needs before it does anything."""

    image_bytes: int
    """Of a decoded image."""
    draws: int
    """Forward passes behind the loss of one image where losses are measured."""
    forward_flop: float
    """A sample's loss without gradient."""
    forward_bytes: Linear
    """Alive at once in it, beside weights."""
    complete_flop: float
    """A completed image."""
    complete_bytes: Linear
    """Alive at once, beside weights."""
    process_bytes: int
    """Resident in a process that has loaded all it needs, before there is a model."""
    start_seconds: float
    """Until it had loaded that."""
    phases: tuple[PhaseFacts, ...]
    calibration: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of the method's calibration: `shadow_share` (0 where no shadow is trained) and `samples`; empty without calibration."""


@record
class ProbeOrder:
    """Take the times of this machine with the run's own engine; carried out by all ranks of a node at once.

    samples: of one rank's part of a batch, two sizes or more, increasing · look: images whose losses one rank measures at once at
    most · sample_bytes: of a stored image, 0 where that is not
    known · folder: where checkpoints are written for a moment · started: the wall clock when the ranks were started
    """

    config: RunConfig
    samples: tuple[int, ...]
    look: int
    sample_bytes: int
    folder: str
    started: float


@record
class Machine:
    """What a probe found with `ranks` ranks at work at once: medians of the slowest rank."""

    ranks: int
    threads: int
    step_seconds: Mapping[str, float]
    """Samples of a rank, as text -> seconds of loss and backward, communication included."""
    call_seconds: float
    """What a step takes longer when its samples pass through the model in two parts."""
    update_seconds: float
    """The optimizer's step, communication included."""
    first_step_seconds: float
    start_seconds: float
    """From the start of the process group to a built engine."""
    network: tuple[tuple[int, float], ...]
    """(bytes, seconds) of an all-reduce; empty with one rank."""
    decode_seconds: float | None
    """Of one stored image, on one thread; None: its size is not known."""
    decode_threads: int
    checkpoint_bytes: int
    checkpoint_seconds: float
    """Written and hashed, by all ranks."""
    process_bytes: int
    """Resident in the largest rank, once it had loaded all and had no model."""
    mapped_bytes: int
    """Of them, of files that are mapped: programs and libraries."""
    peak_bytes: Mapping[str, int]
    """Samples of a rank, as text -> resident in the largest rank, at its peak in steps of this size and of smaller ones."""
    look: int
    look_bytes: int
    """What measuring the losses of `look` images takes on top of what is held, without gradient, in the largest rank."""
    load: float
    """Of the machine before the probe began: runnable processes, averaged over a minute."""


@record
class PriceOrder:
    """Tell what the certificate of a run would cost."""

    config: RunConfig
    folder: str
    """Of the run; the loss of utility is measured where it has a trained original already."""


@record
class PriceAnswer:
    """What a certificate costs, before it is bought.

    dimension: weights that get noise · noise: its standard deviation, a weight and step · noise_norm: of all of it, in the last
    weights · ratio: of that to `radius` · loss_before, loss_after: mean loss of the original on unseen retained images, and with
    its weights drawn into the ball and that noise added, before any retention; None with the reason in `note`
    """

    epsilon: float
    delta: float
    dimension: int
    steps: int
    radius: float
    noise: float
    noise_norm: float
    ratio: float
    loss_before: float | None
    loss_after: float | None
    images: int
    note: str = ""


@record
class Series:
    """One line of a picture: (x, y) points, and the x up to which the run's own settings allow it."""

    name: str
    points: tuple[tuple[float, float], ...]
    allowed: float


@record
class PictureOrder:
    """Draw time and cost by the number of ranks into a PNG file."""

    file: str
    title: str
    unit: str
    """What a rank is: `GPUs` or `ranks`."""
    hours: tuple[Series, ...]
    cost: Series
    cost_unit: str
    marks: Mapping[str, float]
    """Name of a line -> the number of ranks at which it gets a ring."""
    ring: str
    """What a ring means."""
    note: str


@record
class PictureAnswer:
    """The picture."""

    file: str


ACTS: Mapping[str, type[Any]] = {
    "index": IndexOrder,
    "tombstone": BatchOrder,
    "lookup": LookupOrder,
    "likeness": LikenessOrder,
    "forecast": BatchOrder,
    "erase": EraseOrder,
    "compare": CompareOrder,
    "measure": MeasureOrder,
    "probe": ProbeOrder,
    "picture": PictureOrder,
    "price": PriceOrder,
    "audit": AuditOrder,
    "planted": PlantedOrder,
    "sift": SiftOrder,
    "trace": TraceOrder,
    "shadows": ShadowsOrder,
}
"""The order that each act takes."""
