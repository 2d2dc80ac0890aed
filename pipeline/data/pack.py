"""Source -> indexed WebDataset shards, in `<output>/sources/<name>-<identity>`; from there on only shards exist.

A source that is shards already is indexed where it lies, and its index is refreshed when a shard was added, changed or
taken away. `source.json` is written last: a folder without it is not there. Equal images give equal bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pipeline.config import ShardsConfig
from pipeline.data.index import Index, build_index, read_part
from pipeline.data.listing import Listed, list_shards, listing_digest
from pipeline.data.progress import Progress
from pipeline.data.rows import read_columns
from pipeline.data.shards import Fault
from pipeline.data.sources.base import ImageSource, ShardSource, SourceImage
from pipeline.data.tombstones import deleted_images
from pipeline.decode import canonical, decode, digest
from pipeline.errors import DataError, IntegrityError, StorageError
from pipeline.records import FileRef, ShardRef, record
from pipeline.storage import exists, join, lock, publish, publish_bytes, read_bytes, relative, remove_tree, size

__all__ = ["PackedSource", "load_source", "pack", "regenerate", "source_folder"]

SAMPLES_PER_SHARD = 1000


@record
class PackedSource:
    """A source as shards. URIs are relative to its folder where the files lie in it."""

    name: str
    identity: str
    generation: int
    """Rises with every refresh and every erasure."""
    listing: str
    """Digest of the shards' names, sizes and stamps when they were indexed."""
    classes: tuple[str, ...]
    training: tuple[ShardRef, ...]
    unseen: tuple[ShardRef, ...]
    index: tuple[FileRef, ...]
    quarantine: tuple[Fault, ...] = ()
    erased: tuple[str, ...] = ()
    """Shards that held nothing but deleted images and are gone."""
    schema: Literal["packed-source/2"] = "packed-source/2"

    @property
    def shards(self) -> tuple[ShardRef, ...]:
        """All shards with good samples."""
        return (*self.training, *self.unseen)


def source_folder(
    source: ImageSource | ShardSource, *, name: str, output: str, samples_per_shard: int = SAMPLES_PER_SHARD
) -> tuple[str, str]:
    """Identity and folder of a source below `output`."""
    in_place = isinstance(source, ShardSource)
    identity = digest({"pack": 2, "source": source.identity(), "samples": 0 if in_place else samples_per_shard})
    return identity, join(output, "sources", f"{name}-{identity[:8]}")


def pack(
    source: ImageSource | ShardSource,
    *,
    name: str,
    output: str,
    settings: ShardsConfig | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int = 0,
    task: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> tuple[PackedSource | None, str]:
    """Pack and index a source, or find it packed already.

    Args:
        source: images, or shards.
        name: goes into the folder's name.
        output: the folder, any fsspec URI, below which packed sources lie.
        settings: what happens with faulty shards and samples; None: the defaults.
        samples_per_shard: of newly written shards.
        workers: processes that read shards; 0 chooses for this machine. The result does not depend on it.
        task: (i, n) with n > 1: build only every n-th part of the index, from the i-th on; shard sources only.
        progress: told what is being done, `pack` or `index`, and how many samples are done.

    Returns:
        The packed source (None for one task of several) and its folder.

    Raises:
        DataError: an empty source, a faulty shard or sample, an image that has a tombstone.
        StorageError: another process is packing this source.
    """
    settings = settings or ShardsConfig()
    identity, folder = source_folder(source, name=name, output=output, samples_per_shard=samples_per_shard)
    work = _Work(name, identity, folder, source.classes, settings, workers, task, progress, deleted_images(output))
    if isinstance(source, ShardSource):
        return work.index_in_place(source), folder
    return work.write(source, samples_per_shard), folder


class _Work:
    """One packing: where it goes and how."""

    def __init__(
        self,
        name: str,
        identity: str,
        folder: str,
        classes: tuple[str, ...],
        settings: ShardsConfig,
        workers: int,
        task: tuple[int, int],
        progress: Progress | None,
        refused: frozenset[bytes],
    ) -> None:
        self.name, self.identity, self.folder, self.classes, self.settings = name, identity, folder, classes, settings
        self.options: dict[str, Any] = {"workers": workers, "progress": progress, "refused": refused}
        self.task, self.progress = task, progress

    def index_in_place(self, source: ShardSource) -> PackedSource | None:
        """Index shards where they lie: all of them, or what changed since the last time."""
        before = load_source(self.folder)
        absent = before.erased if before else ()
        listed = [list_shards(uris, absent=absent) for uris in (source.training_shards(), source.unseen_shards())]
        mark = digest([listing_digest(part) for part in listed])
        if before is not None and before.listing == mark and self._tolerates(before):
            return before
        if self.task[1] > 1:
            self._indexes(listed, before)
            return None
        with lock(self.folder):
            return self.publish(listed, mark, load_source(self.folder))  # another run may have been at work just now

    def _tolerates(self, packed: PackedSource) -> bool:
        """Whether what was set aside then may be set aside now."""
        return len(packed.quarantine) <= (self.settings.max_quarantined if self.settings.on_error == "quarantine" else 0)

    def write(self, source: ImageSource, samples_per_shard: int) -> PackedSource:
        """Write images as shards and index these."""
        done = load_source(self.folder)
        if done is not None:
            return done
        with lock(self.folder):
            done = load_source(self.folder)  # another run may have been at work just now
            if done is not None:
                return done
            try:
                parts = (("train", source.training()), ("unseen", source.unseen()))
                written = [_write(images, self.folder, part, samples_per_shard, self.progress) for part, images in parts]
                listed = [list_shards(uris) for uris in written]
                return self.publish(listed, digest([listing_digest(part) for part in listed]), None)
            except BaseException:
                remove_tree(self.folder)
                raise

    def _indexes(self, listed: Sequence[Sequence[Listed]], before: PackedSource | None) -> list[Index]:
        old = Index(parts=tuple(read_part(_joined(ref, self.folder)) for ref in before.index)) if before else None
        return build_index(
            listed,
            join(self.folder, "index"),
            on_error=self.settings.on_error,
            max_quarantined=self.settings.max_quarantined,
            before=old,
            task=self.task,
            **self.options,
        )

    def publish(self, listed: Sequence[Sequence[Listed]], mark: str, before: PackedSource | None) -> PackedSource:
        """Build what is missing of the index, and write `source.json` last."""
        if not listed[0]:
            raise DataError(f"source {self.name}: no training image", "correct the source's address")
        training, unseen = self._indexes(listed, before)
        if not training.shards:
            raise DataError(f"source {self.name}: no good training image", "look at the faults: --on-error stop names the first")
        packed = PackedSource(
            name=self.name,
            identity=self.identity,
            generation=before.generation + 1 if before else 1,
            listing=mark,
            classes=_classes(self.classes, (training, unseen)),
            training=self._local_shards(training),
            unseen=self._local_shards(unseen),
            index=tuple(
                dataclasses.replace(part.file, uri=self._local(part.file.uri))
                for index in (training, unseen)
                for part in index.parts
            ),
            quarantine=(*training.faults, *unseen.faults),
            erased=before.erased if before else (),
        )
        publish_bytes(join(self.folder, "source.json"), canonical(packed))
        return packed

    def _local(self, uri: str) -> str:
        """An address relative to the source's folder, where it lies below it."""
        return relative(uri, self.folder, self.folder)

    def _local_shards(self, index: Index) -> tuple[ShardRef, ...]:
        return tuple(dataclasses.replace(ref, uri=self._local(ref.uri), index=self._local(ref.index)) for ref in index.shards)


def regenerate(folder: str, before: PackedSource, moved: Mapping[str, str], *, settings: ShardsConfig) -> PackedSource:
    """Publish the next generation of a source whose shards were rewritten; only these are read.

    Args:
        folder: of the packed source.
        before: the generation before.
        moved: each rewritten shard's URI, as `before` names it, to where its rest lies now, or to an empty text where
            nothing is left of it.
        settings: what happens with faulty samples.

    Raises:
        DataError: a shard that cannot be read.
        StorageError: another process is packing this source, or the storage refuses.
    """
    work = _Work(before.name, before.identity, folder, before.classes, settings, 0, (0, 1), None, frozenset())
    lists = ([moved.get(ref.uri, ref.uri) for ref in refs] for refs in (before.training, before.unseen))
    listed = [list_shards([join(folder, uri) for uri in uris if uri]) for uris in lists]
    gone = tuple(join(folder, uri) for uri, target in moved.items() if not target)
    with lock(folder):
        before = dataclasses.replace(before, erased=(*before.erased, *gone))
        return work.publish(listed, digest([listing_digest(part) for part in listed]), before)


def _joined(ref: FileRef, folder: str) -> FileRef:
    return dataclasses.replace(ref, uri=join(folder, ref.uri))


def load_source(folder: str) -> PackedSource | None:
    """The packed source in `folder`, if it is complete: files are checked by size, `unlearn verify` hashes them."""
    uri = join(folder, "source.json")
    if not exists(uri):
        return None
    try:
        packed = decode(PackedSource, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
        refs: tuple[FileRef | ShardRef, ...] = (*packed.index, *packed.shards)
        own = [ref for ref in refs if "://" not in ref.uri and not ref.uri.startswith("/")]
        whole = all(size(join(folder, ref.uri)) == ref.bytes for ref in own)
    except (ValueError, IntegrityError, StorageError):
        return None
    return packed if whole else None


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


def _classes(named: tuple[str, ...], indexes: Sequence[Index]) -> tuple[str, ...]:
    """Class names for all labels that occur; DataError for a label beyond the named ones."""
    largest = -1
    for part in (part for index in indexes for part in index.parts):
        table, counts = read_columns(part.file.uri, part.file.sha256, ["key", "label"])
        labels = table["label"].to_numpy()
        largest = max(largest, int(labels.max(initial=-1)))
        if named and largest >= len(named):
            row = int(labels.argmax())
            number = int(np.searchsorted(np.cumsum(counts), row, side="right"))
            shard = next(member.listed.uri for member in part.members if member.row_group == number)
            message = f"{shard}: key '{table['key'][row].as_py()}': label {labels[row]}, but only {len(named)} classes are named"
            raise DataError(message, "name all classes, or correct .cls")
    return named or tuple(str(label) for label in range(largest + 1))
