"""Orders and answers of the acts beside the chain: what the command line asks a worker, and what it gets back.

An act is a module of `pipeline.acts` with `run(order) -> answer`. Order and answer pass as JSON files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import NotNegativeFloat, RunConfig, ShardsConfig
from pipeline.records import RequestBatch, record

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


ACTS: Mapping[str, type[Any]] = {
    "index": IndexOrder,
    "tombstone": BatchOrder,
    "forecast": BatchOrder,
    "erase": EraseOrder,
    "compare": CompareOrder,
}
"""The order that each act takes."""
