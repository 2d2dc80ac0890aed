"""Set the tombstones of a batch: streams skip its images from their next batch on, long before shards are rewritten."""

from __future__ import annotations

import hashlib
import posixpath

from pipeline.data.batch import Settings, Source, select
from pipeline.data.progress import in_lines
from pipeline.data.tombstones import Tombstones, write_tombstones
from pipeline.orders import BatchOrder, TombstoneAnswer
from pipeline.requests import batch_digest
from pipeline.stages.shard import packed_source

__all__ = ["run"]


def run(order: BatchOrder) -> TombstoneAnswer:
    """Find the images that the batch means, copies to be included among them, and publish their digests.

    Raises:
        ConfigError: a request that means nothing, or everything.
        DataError: a source that cannot be read.
    """
    config = order.config
    tell = in_lines(print)
    packed, folder = packed_source(config, tell)
    # A search for near copies decodes every image. Tombstones must not wait for it where no request asks for them.
    wanted = any(request.copies == "include" for request in order.batch.requests)
    bits = config.shards.near_bits if wanted else None
    settings = Settings(near_bits=bits, max_pixels=config.images.max_pixels)
    found = select(order.batch, Source(packed, folder), settings, progress=tell)
    stones = Tombstones(
        batch_digest=batch_digest(order.batch),
        source=posixpath.basename(folder),
        keys=tuple(sorted(hashlib.sha256(key.encode()).hexdigest() for key in found.chosen.keys)),
        images=tuple(sorted({mark.hex() for mark in found.chosen.digests})),
    )
    return TombstoneAnswer(file=write_tombstones(config.output, stones).uri, images=len(found.chosen))
