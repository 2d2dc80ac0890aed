"""Perceptual hashes of indexed images, kept beside the index, and the search for pairs that differ in few bits.

The hash is imagehash's pHash: 64 signs of the low frequencies of a 32 x 32 grey picture. Two files of one picture at
another size or compression mostly differ in 0 to 4 bits. What looks alike to it need not be the same picture, so
near copies are always listed for a person to look at.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Sequence

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.index import map_shards
from pipeline.data.progress import Progress
from pipeline.data.rows import read_row_group
from pipeline.decode import digest
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef, ShardRef
from pipeline.storage import exists, join, open_read, publish_bytes, read_bytes

__all__ = ["BITS", "hash_images", "near_pairs", "perceptual_hash"]

BITS = 64
FORMATS = ("PNG", "JPEG")
# A JPEG is decoded at the smallest scale that is not below this side: eight times fewer pixels for most photographs.
DRAFT_SIDE = 64


def perceptual_hash(data: bytes, max_pixels: int) -> int | None:
    """The 64-bit pHash of an encoded image.

    None where the image cannot be decoded, is larger than `max_pixels`, or has no such hash: frequencies are compared with
    their median, so half of the bits are set, unless many are equal as in blank, striped or concentric pictures. Those all
    look alike to it.
    """
    from pipeline.data.images import UNREADABLE  # loads torch, which only decoding is worth: `unlearn plan` should answer soon

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return None
            image.draft("L", (DRAFT_SIDE, DRAFT_SIDE))
            bits = imagehash.phash(_as_seen(image)).hash
    except UNREADABLE:
        return None
    return int.from_bytes(np.packbits(bits).tobytes(), "big") if bits.sum() == BITS // 2 else None


def _as_seen(image: Image.Image) -> Image.Image:
    """Transparent parts on white and 16 bits cut to 8, as the model sees them; else hidden colours would be compared."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image


@dataclasses.dataclass(frozen=True)
class _Task:
    shards: tuple[ShardRef, ...]
    index_sha256: str
    target: str
    max_pixels: int


def _hash_part(task: _Task) -> int:
    """Hash the images of all shards of an index file, one row group a shard; returns how many."""
    if exists(task.target):
        return 0
    hashes: list[int | None] = []
    for shard in task.shards:
        rows = read_row_group(shard.index, task.index_sha256, shard.row_group)
        with open_read(shard.uri) as stream:
            for offset, size, mark in zip(*(rows[name].to_pylist() for name in ("offset", "size", "sha256")), strict=True):
                stream.seek(offset)
                data = stream.read(size)
                if hashlib.sha256(data).digest() != mark:
                    raise IntegrityError(f"{shard.uri}: changed since it was indexed", "restore the shard, or run again")
                hashes.append(perceptual_hash(data, task.max_pixels))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"phash": pa.array(hashes, pa.uint64())}), sink, compression="zstd")
    publish_bytes(task.target, sink.getvalue().to_pybytes())
    return len(hashes)


def hash_images(
    shards: Sequence[ShardRef],
    files: Sequence[FileRef],
    folder: str,
    *,
    max_pixels: int,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[np.ma.MaskedArray]:
    """Perceptual hashes of all images of some shards, computed where they are not yet there.

    Args:
        shards: with addresses that stand alone, in index order.
        files: their index files, in order.
        folder: where the hashes are kept, one file an index file.
        max_pixels: larger images are not decoded.
        workers: processes; 0 chooses for this machine.
        progress: told the number of images hashed.

    Returns:
        For each index file, uint64 [rows], in the order of its rows; masked where an image cannot be decoded.

    Raises:
        IntegrityError: a shard holds other bytes than its index says.
        StorageError: a shard, or a file of hashes, cannot be read.
    """
    targets = [join(folder, f"phash-{digest([1, file.sha256, max_pixels])[:24]}.parquet") for file in files]
    tasks = [
        _Task(tuple(shard for shard in shards if shard.index == file.uri), file.sha256, target, max_pixels)
        for file, target in zip(files, targets, strict=True)
    ]
    alone = any(task.target.startswith("memory://") for task in tasks)
    done = 0
    for count in map_shards(_hash_part, tasks, workers=1 if alone else workers):
        done += count
        if progress is not None and done:
            progress("perceptual hashes", done)
    return [_read(target) for target in targets]


def _read(uri: str) -> np.ma.MaskedArray:
    try:
        column = pq.read_table(pa.BufferReader(read_bytes(uri)))["phash"].combine_chunks()
    except pa.ArrowException:
        raise StorageError(f"{uri}: not readable", "remove the file; it is made again") from None
    return np.ma.MaskedArray(
        column.fill_null(0).to_numpy(zero_copy_only=False), mask=column.is_null().to_numpy(zero_copy_only=False)
    )


def near_pairs(wanted: np.ndarray, others: np.ndarray, bits: int) -> np.ndarray:
    """Pairs of hashes that differ in at most `bits` bits.

    Cut in `bits + 1` bands, two such hashes agree in at least one band: only those that do are compared.

    Args:
        wanted: uint64 [F].
        others: uint64 [N].
        bits: 0 to 15.

    Returns:
        int64 [pairs, 3]: position in `wanted`, position in `others`, bits that differ; sorted, each pair once.
    """
    edges = [BITS * band // (bits + 1) for band in range(bits + 2)]
    found = [np.empty((0, 3), dtype=np.int64)]
    for low, high in itertools.pairwise(edges):
        mask, shift = np.uint64((1 << (high - low)) - 1), np.uint64(low)
        left, right = wanted >> shift & mask, others >> shift & mask
        order = np.argsort(left, kind="stable")
        ordered = left[order]
        first, last = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
        for place in np.flatnonzero(last > first):
            near = order[first[place] : last[place]]
            differ = np.bitwise_count(wanted[near] ^ others[place]).astype(np.int64)
            close = differ <= bits
            found.append(np.stack([near[close], np.full(int(close.sum()), place), differ[close]], axis=1))
    return np.unique(np.concatenate(found), axis=0)
