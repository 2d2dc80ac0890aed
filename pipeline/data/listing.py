"""What the storage says of shards without reading them, and how a list of shards falls into parts of the index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.decode import digest
from pipeline.errors import StorageError
from pipeline.records import record
from pipeline.storage import info

__all__ = ["Listed", "list_shards", "listing_digest", "look_at", "parts_of"]

THREADS = 16
# Whatever the storage offers that changes with the content, the strongest first.
STAMPS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created")
# A part ends where a shard's name says so: a new shard among a million moves the ends of one part, not of all.
SHARDS_PER_PART = 32
MOST_SHARDS = 128


@record
class Listed:
    """A shard as the storage lists it. `stamp` changes with the content: ETag, checksum, or time of change."""

    uri: str
    bytes: int
    stamp: str


def look_at(uri: str) -> tuple[int, str]:
    """Size of a file and the storage's own change mark; reads no content. Raises StorageError."""
    facts = info(uri)
    return int(facts["size"]), next((str(facts[name]) for name in STAMPS if facts.get(name)), "")


def list_shards(uris: Sequence[str], *, absent: Iterable[str] = ()) -> tuple[Listed, ...]:
    """Size and stamp of each shard, in order; those in `absent` (erased before) may be missing.

    Raises:
        StorageError: a shard that is not there, or a storage that refuses.
    """
    gone = frozenset(absent)

    def look(uri: str) -> Listed | None:
        try:
            num_bytes, mark = look_at(uri)
        except StorageError:
            if uri in gone:
                return None
            raise
        return Listed(uri=uri, bytes=num_bytes, stamp=mark)

    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(listed for listed in pool.map(look, uris) if listed is not None)


def listing_digest(listed: Sequence[Listed]) -> str:
    """Digest of names, sizes and stamps; changes when any shard does."""
    return digest([(shard.uri, shard.bytes, shard.stamp) for shard in listed])


def parts_of(listed: Sequence[Listed]) -> Iterator[tuple[Listed, ...]]:
    """Cut a list of shards into consecutive parts, about `SHARDS_PER_PART` shards each, by the shards' names alone."""
    part: list[Listed] = []
    for shard in listed:
        part.append(shard)
        ends = int.from_bytes(hashlib.sha256(shard.uri.encode()).digest()[:4], "big") % SHARDS_PER_PART == 0
        if ends or len(part) == MOST_SHARDS:
            yield tuple(part)
            part = []
    if part:
        yield tuple(part)
