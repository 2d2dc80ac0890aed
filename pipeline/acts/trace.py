"""Where the images that somebody asks about lie in the data of runs: read from the runs' own indexes, told as counts."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Collection, Mapping
from typing import TypeVar

from pipeline.data.selection import Chosen, Wanted, choose, means, wanted_by
from pipeline.data.tombstones import read_tombstones
from pipeline.decode import decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import DeletionRequest, FileRef, Manifest, RequestBatch
from pipeline.schedule_orders import TraceAnswer, TracedRun, TracedShard, TraceOrder
from pipeline.storage import exists, hash_file, join, read_bytes

__all__ = ["run"]

T = TypeVar("T")
SPLITS = ("original", "forget", "retain")


def run(order: TraceOrder) -> TraceAnswer:
    """Look the images up in each run's index; requests for what looks like an image are left out, for an index does not say that.

    Raises:
        IntegrityError: a manifest or a batch was changed.
    """
    return TraceAnswer(runs=tuple(_traced(folder, order.requests, order.skipped.get(folder, ())) for folder in order.folders))


def _traced(folder: str, asked: tuple[DeletionRequest, ...], before: Collection[str]) -> TracedRun:
    manifest = _read(Manifest, join(folder, "manifest.json"))
    if manifest is None:
        return TracedRun(folder=folder, state="gone")
    wanted = _wanted(asked, manifest.classes)
    parts, gone = _parts(folder, manifest)
    if not parts:
        return TracedRun(folder=folder, state="gone")
    chosen = choose(parts, wanted, len(manifest.classes))
    dead = _dead(folder, manifest, before)
    counts = {split: _counts(chosen, parts, dead if split != "forget" else frozenset()) for split in SPLITS}
    shards = tuple(
        TracedShard(split=split, uri=join(folder, ref.uri), sha256=ref.sha256, images=images)
        for split in SPLITS
        for ref in manifest.split(split).shards
        if (images := counts[split][join(folder, ref.index), ref.row_group])
    )
    totals = {split: sum(shard.images for shard in shards if shard.split == split) for split in SPLITS}
    batch = _read(RequestBatch, join(folder, "shards", "batch.json"))
    return TracedRun(
        folder=folder,
        state="part" if gone else "read",
        images=totals,
        shards=shards,
        requests=_meaning(batch, chosen, manifest.classes) if batch else (),
    )


def _read(cls: type[T], uri: str) -> T | None:
    if not exists(uri):
        return None
    try:
        return decode(cls, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
    except ValueError:
        raise IntegrityError(f"{uri}: changed after it was written", "restore the file") from None


def _wanted(asked: tuple[DeletionRequest, ...], classes: tuple[str, ...]) -> Wanted:
    """What the requests ask for; one that this source has no such class for asks for nothing here."""
    possible = []
    for request in (request for request in asked if request.selector.kind != "likeness"):
        with contextlib.suppress(ConfigError):
            wanted_by(RequestBatch(requests=(request,)), classes)
            possible.append(request)
    return wanted_by(RequestBatch(requests=tuple(possible)), classes)


def _parts(folder: str, manifest: Manifest) -> tuple[list[FileRef], int]:
    """The files of the index that are still there and unchanged, with addresses that stand alone, and the number of others."""
    parts, gone = [], 0
    for ref in manifest.index:
        uri = join(folder, ref.uri)
        # An erasure removes, or writes anew, what holds rows of deleted images.
        if exists(uri) and hash_file(uri).sha256 == ref.sha256:
            parts.append(dataclasses.replace(ref, uri=uri))
        else:
            gone += 1
    return parts, gone


def _dead(folder: str, manifest: Manifest, before: Collection[str]) -> frozenset[bytes]:
    """sha256 of the keys that the run's streams skipped from the beginning; what it was there to forget, it read."""
    source = posixpath.basename(manifest.source_folder)
    stones = read_tombstones(posixpath.dirname(folder)) if before else ()
    return frozenset(
        bytes.fromhex(key) for one in stones if one.source == source and one.batch_digest in before for key in one.keys
    )


def _counts(chosen: Chosen, parts: list[FileRef], dead: frozenset[bytes]) -> Mapping[tuple[str, int], int]:
    """How many of the images that were not skipped each row group of an index file holds."""
    places = zip(chosen.part.tolist(), chosen.row_group.tolist(), chosen.keys, strict=True)
    read = [(part, group) for part, group, key in places if hashlib.sha256(key.encode()).digest() not in dead]
    return collections.Counter((parts[part].uri, group) for part, group in read)


def _meaning(batch: RequestBatch, chosen: Chosen, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The requests of a batch that mean one of the images."""
    found = []
    for request in (request for request in batch.requests if request.selector.kind != "likeness"):
        with contextlib.suppress(ConfigError):
            wanted = wanted_by(RequestBatch(requests=(request,)), classes)
            if any(means(wanted, *row) for row in chosen.rows):
                found.append(request.request_id)
    return tuple(sorted(found))
