"""Manifest split -> uint8 batches. The order is a pure function of seed and pass; every rank gets equal steps.

A sample is found by its index row (shard, offset, size) and checked against its recorded sha256 whenever it is read,
so a stream can start at any step of any pass without replaying, and global batch k holds the same samples at every
world size.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
from collections.abc import Mapping
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as parquet
import torch
from torch import Tensor

from pipeline.config import ImagesConfig
from pipeline.data.images import decode_image
from pipeline.data.index import KeysDigest
from pipeline.errors import DataError, IntegrityError
from pipeline.records import Coverage, Manifest, record
from pipeline.storage import is_local, join, read_bytes

__all__ = ["Batch", "Feed", "ImageReader", "Samples", "Stream", "read_samples", "to_tensor"]


class Samples:
    """The rows of one split, in index order."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.keys: list[str] = list(columns["key"])
        self.labels = np.asarray(columns["label"], dtype=np.int64)
        self.groups = np.asarray(columns["group"], dtype=np.int64)
        self.columns = columns

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: np.ndarray) -> Samples:
        """The samples at int positions `indices`, or where a bool array is true."""
        where = np.flatnonzero(indices) if indices.dtype == bool else indices
        return Samples({name: [values[i] for i in where] for name, values in self.columns.items()})


def read_samples(folder: str, manifest: Manifest, split: str) -> Samples:
    """The rows of `split` in the run's index. The index is checked against its digest in the manifest.

    Raises:
        IntegrityError: the index was changed.
        DataError: it lacks the split that the manifest counts.
    """
    uri = join(folder, manifest.index.uri)
    content = read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != manifest.index.sha256:
        raise IntegrityError(f"{uri}: not the index that the manifest names", "restore it, or run the shard stage again")
    table = parquet.read_table(io.BytesIO(content), filters=[("split", "=", split)])
    if table.num_rows != manifest.split(split).samples:
        raise DataError(f"{uri}: {table.num_rows} rows of split {split}, the manifest counts {manifest.split(split).samples}")
    return Samples({name: table[name].to_pylist() for name in table.column_names if name != "split"})


def to_tensor(images_NHWC: np.ndarray, device: torch.device | None = None) -> Tensor:
    """uint8 [n, H, W, C] -> fp32 [n, C, H, W] in [0, 1] on `device`."""
    return torch.from_numpy(images_NHWC).to(device).permute(0, 3, 1, 2).float().div_(255)


class ImageReader:
    """Reads, checks and decodes samples; keeps decoded ones up to `images.cache_bytes`."""

    def __init__(self, samples: Samples, *, folder: str, size: int, channels: int, images: ImagesConfig) -> None:
        self.samples, self._folder, self._images = samples, folder, images
        self._shape = (size, size, channels)
        self._cache: dict[int, np.ndarray] = {}
        self._capacity = images.cache_bytes // (size * size * channels)
        self._local: dict[str, int] = {}

    def _read(self, row: int) -> bytes:
        columns = self.samples.columns
        uri, start, count = join(self._folder, columns["shard"][row]), columns["offset"][row], columns["size"][row]
        if not is_local(uri):
            fs, path = fsspec.core.url_to_fs(uri)
            return bytes(fs.cat_file(path, start=start, end=start + count))
        if uri not in self._local:
            self._local[uri] = os.open(uri, os.O_RDONLY)
        return os.pread(self._local[uri], count, start)  # pread: the background thread reads from the same descriptor

    def _image(self, row: int) -> np.ndarray:
        if row in self._cache:
            return self._cache[row]
        columns = self.samples.columns
        where = f"{columns['shard'][row]}: {columns['key'][row]}.{columns['ext'][row]}"
        try:
            data = self._read(row)
        except OSError as fault:
            raise DataError(f"{where}: {fault}", "restore the shard, or run the shard stage again") from None
        if hashlib.sha256(data).hexdigest() != columns["sha256"][row]:
            raise IntegrityError(f"{where}: bytes differ from the index", "restore the shard, or run the shard stage again")
        size, _, channels = self._shape
        fit, bound = self._images.fit, self._images.max_pixels
        image = decode_image(data, size=size, channels=channels, fit=fit, max_pixels=bound, where=where)
        if len(self._cache) < self._capacity:
            self._cache[row] = image
        return image

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Decoded samples at positions `indices`, uint8 [n, H, W, C]."""
        batch = np.empty((len(indices), *self._shape), dtype=np.uint8)
        for place, row in enumerate(indices):
            batch[place] = self._image(int(row))
        return batch

    def close(self) -> None:
        """Close the shards."""
        for handle in self._local.values():
            os.close(handle)
        self._local.clear()


@record
class Batch:
    """One rank's part of a global batch of B samples. Padding has weight 0.

    images: uint8 [n, H, W, C] · groups: int64 [n], -1 for none · weights: fp32 [n], 0 or 1 · rows: positions, [n]
    """

    images: np.ndarray
    groups: np.ndarray
    weights: np.ndarray
    rows: np.ndarray


class Stream:
    """Batches of a split by step number, and the count of what was read.

    Pass p visits the samples in the order `permutation(seed, p)`; its last batch is short. Each global batch is cut
    into equal parts, one a rank, padded with repeats of weight 0.
    """

    def __init__(self, reader: ImageReader, *, batch_size: int, seed: int, salt: str, rank: int = 0, world_size: int = 1) -> None:
        if not len(reader.samples):
            raise DataError("a stream over no samples", "this split is empty: check the request and the source")
        self.reader, self.batch_size, self._seed = reader, min(batch_size, len(reader.samples)), seed
        self._rank, self._world = rank, world_size
        self.steps_per_pass = -(-len(reader.samples) // self.batch_size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._ahead: dict[int, concurrent.futures.Future[Batch]] = {}
        self.seen = 0
        self._salt = salt
        self.digest = KeysDigest(salt)

    def global_rows(self, step: int) -> np.ndarray:
        """Positions of the samples of global batch `step`, int64 [at most B]."""
        number, place = divmod(step, self.steps_per_pass)
        if self._order[0] != number:
            order = np.random.Generator(np.random.Philox(key=[self._seed, number])).permutation(len(self.reader.samples))
            self._order = (number, order)
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def _load(self, rows: np.ndarray) -> Batch:
        share = -(-len(rows) // self._world)
        mine = rows[self._rank * share : (self._rank + 1) * share]
        padded = np.concatenate([mine, np.repeat(rows[:1], share - len(mine))])
        weights = (np.arange(share) < len(mine)).astype(np.float32)
        return Batch(images=self.reader.fetch(padded), groups=self.reader.samples.groups[padded], weights=weights, rows=mine)

    def batch(self, step: int) -> Batch:
        """This rank's part of global batch `step`; the next one is fetched in the background."""
        future = self._ahead.pop(step, None)
        batch = future.result() if future else self._load(self.global_rows(step))
        self._ahead = {step + 1: self._pool.submit(self._load, self.global_rows(step + 1))}
        return batch

    def count(self, batch: Batch) -> None:
        """Note that a batch was used, for the coverage."""
        self.seen += len(batch.rows)
        for row in batch.rows:
            self.digest.add(self.reader.samples.keys[int(row)])

    def reset(self, seen: int, digest: str) -> None:
        """Set the count back to what an earlier process had counted."""
        self.seen, self.digest = seen, KeysDigest(self._salt)
        self.digest.merge(digest)

    def merged(self, digests: list[str]) -> str:
        """The keys digests of several ranks as one."""
        total = KeysDigest(self._salt)
        for digest in digests:
            total.merge(digest)
        return total.hex()

    def coverage(self, split: str, *, passes: int, seen: int, digest: str) -> Coverage:
        """Compare what all ranks read (`seen` samples with keys digest `digest`) with `passes` passes over the samples."""
        expected = KeysDigest(self._salt)
        for key in self.reader.samples.keys:
            expected.add(key, passes)
        return Coverage(
            split=split,
            passes=passes,
            samples_expected=passes * len(self.reader.samples),
            samples_seen=seen,
            keys_digest=digest,
            expected_digest=expected.hex(),
            complete=digest == expected.hex() and seen == passes * len(self.reader.samples),
        )

    def close(self) -> None:
        """End the background thread and close the shards."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.reader.close()


class Feed:
    """One stream, or two side by side, as the loop reads them; `totals` and `restore` carry coverage over a restart."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = streams

    def batch(self, step: int) -> Any:
        """The batch of the only stream, or a tuple with one of each."""
        batches = tuple(stream.batch(step) for stream in self.streams)
        return batches if len(batches) > 1 else batches[0]

    def count(self, batch: Any) -> None:
        """Note that a batch was used."""
        for stream, part in zip(self.streams, batch if len(self.streams) > 1 else (batch,), strict=True):
            stream.count(part)

    def totals(self, group: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Samples seen and keys digest of each stream, summed over the ranks of `group`."""
        ranks = group.gather([(stream.seen, stream.digest.hex()) for stream in self.streams])
        seen = tuple(sum(rank[n][0] for rank in ranks) for n in range(len(self.streams)))
        return seen, tuple(self.streams[n].merged([rank[n][1] for rank in ranks]) for n in range(len(self.streams)))

    def restore(self, seen: tuple[int, ...], digests: tuple[str, ...], rank: int) -> None:
        """Set the counts back to totals: rank 0 carries them, the others start from nothing."""
        for stream, count, digest in zip(self.streams, seen, digests, strict=True):
            stream.reset(count if rank == 0 else 0, digest if rank == 0 else "0")

    def close(self) -> None:
        """Close all streams."""
        for stream in self.streams:
            stream.close()
