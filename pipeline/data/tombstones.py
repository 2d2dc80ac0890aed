"""Tombstones: images that must not be read any more, from the moment they are named, long before shards are rewritten.

One file a batch in `<output>/tombstones/`, holding digests only: sha256 of each key, by which streams of the same
source skip an image, and sha256 of its bytes, by which it is refused when it comes in again, in any source.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterable
from typing import Literal

from pipeline.decode import canonical, decode
from pipeline.errors import IntegrityError
from pipeline.records import FileRef, record
from pipeline.storage import exists, is_local, join, list_files, publish_bytes, read_bytes

__all__ = ["Tombstones", "deleted_images", "read_tombstones", "watch", "write_tombstones"]

FOLDER = "tombstones"
POLL_SECONDS = 5.0
"""How often a stream asks a remote folder for new tombstones. A local folder is looked at before each batch."""


@record
class Tombstones:
    """The images of one batch. `source` is the name of the packed source's folder."""

    batch_digest: str
    source: str
    keys: tuple[str, ...]
    images: tuple[str, ...]
    schema: Literal["tombstones/1"] = "tombstones/1"


def write_tombstones(output: str, stones: Tombstones) -> FileRef:
    """Publish the tombstones of a batch; every stream of the source heeds them from its next batch on."""
    return publish_bytes(join(output, FOLDER, f"{stones.source}-{stones.batch_digest[:8]}.json"), canonical(stones))


def _files(output: str) -> list[str]:
    folder = join(output, FOLDER)
    return list_files(folder, ".json") if exists(folder) else []


def _read(uri: str) -> Tombstones:
    try:
        stones = decode(Tombstones, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
        marks = {len(bytes.fromhex(mark)) for mark in (*stones.keys, *stones.images)}
    except ValueError:
        marks = {0}
    if marks - {32}:
        raise IntegrityError(f"{uri}: not tombstones", "restore the file")
    return stones


def read_tombstones(output: str) -> tuple[Tombstones, ...]:
    """The tombstones of all batches.

    Raises:
        IntegrityError: a file that is not tombstones. They are never skipped: what was deleted stays deleted.
    """
    return tuple(_read(uri) for uri in _files(output))


def deleted_images(output: str) -> frozenset[bytes]:
    """sha256 of every image with a tombstone."""
    return frozenset(bytes.fromhex(image) for stones in read_tombstones(output) for image in stones.images)


def _keys(stones: Iterable[Tombstones], source: str) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(key) for entry in stones if entry.source == source for key in entry.keys)


def watch(output: str, source: str) -> Callable[[], Container[bytes]]:
    """A function that gives sha256 of every key of `source` that has a tombstone now.

    It reads a file again only when the folder holds other files than before.
    """
    known: dict[str, Tombstones] = {}
    keys: frozenset[bytes] = frozenset()
    looked = float("-inf")

    def current() -> Container[bytes]:
        nonlocal keys, looked
        now = time.monotonic()
        if not is_local(output) and now - looked < POLL_SECONDS:
            return keys
        looked = now
        files = _files(output)
        if files != list(known):
            fresh = {uri: known.get(uri) or _read(uri) for uri in files}
            known.clear()
            known.update(fresh)
            keys = _keys(known.values(), source)
        return keys

    return current
