"""What schedule and lineage ask a worker, who alone reads indexes, and what they get back: names of requests, and counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pipeline.config import RunConfig
from pipeline.records import DeletionRequest, RequestBatch, record

__all__ = ["SiftAnswer", "SiftOrder", "TraceAnswer", "TraceOrder", "TracedRun", "TracedShard"]


@record
class SiftOrder:
    """Which requests of a batch mean no training image?"""

    config: RunConfig
    batch: RequestBatch


@record
class SiftAnswer:
    """Their names. `indexed`: whether the source could say."""

    indexed: bool
    unmatched: tuple[str, ...] = ()


@record
class TraceOrder:
    """Where do the images that `requests` mean lie in the data of runs, and which of the runs' own requests mean them too?

    `skipped`: folder -> digests of batches whose images had tombstones before that run began: it did not read them.
    """

    folders: tuple[str, ...]
    requests: tuple[DeletionRequest, ...]
    skipped: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@record
class TracedShard:
    """A shard that holds some of the images: `images` of them. `split` as in the manifest; `uri` stands alone."""

    split: str
    uri: str
    sha256: str
    images: int


@record
class TracedRun:
    """What one run's index says.

    `state`: `read`; `part`, where files of the index were removed or rewritten since, as an erasure does; `gone`, where nothing
    is left to look in. `requests` names those of the run's batch that mean one of the images.
    """

    folder: str
    state: Literal["read", "part", "gone"]
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shards: tuple[TracedShard, ...] = ()
    requests: tuple[str, ...] = ()


@record
class TraceAnswer:
    """One entry a run; no keys."""

    runs: tuple[TracedRun, ...]
