"""Stage `shard`: pack the source, index it, and cut the forget and retain shards of this run's batch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time

from pipeline import component
from pipeline.data.index import Progress
from pipeline.data.pack import pack
from pipeline.data.partition import RUN_INDEX, partition
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import Manifest, RequestBatch, ShardRef
from pipeline.stages.runner import Job, Result
from pipeline.storage import is_local, join, publish_bytes, read_bytes, remove_tree

__all__ = ["run"]

log = logging.getLogger("unlearn")

BATCH = "shards/batch.json"
LOG_SECONDS = 2.0


def _progress() -> Progress:
    """Log lines with the rate of the present act, at most one in two seconds."""
    started: dict[str, float] = {}
    last = 0.0

    def tell(act: str, done: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun = started.setdefault(act, now)
        if now - last >= LOG_SECONDS and now > begun:
            log.info("shard: %s: %d images, %.0f images/s", act, done, done / (now - begun))
            last = now

    return tell


def _new_shards(manifest: Manifest) -> tuple[ShardRef, ...]:
    """Shards that this run wrote."""
    refs = (*manifest.split("forget").shards, *manifest.split("retain").shards)
    return tuple(ref for ref in refs if ref.origin != "original")


def run(job: Job) -> Result:
    """Publish the run's shards, their index and, last, the manifest.

    Raises:
        ConfigError: a request that means nothing or everything.
        DataError: a source that cannot be found or read.
        IntegrityError: files differ from what was recorded.
    """
    section = job.config.source
    source = component.build("source", section)
    where = job.path(BATCH)
    batch = decode(RequestBatch, json.loads(read_bytes(where)), where=where, error=IntegrityError)
    started = time.time()
    packed, source_folder = pack(source, name=section["component"], output=job.config.output, progress=_progress())
    try:
        manifest = partition(
            batch,
            packed,
            source_folder=source_folder,
            folder=job.folder,
            output=job.config.output,
            run_id=job.folder.rsplit("/", 1)[-1],
            seed=job.config.seed,
        )
    except ConfigError:
        if is_local(source_folder) and os.stat(join(source_folder, "source.json")).st_mtime >= started:
            remove_tree(source_folder)  # a refused request leaves nothing behind that it made
            with contextlib.suppress(OSError):  # other sources may lie there
                os.rmdir(os.path.dirname(source_folder))
        raise
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
        "bytes_written": sum(ref.bytes for ref in new) + manifest.index.bytes,
    }
    return Result(outputs=("manifest.json", RUN_INDEX, BATCH, *(ref.uri for ref in new)), facts=facts)
