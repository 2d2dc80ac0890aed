"""Source -> WebDataset shards with an index, in `<output>/sources/<name>-<identity>`; from there on only shards exist.

A source that is shards already is indexed where it lies. `source.json` is written last: a folder without it is not
there. Equal images give equal bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from pipeline.data.index import Progress, build_index, write_table
from pipeline.data.sources.base import ImageSource, ShardSource, SourceImage
from pipeline.decode import canonical, decode, digest
from pipeline.errors import DataError, IntegrityError, StorageError
from pipeline.records import FileRef, ShardRef, record
from pipeline.storage import exists, join, publish, publish_bytes, read_bytes, relative, remove_tree, size

__all__ = ["PackedSource", "pack"]

SAMPLES_PER_SHARD = 1000


@record
class PackedSource:
    """A source as shards. URIs are relative to its folder where the files lie in it. The index counts shards over
    `training` and then `unseen`."""

    name: str
    identity: str
    classes: tuple[str, ...]
    training: tuple[ShardRef, ...]
    unseen: tuple[ShardRef, ...]
    index: FileRef
    schema: Literal["packed-source/1"] = "packed-source/1"

    @property
    def shards(self) -> tuple[ShardRef, ...]:
        """All shards, in the index's order."""
        return (*self.training, *self.unseen)


def pack(
    source: ImageSource | ShardSource,
    *,
    name: str,
    output: str,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[PackedSource, str]:
    """Pack and index a source, or find it packed already.

    Args:
        source: images, or shards.
        name: goes into the folder's name.
        output: the folder, any fsspec URI, below which packed sources lie.
        samples_per_shard: of newly written shards.
        workers: processes that read shards; 0 chooses for this machine. The result does not depend on it.
        progress: told what is being done, `pack` or `index`, and how many samples are done.

    Returns:
        The packed source and its folder.

    Raises:
        DataError: an empty source, a faulty shard or sample; the folder is removed.
    """
    in_place = isinstance(source, ShardSource)
    identity = digest({"pack": 1, "source": source.identity(), "samples": 0 if in_place else samples_per_shard})
    folder = join(output, "sources", f"{name}-{identity[:8]}")
    done = _finished(folder, identity)
    if done is not None:
        return done, folder
    try:
        if isinstance(source, ShardSource):
            training, unseen = list(source.training_shards()), list(source.unseen_shards())
        else:
            parts = (("train", source.training()), ("unseen", source.unseen()))
            training, unseen = (_write(images, folder, part, samples_per_shard, progress) for part, images in parts)
        if not training:
            raise DataError(f"source {name}: no training image", "correct the source's address")
        table, refs = build_index([*training, *unseen], workers=workers, progress=progress)
        classes = _classes(source.classes, table, refs)
        index = write_table(table, join(folder, "index.parquet"))
        packed = PackedSource(
            name=name,
            identity=identity,
            classes=classes,
            training=tuple(_local(ref, folder) for ref in refs[: len(training)]),
            unseen=tuple(_local(ref, folder) for ref in refs[len(training) :]),
            index=FileRef(uri="index.parquet", sha256=index.sha256, bytes=index.bytes),
        )
        publish_bytes(join(folder, "source.json"), canonical(packed))
    except BaseException:
        remove_tree(folder)
        raise
    return packed, folder


def _local(ref: ShardRef, folder: str) -> ShardRef:
    uri = relative(ref.uri, folder, folder)
    return ShardRef(uri=uri, sha256=ref.sha256, bytes=ref.bytes, samples=ref.samples, origin="original")


def _finished(folder: str, identity: str) -> PackedSource | None:
    """The packed source in `folder`, if it is complete: files are checked by size, `unlearn verify` hashes them."""
    uri = join(folder, "source.json")
    if not exists(uri):
        return None
    try:
        packed = decode(PackedSource, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
        files = [*((ref.uri, ref.bytes) for ref in packed.shards), (packed.index.uri, packed.index.bytes)]
        whole = all(size(join(folder, uri)) == num_bytes for uri, num_bytes in files)
    except (ValueError, IntegrityError, StorageError):
        return None
    return packed if whole and packed.identity == identity else None


def _write(images: Iterator[SourceImage], folder: str, part: str, per_shard: int, progress: Progress | None) -> list[str]:
    """Write images as shards `<part>-000000.tar` on; returns their URIs."""
    import webdataset  # loads torch, two seconds, which only packing is worth

    uris: list[str] = []
    done = 0
    while chunk := list(itertools.islice(images, per_shard)):
        uris.append(join(folder, f"{part}-{len(uris):06d}.tar"))
        with publish(uris[-1]) as out:
            # Fixed time, owner and sample order, so that equal images give equal bytes; pax for names over 100 bytes.
            with webdataset.TarWriter(
                out, encoder=False, mtime=0, user="unlearn", group="unlearn", format="PAX_FORMAT", compress=False
            ) as tar:
                for item in chunk:
                    tar.write({"__key__": item.key, item.ext: item.image, "cls": str(item.label).encode()})
        done += len(chunk)
        if progress is not None:
            progress("pack", done)
    return uris


def _classes(named: tuple[str, ...], table: pa.Table, refs: tuple[ShardRef, ...]) -> tuple[str, ...]:
    """Class names for all labels that occur; DataError for a label beyond the named ones."""
    labels = table["label"].to_numpy()
    if not named:
        return tuple(str(label) for label in range(int(labels.max()) + 1))
    if labels.max() >= len(named):
        row = int(labels.argmax())
        where = f"{refs[table['shard'][row].as_py()].uri}: key '{table['key'][row].as_py()}'"
        raise DataError(
            f"{where}: label {labels[row]}, but only {len(named)} classes are named", "name all classes, or correct .cls"
        )
    return named
