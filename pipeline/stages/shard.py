"""Stage `shard`: pack the source, index it, and cut the forget and retain shards of this run's batch."""

from __future__ import annotations

import json
import logging

from pipeline import component
from pipeline.config import RunConfig
from pipeline.data.batch import Settings
from pipeline.data.pack import PackedSource, pack
from pipeline.data.partition import COPIES, RUN_INDEX, partition
from pipeline.data.progress import Progress, in_lines
from pipeline.decode import canonical, decode
from pipeline.errors import IntegrityError
from pipeline.records import Manifest, RequestBatch, ShardRef
from pipeline.stages.runner import Job, Result
from pipeline.storage import exists, publish_bytes, read_bytes

__all__ = ["packed_source", "run"]

log = logging.getLogger("unlearn")

BATCH = "shards/batch.json"
QUARANTINE_SHOWN = 20


def _new_shards(manifest: Manifest) -> tuple[ShardRef, ...]:
    """Shards that this run wrote."""
    refs = (*manifest.split("forget").shards, *manifest.split("retain").shards)
    return tuple(ref for ref in refs if ref.origin != "original")


def packed_source(config: RunConfig, tell: Progress) -> tuple[PackedSource, str]:
    """The run's source as indexed shards, and its folder; packed or refreshed where that is due."""
    source, name = component.build("source", config.source), config.source["component"]
    packed, folder = pack(source, name=name, output=config.output, settings=config.shards, progress=tell)
    assert packed is not None  # only one task of several has none
    return packed, folder


def run(job: Job) -> Result:
    """Publish the run's shards, their index and, last, the manifest.

    Raises:
        ConfigError: a request that means nothing or everything.
        DataError: a source that cannot be found or read.
        IntegrityError: files differ from what was recorded.
    """
    where = job.path(BATCH)
    batch = decode(RequestBatch, json.loads(read_bytes(where)), where=where, error=IntegrityError)
    tell = in_lines(lambda line: log.info("shard: %s", line))
    packed, source_folder = packed_source(job.config, tell)
    for fault in packed.quarantine[:QUARANTINE_SHOWN]:
        log.warning("shard: set aside: %s: %s: %s", fault.uri, fault.key, fault.reason)
    manifest = partition(
        batch,
        packed,
        source_folder=source_folder,
        folder=job.folder,
        output=job.config.output,
        run_id=job.folder.rsplit("/", 1)[-1],
        seed=job.config.seed,
        settings=Settings(near_bits=job.config.shards.near_bits, max_pixels=job.config.images.max_pixels),
        progress=tell,
    )
    publish_bytes(job.path("manifest.json"), canonical(manifest))
    new = _new_shards(manifest)
    facts = {
        "training": manifest.split("original").samples,
        "forget": manifest.split("forget").samples,
        "retain": manifest.split("retain").samples,
        "calibration": manifest.split("calibration").samples,
        "holdout": manifest.split("holdout").samples,
        "shards_clean": manifest.shards_clean,
        "shards_rewritten": manifest.shards_rewritten,
        "quarantined": manifest.quarantined,
        "bytes_written": sum(ref.bytes for ref in new) + manifest.index[-1].bytes,
    }
    outputs = ("manifest.json", RUN_INDEX, BATCH, *(ref.uri for ref in new))
    listed = (COPIES,) if exists(job.path(COPIES)) else ()
    return Result(outputs=(*outputs, *listed), facts=facts)
