"""A split as uint8 batches by step number, and the count of what was read.

The order is a function of seed and pass (`pipeline.data.order`), so a stream can start at any step. What is handed out is
decided last: an image that has a tombstone by then is skipped, has weight 0 and is black, also if it was decoded before.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import StreamConfig
from pipeline.data.ahead import Ahead, Made
from pipeline.data.order import Order
from pipeline.data.reader import ImageReader
from pipeline.data.rows import KeysDigest
from pipeline.data.samples import Samples, read_samples
from pipeline.draws import draws_of_rows
from pipeline.errors import DataError
from pipeline.records import Coverage, record

__all__ = ["Batch", "Feed", "ImageReader", "Samples", "Stream", "read_samples", "to_tensor"]


def to_tensor(images_NHWC: np.ndarray, device: torch.device | None = None) -> Tensor:
    """uint8 [n, H, W, C] -> fp32 [n, C, H, W] in [0, 1] on `device`."""
    return torch.from_numpy(images_NHWC).to(device).permute(0, 3, 1, 2).float().div_(255)


@record
class Batch:
    """One rank's part of a global batch of B samples. Padding and skipped samples have weight 0 and are black.

    images: uint8 [n, H, W, C], valid until two more batches were asked for · groups, labels: int64 [n], -1 for none ·
    weights: fp32 [n], 0 or 1 · rows, keys: positions and keys of the samples, int64 [m], without padding · skipped: how many
    of the m have a tombstone · draws: int64 [n], from which all randomness of a sample at this step is made
    """

    images: np.ndarray
    groups: np.ndarray
    weights: np.ndarray
    rows: np.ndarray
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    keys: Sequence[str] = ()
    skipped: int = 0
    draws: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))


class _Tally:
    """The keys digest of what was read, and how many of it were skipped. As text: `digest`, or `digest+skipped`."""

    def __init__(self, salt: str, *texts: str) -> None:
        self._keys, self.skipped = KeysDigest(salt), 0
        for text in texts:
            digest, _, skipped = text.partition("+")
            self._keys.merge(digest)
            self.skipped += int(skipped or 0)

    def add(self, keys: Sequence[str], skipped: int) -> None:
        for key in keys:
            self._keys.add(key)
        self.skipped += skipped

    def hex(self) -> str:
        return f"{self._keys.hex()}+{self.skipped}" if self.skipped else self._keys.hex()


class Stream:
    """Batches of a split by step number, and the count of what was read.

    Each pass reads every sample once; its last batch is short. Ranks read the parts of a global batch that lie in their
    lanes, padded with weight 0 to the longest part, so that all take equal steps of equal shapes.

    Args:
        reader: of the split; the stream closes it.
        batch_size: of the global batch; the split's size at most.
        seed: 0 to 2**64 - 1.
        salt: of the keys digest.
        order: settings of the order.
        tombstones: gives sha256 of every key that must not be read any more; asked before each batch is handed out.

    Raises:
        DataError: the split is empty.
        ConfigError: more ranks than lanes.
    """

    def __init__(
        self,
        reader: ImageReader,
        *,
        batch_size: int,
        seed: int,
        salt: str,
        order: StreamConfig = StreamConfig(),  # noqa: B008 - frozen
        rank: int = 0,
        world_size: int = 1,
        tombstones: Callable[[], Container[bytes]] | None = None,
    ) -> None:
        if not len(reader.samples):
            raise DataError("a stream over no samples", "this split is empty: check the request and the source")
        segments = reader.samples.segments
        counts, sizes = [segment.samples for segment in segments], [segment.bytes for segment in segments]
        self.order = Order(counts, sizes, batch_size=batch_size, seed=seed, config=order)
        self.batch_size, self.steps_per_pass = self.order.batch_size, self.order.steps_per_pass
        self.reader, self._salt, self._tombstones, self._seed = reader, salt, tombstones, seed
        self._ahead = Ahead(reader, self.order, rank=rank, world_size=world_size)
        self.seen = 0
        """Samples handed out and counted, skipped ones included."""
        self.digest = _Tally(salt)
        """Their keys digest, and how many were skipped."""

    def batch(self, step: int) -> Batch:
        """This rank's part of global batch `step`; the next ones are made in the background.

        Raises:
            UnlearnError: a sample cannot be read, is not what the index recorded, or is unreadable; names shard and key.
        """
        return self._batch(self._ahead.get(step), step)

    def _batch(self, made: Made, step: int) -> Batch:
        size, count = len(made.images), len(made.items)
        rows = np.empty(count, dtype=np.int64)
        groups, labels = np.full((2, size), -1, dtype=np.int64)
        weights = (np.arange(size) < count).astype(np.float32)
        keys = [""] * count
        draws = np.zeros(size, dtype=np.int64)
        for place, piece, position in made.items:
            found, row = piece.rows, position - piece.position
            assert found is not None  # it was decoded
            rows[place], groups[place], labels[place] = position, found.group[row], found.label[row]
            keys[place] = found.keys[row]
        draws[:count] = draws_of_rows(rows, self._seed, step)
        if self._tombstones is not None:
            dead = self._tombstones()
            skipped = [place for place, key in enumerate(keys) if hashlib.sha256(key.encode()).digest() in dead]
            weights[skipped] = 0
            made.images[skipped] = 0
        return Batch(
            images=made.images,
            groups=groups,
            weights=weights,
            rows=rows,
            labels=labels,
            keys=keys,
            skipped=count - int(weights.sum()),
            draws=draws,
        )

    def count(self, batch: Batch) -> None:
        """Note that a batch was used, for the coverage."""
        self.seen += len(batch.rows)
        self.digest.add(batch.keys, batch.skipped)

    def reset(self, seen: int, digest: str) -> None:
        """Set the count back to what an earlier process had counted."""
        self.seen, self.digest = seen, _Tally(self._salt, digest)

    def merged(self, digests: list[str]) -> str:
        """The keys digests of several ranks, each with its number of skipped samples, as one."""
        return _Tally(self._salt, *digests).hex()

    def coverage(self, split: str, *, passes: int, seen: int, digest: str) -> Coverage:
        """Compare what all ranks read with `passes` passes over the samples.

        Args:
            seen: samples handed out, skipped ones included.
            digest: of their keys, with the number of skipped ones.
        """
        samples, expected, found = self.reader.samples, KeysDigest(self._salt), _Tally(self._salt, digest)
        for number in range(len(samples.segments)):
            for key in samples.rows(number).keys:
                expected.add(key, passes)
        keys_digest = found.hex().partition("+")[0]
        return Coverage(
            split=split,
            passes=passes,
            samples_expected=passes * len(samples),
            samples_seen=seen - found.skipped,
            keys_digest=keys_digest,
            expected_digest=expected.hex(),
            complete=keys_digest == expected.hex() and seen == passes * len(samples),
            skipped=found.skipped,
        )

    def close(self) -> None:
        """End the threads and close the shards."""
        self._ahead.close()
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
