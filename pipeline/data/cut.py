"""Cut forgotten samples out of shards: rewritten shards without them, and forget shards with nothing else.

Only shards that hold a forgotten key are read. Samples are copied byte for byte, with their tar headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.data.index import map_shards
from pipeline.data.shards import copy_sample, finish_tar, image_position, read_shard
from pipeline.errors import IntegrityError
from pipeline.records import ShardRef, record
from pipeline.storage import open_read, publish

__all__ = ["Cut", "Piece", "Taken", "cut_shards", "write_forget_shards"]


@record
class Piece:
    """One source shard to be cut: its address and digest, the rows of its index to take out, where the rest goes, and a
    local file for what is taken."""

    source: str
    sha256: str
    forgotten: frozenset[int]
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
class Cut:
    """What became of a shard: the rest (None where nothing is left), each kept image's offset in it, and the samples
    that were taken out, both in the shard's order."""

    rewritten: ShardRef | None
    offsets: tuple[int, ...]
    taken: tuple[Taken, ...]


def _cut(piece: Piece) -> Cut:
    # What the index set aside as faulty belongs to nobody and is not carried over.
    samples, ref, _ = read_shard(piece.source, on_error="quarantine")
    if ref.sha256 != piece.sha256:
        raise IntegrityError(f"{piece.source}: changed since it was indexed", "restore the shard, or run again to index it anew")
    with open_read(piece.source) as stream:
        taken: list[Taken] = []
        with open(piece.spool, "wb") as spool:
            for row in sorted(piece.forgotten):
                start, content = spool.tell(), copy_sample(samples[row], stream)
                spool.write(content)
                taken.append(Taken(spool=piece.spool, start=start, length=len(content), image=image_position(samples[row])))
        rest = [sample for row, sample in enumerate(samples) if row not in piece.forgotten]
        if not rest:
            return Cut(rewritten=None, offsets=(), taken=tuple(taken))
        offsets: list[int] = []

        def parts() -> Iterator[bytes]:
            place = 0
            for sample in rest:
                offsets.append(place + image_position(sample))
                content = copy_sample(sample, stream)
                place += len(content)
                yield content

        with publish(piece.target) as out:
            finish_tar(out, parts())
    written = out.ref
    shard = ShardRef(uri=written.uri, sha256=written.sha256, bytes=written.bytes, samples=len(rest), origin="rewritten")
    return Cut(rewritten=shard, offsets=tuple(offsets), taken=tuple(taken))


def cut_shards(pieces: Sequence[Piece], *, workers: int = 0) -> Iterator[Cut]:
    """Cut each shard, in order; the result does not depend on `workers`.

    Raises:
        IntegrityError: a shard is not the one that was indexed.
        DataError: a shard cannot be read.
        StorageError: no space, or no permission.
    """
    alone = any(uri.startswith("memory://") for piece in pieces for uri in (piece.source, piece.target))
    yield from map_shards(_cut, pieces, workers=1 if alone else workers)


def write_forget_shards(
    taken: Sequence[Taken], *, targets: Sequence[str], per_shard: int
) -> tuple[tuple[ShardRef, ...], tuple[int, ...]]:
    """Write taken samples in order, `per_shard` to each target.

    Returns:
        The shards, and each image's offset in its shard.
    """
    shards: list[ShardRef] = []
    offsets: list[int] = []

    def parts(chunk: Sequence[Taken]) -> Iterator[bytes]:
        place = 0
        for item in chunk:
            with open(item.spool, "rb") as spool:
                spool.seek(item.start)
                content = spool.read(item.length)
            offsets.append(place + item.image)
            place += item.length
            yield content

    for number, target in enumerate(targets):
        with publish(target) as out:
            count = finish_tar(out, parts(taken[number * per_shard : (number + 1) * per_shard]))
        written = out.ref
        shards.append(ShardRef(uri=target, sha256=written.sha256, bytes=written.bytes, samples=count, origin="forget"))
    return tuple(shards), tuple(offsets)
