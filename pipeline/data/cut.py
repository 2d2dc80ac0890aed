"""Cut forgotten samples out of shards: rewritten shards without them, and forget shards with nothing else.

Only shards that hold a forgotten key are read. Samples are copied byte for byte, with their tar headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.data.index import map_shards
from pipeline.data.shards import copy_sample, finish_tar, image_position, read_shard
from pipeline.errors import IntegrityError
from pipeline.records import ShardRef, record
from pipeline.storage import open_read, publish

__all__ = ["Piece", "Taken", "cut_shards", "write_forget_shards"]


@record
class Piece:
    """One source shard to be cut: its address and digest, the keys to take out, where the rest goes, and a local file
    for what is taken."""

    source: str
    sha256: str
    forgotten: frozenset[str]
    target: str
    spool: str


@record
class Taken:
    """A forgotten sample's bytes: `start` and `length` in a spool file; its image begins `image` bytes further."""

    spool: str
    start: int
    length: int
    image: int


@record
class _Cut:
    rewritten: ShardRef | None
    kept: Mapping[str, int]
    taken: Mapping[str, Taken]


def _cut(piece: Piece) -> _Cut:
    samples, ref = read_shard(piece.source)
    if ref.sha256 != piece.sha256:
        raise IntegrityError(f"{piece.source}: changed since it was indexed", "restore the shard, or remove its source's folder")
    with open_read(piece.source) as stream:
        taken: dict[str, Taken] = {}
        with open(piece.spool, "wb") as spool:
            for sample in samples:
                if sample.key in piece.forgotten:
                    start, content = spool.tell(), copy_sample(sample, stream)
                    spool.write(content)
                    position = image_position(sample)
                    taken[sample.key] = Taken(spool=piece.spool, start=start, length=len(content), image=position)
        rest = [sample for sample in samples if sample.key not in piece.forgotten]
        if not rest:
            return _Cut(rewritten=None, kept={}, taken=taken)
        kept: dict[str, int] = {}

        def parts() -> Iterator[bytes]:
            place = 0
            for sample in rest:
                kept[sample.key] = place + image_position(sample)
                content = copy_sample(sample, stream)
                place += len(content)
                yield content

        with publish(piece.target) as out:
            finish_tar(out, parts())
    written = out.ref
    shard = ShardRef(uri=written.uri, sha256=written.sha256, bytes=written.bytes, samples=len(rest), origin="rewritten")
    return _Cut(rewritten=shard, kept=kept, taken=taken)


def cut_shards(
    pieces: Sequence[Piece], *, workers: int = 0
) -> tuple[tuple[ShardRef | None, ...], dict[str, int], dict[str, Taken]]:
    """Cut each shard; the result does not depend on `workers`.

    Returns:
        A rewritten shard for each piece, None where nothing is left of it; the offsets of kept images by key; and where
        the forgotten samples lie, by key.

    Raises:
        IntegrityError: a shard is not the one that was indexed.
        DataError: a shard cannot be read.
        StorageError: no space, or no permission.
    """
    shards: list[ShardRef | None] = []
    kept: dict[str, int] = {}
    taken: dict[str, Taken] = {}
    for cut in map_shards(_cut, pieces, workers=workers):
        shards.append(cut.rewritten)
        kept.update(cut.kept)
        taken.update(cut.taken)
    return tuple(shards), kept, taken


def write_forget_shards(
    keys: Sequence[str], taken: Mapping[str, Taken], *, targets: Sequence[str], per_shard: int
) -> tuple[tuple[ShardRef, ...], list[int]]:
    """Write taken samples, in the order of `keys`, `per_shard` to each target.

    Returns:
        The shards, and each image's offset in its shard, in the order of `keys`.
    """
    shards: list[ShardRef] = []
    offsets: list[int] = []

    def parts(chunk: Sequence[str]) -> Iterator[bytes]:
        place = 0
        for key in chunk:
            item = taken[key]
            with open(item.spool, "rb") as spool:
                spool.seek(item.start)
                content = spool.read(item.length)
            offsets.append(place + item.image)
            place += item.length
            yield content

    for number, target in enumerate(targets):
        with publish(target) as out:
            count = finish_tar(out, parts(keys[number * per_shard : (number + 1) * per_shard]))
        written = out.ref
        shards.append(ShardRef(uri=target, sha256=written.sha256, bytes=written.bytes, samples=count, origin="forget"))
    return tuple(shards), offsets
