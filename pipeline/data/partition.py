"""Batch + packed source -> forget shards, rewritten shards, the run's index, and the manifest.

Splits: `original` is all training images, `forget` and `retain` partition it, `calibration` and `holdout` halve the
unseen images. Shards without a forgotten sample stay where they are, and so do their rows of the index: what is read
and written grows with the forget set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from pipeline.data.batch import Settings, Source, select
from pipeline.data.cut import Cut, Piece, Taken, cut_shards, write_forget_shards
from pipeline.data.pack import PackedSource
from pipeline.data.progress import Progress
from pipeline.data.rows import RUN_SCHEMA, KeysDigest, keys_digest, write_index
from pipeline.data.selection import Chosen
from pipeline.decode import digest
from pipeline.errors import ConfigError
from pipeline.records import FileRef, Manifest, RequestBatch, ShardRef, Split
from pipeline.requests import batch_digest
from pipeline.storage import exists, is_local, join, list_files, relative, remove_tree

__all__ = ["COPIES", "RUN_INDEX", "partition"]

RUN_INDEX = "shards/index.parquet"
COPIES = "shards/copies.csv"
"""List of copies that were found; it holds keys and is never published."""


@contextmanager
def _spool_folder(folder: str) -> Iterator[str]:
    """A local folder for forgotten samples on their way; gone afterwards, and at the next start after a kill."""
    if not is_local(folder):
        with tempfile.TemporaryDirectory() as away:
            yield away
        return
    spool = join(folder, "shards", ".spool")
    shutil.rmtree(spool, ignore_errors=True)
    try:
        os.makedirs(spool)
        yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}|{key}".encode()).digest()


class _RunIndex:
    """The run's own rows as they come together: tables in the order in which they become row groups."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []

    def add(
        self, shard: ShardRef, rows: pa.Table, *, group: np.ndarray | None = None, offsets: Sequence[int] | None = None
    ) -> ShardRef:
        """Take rows as a row group; returns the shard with its place in the index."""
        if offsets is not None:
            rows = rows.set_column(rows.schema.get_field_index("offset"), "offset", pa.array(offsets, pa.int64()))
        groups = np.full(len(rows), -1, dtype=np.int32) if group is None else group.astype(np.int32)
        self.tables.append(rows.append_column("group", pa.array(groups)))
        return dataclasses.replace(
            shard,
            samples=len(rows),
            keys_digest=keys_digest(rows["key"].to_pylist()),
            index=RUN_INDEX,
            row_group=len(self.tables) - 1,
        )


class _Partition:
    """One partition under way: the source, and the run's folder."""

    def __init__(self, source: Source, folder: str, output: str, seed: int, workers: int) -> None:
        self.source, self.folder, self.output, self.seed, self.workers = source, folder, output, seed, workers
        self.index = _RunIndex()

    def cut(
        self, chosen: Chosen, group_of: np.ndarray, per_shard: int
    ) -> tuple[tuple[ShardRef, ...], dict[int, ShardRef | None]]:
        """Write the forget shards and the rest of each touched shard, and take up their rows.

        Returns:
            The forget shards, and what is left of each touched training shard, by its position.
        """
        homes, training = self.source.homes(chosen), self.source.training
        touched = np.unique(homes).tolist()
        with _spool_folder(self.folder) as spool:
            pieces = [
                Piece(
                    source=training[home].uri,
                    sha256=training[home].sha256,
                    forgotten=frozenset(chosen.row[homes == home].tolist()),
                    target=join(self.folder, "shards", f"rewritten-{home:06d}.tar"),
                    spool=os.path.join(spool, str(home)),
                )
                for home in touched
            ]
            taken: list[Taken] = []
            left: dict[int, ShardRef | None] = {}
            removed: list[pa.Table] = []
            for home, piece, cut in zip(touched, pieces, cut_shards(pieces, workers=self.workers), strict=True):
                table = self.source.rows(training[home])
                taken += cut.taken
                removed.append(table.take(pa.array(sorted(piece.forgotten))))
                left[home] = self._rest(cut, table, piece.forgotten)
            # A hash order mixes the groups, so that every part of the forget stream holds images of all of them.
            order = np.array(sorted(range(len(chosen)), key=lambda row: _order(self.seed, chosen.keys[row])))
            targets = [join(self.folder, "shards", f"forget-{n:06d}.tar") for n in range(-(-len(order) // per_shard))]
            forget, offsets = write_forget_shards([taken[row] for row in order], targets=targets, per_shard=per_shard)
        # Both lists go shard by shard and row by row, as `chosen` does.
        rows, start, placed = pa.concat_tables(removed).take(pa.array(order)), 0, []
        for shard in forget:
            here = slice(start, start + shard.samples)
            placed.append(
                self.index.add(shard, rows.slice(start, shard.samples), group=group_of[order][here], offsets=offsets[here])
            )
            start += shard.samples
        return tuple(placed), left

    def _rest(self, cut: Cut, table: pa.Table, forgotten: frozenset[int]) -> ShardRef | None:
        if cut.rewritten is None:
            return None
        kept = np.setdiff1d(np.arange(len(table)), sorted(forgotten))
        return self.index.add(cut.rewritten, table.take(pa.array(kept)), offsets=cut.offsets)

    def halves(self) -> tuple[tuple[ShardRef, ...], tuple[ShardRef, ...]]:
        """The unseen images as calibration and holdout, by key hash; their rows go into the run's index.

        Raises:
            ConfigError: one of them would be empty.
        """
        halves: tuple[list[ShardRef], list[ShardRef]] = ([], [])
        for shard in self.source.unseen:
            table = self.source.rows(shard)
            held_out = np.array([_order(self.seed, key)[-1] % 2 == 1 for key in table["key"].to_pylist()], dtype=bool)
            for half, mask in zip(halves, (~held_out, held_out), strict=True):
                if mask.any():
                    half.append(self.index.add(shard, table.filter(pa.array(mask))))
        return tuple(halves[0]), tuple(halves[1])

    def named(self, shard: ShardRef) -> ShardRef:
        """The shard with addresses relative to the run folder, where they lie below the output folder."""
        index = shard.index if shard.index == RUN_INDEX else relative(shard.index, self.folder, self.output)
        return dataclasses.replace(shard, uri=relative(shard.uri, self.folder, self.output), index=index)

    def split(self, name: str, shards: Sequence[ShardRef]) -> Split:
        """A split of the manifest."""
        keys = KeysDigest()
        for shard in shards:
            keys.merge(shard.keys_digest)
        named = tuple(self.named(shard) for shard in shards)
        return Split(name=name, shards=named, samples=sum(s.samples for s in shards), keys_digest=keys.hex())  # type: ignore[arg-type]

    def remove_leftovers(self, shards: Sequence[ShardRef]) -> None:
        """Shards of an earlier attempt, whole or in parts: they hold images that should not lie about."""
        folder, wanted = join(self.folder, "shards"), {shard.uri for shard in shards}
        for uri in list_files(folder) if exists(folder) else []:
            if uri.endswith((".tar", ".part")) and uri not in wanted:
                remove_tree(uri)


def partition(
    batch: RequestBatch,
    packed: PackedSource,
    *,
    source_folder: str,
    folder: str,
    output: str,
    run_id: str,
    seed: int,
    settings: Settings | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Cut the source for one batch, and publish the new shards and the run's index; equal inputs give equal bytes.

    Args:
        batch: what is to be forgotten.
        packed: the source, whose relative URIs lie in `source_folder`.
        source_folder: where the source is packed.
        folder: the run folder; `shards/` in it is written.
        output: root below which URIs are recorded relative to `folder`.
        run_id: name of the run, for the manifest.
        seed: order of the forget shards and choice of the held-out half.
        settings: groups, shard size and the search for copies; None: the defaults.
        workers: processes; 0 chooses for this machine. The result does not depend on it.
        progress: told what is being done and how many images are done.

    Returns:
        The manifest, not yet published.

    Raises:
        ConfigError: a request that means nothing or everything, copies that a request says to stop at, or a split
            without images; no shard is written then.
        IntegrityError: the index or a shard is not the recorded one.
        DataError: a shard cannot be read.
        StorageError: no space, or no permission.
    """
    settings = settings or Settings()
    source = Source(packed, source_folder)
    selection = select(batch, source, settings, listing=join(folder, COPIES), workers=workers, progress=progress)
    work = _Partition(source, folder, output, seed, workers)
    calibration, holdout = work.halves()
    if not calibration or not holdout:
        unseen = sum(shard.samples for shard in source.unseen)
        message = f"source {packed.name}: {unseen} unseen images do not fill the calibration and the holdout split"
        raise ConfigError(message, "give the source more images that no model trains on")
    forget, left = work.cut(selection.chosen, selection.group_of, settings.samples_per_shard)
    retain = [ref for number, shard in enumerate(source.training) if (ref := left.get(number, shard)) is not None]
    rewritten = [ref for ref in left.values() if ref is not None]
    work.remove_leftovers((*forget, *rewritten))
    index = write_index(join(folder, RUN_INDEX), work.index.tables, schema=RUN_SCHEMA)
    sources = (dataclasses.replace(ref, uri=relative(ref.uri, folder, output)) for ref in source.files.values())
    splits = {"original": source.training, "forget": forget, "retain": retain, "calibration": calibration, "holdout": holdout}
    return Manifest(
        run_id=run_id,
        batch_digest=batch_digest(batch),
        requests=len(batch.requests),
        source=packed.name,
        source_digest=digest(packed),
        source_folder=relative(source_folder, folder, output),
        classes=packed.classes,
        seed=seed,
        groups=selection.groups,
        splits=tuple(work.split(name, shards) for name, shards in splits.items()),
        index=(*sources, FileRef(uri=RUN_INDEX, sha256=index.sha256, bytes=index.bytes)),
        shards_clean=len(source.training) - len(left),
        shards_rewritten=len(rewritten),
        quarantined=len(packed.quarantine),
        exact_copies=selection.copies.exact,
        near_copies=selection.copies.near,
    )
