"""What a batch means to a packed source: the images, their groups, and the copies that stay behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.data.alike import BITS_APART, asks_for_likeness, spell_out
from pipeline.data.copies import Copies, add_copies
from pipeline.data.likeness import hash_images
from pipeline.data.pack import SAMPLES_PER_SHARD, PackedSource
from pipeline.data.progress import Progress
from pipeline.data.rows import read_row_group
from pipeline.data.selection import Chosen, Wanted, choose, group_labels, refuse_unmatched, wanted_by
from pipeline.records import FileRef, Group, RequestBatch, ShardRef
from pipeline.storage import join

__all__ = ["CLASS_SHARE", "Selection", "Settings", "Source", "select"]

CLASS_SHARE = 0.5
"""A class of which at least this share of the training images is forgotten counts as a forgotten class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a batch is understood."""

    class_share: float = CLASS_SHARE
    """A class of which this share is forgotten is a group of its own."""
    samples_per_shard: int = SAMPLES_PER_SHARD
    """Of the forget shards."""
    near_bits: int | None = None
    """Perceptual hashes that differ in at most so many bits are near copies; None: not looked for."""
    max_pixels: int = 64_000_000
    """Larger images are not decoded in the search for near copies."""


class Source:
    """A packed source with addresses that stand alone.

    training, unseen: its shards, in index order · files: its index files by URI.
    """

    def __init__(self, packed: PackedSource, folder: str) -> None:
        self.packed, self.folder = packed, folder
        self.files = {uri: dataclasses.replace(ref, uri=uri) for ref in packed.index if (uri := join(folder, ref.uri))}
        self.training, self.unseen = (
            tuple(dataclasses.replace(ref, uri=join(folder, ref.uri), index=join(folder, ref.index)) for ref in refs)
            for refs in (packed.training, packed.unseen)
        )

    def parts(self, shards: Sequence[ShardRef]) -> tuple[FileRef, ...]:
        """The index files of some shards, in order."""
        return tuple(self.files[uri] for uri in dict.fromkeys(shard.index for shard in shards))

    def rows(self, shard: ShardRef) -> pa.Table:
        """A shard's rows of the index."""
        return read_row_group(shard.index, self.files[shard.index].sha256, shard.row_group)

    def homes(self, chosen: Chosen) -> np.ndarray:
        """int64 [F]: position in `training` of each chosen image's shard."""
        names = [file.uri for file in self.parts(self.training)]
        place = {(shard.index, shard.row_group): number for number, shard in enumerate(self.training)}
        pairs = zip(chosen.part.tolist(), chosen.row_group.tolist(), strict=True)
        return np.array([place[names[part], row_group] for part, row_group in pairs], dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What a batch means: the images, their groups, int32 [F] each image's group, and the copies that stay behind."""

    chosen: Chosen
    groups: tuple[Group, ...]
    group_of: np.ndarray
    copies: Copies


def select(
    batch: RequestBatch,
    source: Source,
    settings: Settings,
    *,
    listing: str = "",
    workers: int = 0,
    progress: Progress | None = None,
) -> Selection:
    """Find the images of a batch.

    Args:
        batch: the requests.
        source: where they lie.
        settings: groups, and the search for copies.
        listing: CSV file for copies that are found; empty: copies that would stop the batch are left where they are.
        workers: processes that compute perceptual hashes; 0 chooses for this machine.
        progress: told how many images were hashed.

    Raises:
        ConfigError: a request that means nothing or everything, or copies that a request says to stop at.
        IntegrityError: an index file was changed.
    """
    classes, parts = source.packed.classes, source.parts(source.training)

    def hashes() -> list[np.ma.MaskedArray]:
        folder = join(source.folder, "index")
        return hash_images(source.training, parts, folder, max_pixels=settings.max_pixels, workers=workers, progress=progress)

    if asks_for_likeness(batch):
        bits = BITS_APART if settings.near_bits is None else settings.near_bits
        batch = spell_out(batch, parts=parts, hashes=hashes(), bits=bits)
    wanted = wanted_by(batch, classes)
    chosen = choose(parts, wanted, len(classes))
    example = source.rows(source.training[0])["key"][0].as_py()
    refuse_unmatched(wanted, chosen, classes=classes, unseen=source.parts(source.unseen), example=example)
    chosen, copies = add_copies(
        batch,
        chosen,
        classes=classes,
        parts=parts,
        hashes=hashes if settings.near_bits is not None else None,
        bits=settings.near_bits or 0,
        listing=listing,
    )
    refuse_unmatched(Wanted(), chosen, classes=classes, unseen=(), example=example)  # something must be left
    groups, group_of = group_labels(
        chosen.labels, label_counts=chosen.label_counts, classes=classes, class_share=settings.class_share
    )
    return Selection(chosen=chosen, groups=groups, group_of=group_of, copies=copies)
