"""What a source is: labelled images to be packed, or shards that are there already.

Training images are those that the original model saw; unseen images were never trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, runtime_checkable

from pipeline.data.listing import list_shards, listing_digest
from pipeline.records import record

__all__ = ["ImageSource", "ShardSource", "Source", "SourceImage", "fingerprint"]


@record
class SourceImage:
    """One encoded image with its key and class number. The key has no dot and no slash."""

    key: str
    image: bytes
    ext: Literal["png", "jpg"]
    label: int


class Source(Protocol):
    """What all sources have."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them. Empty: a shard source that names none."""
        ...

    def identity(self) -> str:
        """Digest of what would be packed, found without reading the images. Of shards that lie where they are, the
        address: they may be added to and changed, and their index is refreshed."""
        ...


class ImageSource(Source, Protocol):
    """A source of images that are still to be packed into shards. Both iterators always give the same order."""

    def training(self) -> Iterator[SourceImage]:
        """The images that the original model saw."""
        ...

    def unseen(self) -> Iterator[SourceImage]:
        """Images that no model trains on."""
        ...


@runtime_checkable
class ShardSource(Source, Protocol):
    """A source that is WebDataset shards already; they are referenced where they lie."""

    def training_shards(self) -> tuple[str, ...]:
        """URIs of the shards that the original model saw."""
        ...

    def unseen_shards(self) -> tuple[str, ...]:
        """URIs of the shards that no model trains on; may be none."""
        ...


def fingerprint(uris: Iterable[str]) -> str:
    """Digest of names, sizes and the storage's own change marks; reads no content.

    Raises:
        ConfigError: an address that is not plain storage.
        StorageError: a file that is not there.
    """
    return listing_digest(list_shards(tuple(uris)))
