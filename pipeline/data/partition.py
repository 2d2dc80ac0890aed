"""Batch + packed source -> forget shards, rewritten shards, the run's index, and the manifest.

Splits: `original` is all training images, `forget` and `retain` partition it, `calibration` and `holdout` halve the
unseen images. Shards without a forgotten sample stay where they are and are referenced by digest.
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

from pipeline.data.cut import Piece, cut_shards, write_forget_shards
from pipeline.data.index import keys_digest, read_table, write_table
from pipeline.data.pack import SAMPLES_PER_SHARD, PackedSource
from pipeline.data.selection import forgotten_rows, group_rows
from pipeline.decode import digest
from pipeline.errors import ConfigError
from pipeline.records import FileRef, Manifest, RequestBatch, ShardRef, Split
from pipeline.requests import batch_digest
from pipeline.storage import exists, is_local, join, list_files, relative, remove_tree

__all__ = ["CLASS_SHARE", "RUN_INDEX", "RUN_SCHEMA", "partition"]

CLASS_SHARE = 0.5
"""A class of which at least this share of the training images is forgotten counts as a forgotten class."""

RUN_INDEX = "shards/index.parquet"

RUN_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("ext", pa.string()),
        ("label", pa.int32()),
        ("group", pa.int32()),
        ("sha256", pa.string()),
    ]
)
"""One row a sample of a split. `shard` is a URI, relative to the run folder where it lies below the output folder;
`group` is the position in the manifest's groups, -1 for images that are not to be forgotten."""


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


def _halves(keys: Sequence[str], seed: int) -> np.ndarray:
    """bool, true for the unseen images that are held out; the others calibrate."""
    return np.array([hashlib.sha256(f"{seed}|{key}".encode()).digest()[-1] % 2 == 1 for key in keys], dtype=bool)


def _rows(table: pa.Table, split: str, group: np.ndarray, shard: Sequence[str], offset: np.ndarray) -> pa.Table:
    """Rows of the source's index as rows of the run's index."""
    same = {name: table[name] for name in ("key", "size", "ext", "label", "sha256")}
    own = {"split": [split] * len(table), "shard": shard, "offset": offset, "group": group}
    return pa.table({name: {**same, **own}[name] for name in RUN_SCHEMA.names}, schema=RUN_SCHEMA)


def _split(name: str, rows: pa.Table, shards: tuple[ShardRef, ...], salt: str) -> Split:
    return Split(name=name, shards=shards, samples=len(rows), keys_digest=keys_digest(rows["key"].to_pylist(), salt))  # type: ignore[arg-type]


def _check_unseen(held_out: np.ndarray, source: str) -> None:
    if held_out.all() or not held_out.any():
        message = f"source {source}: {len(held_out)} unseen images do not fill the calibration and the holdout split"
        raise ConfigError(message, "give the source more images that no model trains on")


def _remove_leftovers(folder: str, shards: Sequence[ShardRef]) -> None:
    """Shards of an earlier attempt with another source: they hold images that should not lie about."""
    wanted = {ref.uri for ref in shards}
    for uri in list_files(join(folder, "shards"), ".tar") if exists(join(folder, "shards")) else []:
        if uri not in wanted:
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
    class_share: float = CLASS_SHARE,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int = 0,
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
        class_share: a class of which this share is forgotten is a group of its own.
        samples_per_shard: of the forget shards.
        workers: processes; 0 chooses for this machine. The result does not depend on it.

    Returns:
        The manifest, not yet published.

    Raises:
        ConfigError: a request that means nothing or everything, or a split without images; nothing is written then.
        IntegrityError: the index or a shard is not the recorded one.
        DataError: a shard cannot be read.
        StorageError: no space, or no permission.
    """
    table = read_table(join(source_folder, packed.index.uri), packed.index)
    uris = np.array([join(source_folder, ref.uri) for ref in packed.shards], dtype=object)
    homes = table["shard"].to_numpy()
    trained = homes < len(packed.training)
    rows, rest = table.filter(pa.array(trained)), table.filter(pa.array(~trained))
    keys, rest_keys = rows["key"].to_pylist(), rest["key"].to_pylist()
    labels = rows["label"].to_numpy()
    forgotten = forgotten_rows(batch, keys=keys, labels=labels, classes=packed.classes, unseen_keys=rest_keys)
    groups, group_of = group_rows(forgotten, labels=labels, classes=packed.classes, class_share=class_share)
    held_out = _halves(rest_keys, seed)
    _check_unseen(held_out, packed.name)

    row_homes = homes[trained]
    with _spool_folder(folder) as spool:
        touched = np.unique(row_homes[forgotten])
        pieces = [
            Piece(
                source=uris[shard],
                sha256=packed.training[shard].sha256,
                forgotten=frozenset(keys[row] for row in np.flatnonzero(forgotten & (row_homes == shard))),
                target=join(folder, "shards", f"rewritten-{shard:06d}.tar"),
                spool=os.path.join(spool, str(shard)),
            )
            for shard in touched
        ]
        rewritten, kept, taken = cut_shards(pieces, workers=workers)
        # A hash order mixes the groups, so that every part of the forget stream holds images of all of them.
        order = np.array(
            sorted(np.flatnonzero(forgotten), key=lambda row: hashlib.sha256(f"{seed}|{keys[row]}".encode()).digest())
        )
        count = -(-len(order) // samples_per_shard)
        targets = [join(folder, "shards", f"forget-{number:06d}.tar") for number in range(count)]
        forget_keys = [keys[row] for row in order]
        forget_shards, forget_offsets = write_forget_shards(forget_keys, taken, targets=targets, per_shard=samples_per_shard)

    cut = dict(zip(touched.tolist(), rewritten, strict=True))
    sources = tuple(dataclasses.replace(ref, uri=uri) for ref, uri in zip(packed.shards, uris, strict=True))
    training, unseen = sources[: len(packed.training)], sources[len(packed.training) :]
    retain_shards = tuple(ref for number, shard in enumerate(training) if (ref := cut.get(number, shard)) is not None)
    new_shards = (*forget_shards, *(ref for ref in rewritten if ref is not None))
    _remove_leftovers(folder, new_shards)

    def named(refs: tuple[ShardRef, ...]) -> tuple[ShardRef, ...]:
        return tuple(dataclasses.replace(ref, uri=relative(ref.uri, folder, output)) for ref in refs)

    places = [ref.uri for ref in named(sources)]
    kept_rows = np.flatnonzero(~forgotten)
    kept_places = [named((cut.get(home) or sources[home],))[0].uri for home in range(len(training))]
    kept_offsets = [
        kept.get(keys[row], int(offset)) for row, offset in zip(kept_rows, rows["offset"].to_numpy()[kept_rows], strict=True)
    ]
    forget_places = [ref.uri for ref in named(forget_shards) for _ in range(ref.samples)]
    in_place = rest["shard"].to_numpy()

    def unseen_rows(name: str, chosen: np.ndarray) -> pa.Table:
        part = rest.filter(pa.array(chosen))
        none = np.full(len(part), -1, dtype=np.int32)
        return _rows(part, name, none, [places[home] for home in in_place[chosen]], part["offset"].to_numpy())

    tables = {
        "original": _rows(rows, "original", group_of, [places[home] for home in row_homes], rows["offset"].to_numpy()),
        "forget": _rows(rows.take(order), "forget", group_of[order], forget_places, np.array(forget_offsets)),
        "retain": _rows(
            rows.take(kept_rows),
            "retain",
            group_of[kept_rows],
            [kept_places[home] for home in row_homes[kept_rows]],
            np.array(kept_offsets),
        ),
        "calibration": unseen_rows("calibration", ~held_out),
        "holdout": unseen_rows("holdout", held_out),
    }
    index = write_table(pa.concat_tables(tables.values()), join(folder, RUN_INDEX))
    shards = {"original": training, "forget": forget_shards, "retain": retain_shards, "calibration": unseen, "holdout": unseen}
    salt = batch_digest(batch)
    return Manifest(
        run_id=run_id,
        batch_digest=salt,
        requests=len(batch.requests),
        source=packed.name,
        source_digest=digest(packed),
        classes=packed.classes,
        seed=seed,
        groups=groups,
        splits=tuple(_split(name, part, named(shards[name]), salt) for name, part in tables.items()),
        index=FileRef(uri=RUN_INDEX, sha256=index.sha256, bytes=index.bytes),
        shards_clean=len(training) - len(touched),
        shards_rewritten=sum(ref is not None for ref in rewritten),
    )
