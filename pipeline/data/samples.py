"""The samples of a split: which shards hold them, and their index rows, read when they are wanted.

A split's rows lie in Parquet files, one row group a shard, so what is in memory is one line a shard, however many
samples it has. Small choices of samples (`take`) are held in memory.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.data.rows import read_row_group
from pipeline.records import Manifest
from pipeline.storage import join

__all__ = ["Rows", "Samples", "Segment", "read_samples"]

ROW_GROUPS_KEPT = 256
"""Row groups of one split kept decoded: about 0.1 MB each for shards of a thousand samples."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Samples of a split that lie in one shard, in the shard's order. `bytes` is the shard's size."""

    uri: str
    samples: int
    bytes: int
    index: str = ""
    index_sha256: str = ""
    row_group: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Index rows of n samples of one shard. offset, size, label, group: int64 [n]; sha256: 32 bytes each."""

    keys: Sequence[str]
    offset: np.ndarray
    size: np.ndarray
    ext: Sequence[str]
    label: np.ndarray
    group: np.ndarray
    sha256: Sequence[bytes]


def as_rows(table: pa.Table) -> Rows:
    """Columns of an index table as arrays; group is -1 where the table has none."""
    numbers = {name: table[name].to_numpy().astype(np.int64, copy=False) for name in ("offset", "size", "label")}
    group = table["group"].to_numpy().astype(np.int64) if "group" in table.column_names else np.full(len(table), -1)
    texts = {name: table[name].to_pylist() for name in ("ext", "sha256")}
    return Rows(keys=table["key"].to_pylist(), group=group, **numbers, **texts)


class Samples:
    """Samples in a fixed order, segment after segment.

    Args:
        segments: the shards in order.
        tables: in-memory rows of each segment, where the samples were chosen one by one.
        split: name of the split that they are of.
    """

    def __init__(self, segments: Sequence[Segment], tables: Sequence[pa.Table] | None = None, *, split: str = "") -> None:
        self.segments, self.split = tuple(segments), split
        self.starts = np.cumsum([0, *(segment.samples for segment in segments)])
        """int64 [segments + 1]: position of each segment's first sample."""
        self._tables = tables
        self._load = functools.lru_cache(maxsize=ROW_GROUPS_KEPT)(self._read)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _read(self, number: int) -> pa.Table:
        if self._tables is not None:
            return self._tables[number]
        segment = self.segments[number]
        return read_row_group(segment.index, segment.index_sha256, segment.row_group)

    def rows(self, segment: int, start: int = 0, stop: int | None = None) -> Rows:
        """Index rows `start` to `stop` of a segment; safe to call from several threads."""
        table = self._load(segment)
        return as_rows(table.slice(start, (table.num_rows if stop is None else stop) - start))

    def place(self, position: int) -> tuple[int, int]:
        """Segment of a position, and the row in it."""
        segment = bisect.bisect_right(self.starts, position) - 1
        return segment, position - int(self.starts[segment])

    @functools.cached_property
    def keys(self) -> list[str]:
        """All keys; for splits that fit in memory."""
        return [key for number in range(len(self.segments)) for key in self._load(number)["key"].to_pylist()]

    def _column(self, name: str) -> np.ndarray:
        parts = [getattr(self.rows(number), name) for number in range(len(self.segments))]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]"""
        return self._column("label")

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """int64 [N]: position in the manifest's groups, -1 for images that are not to be forgotten."""
        return self._column("group")

    def take(self, chosen: np.ndarray) -> Samples:
        """The samples at increasing int positions, or where a bool array is true; held in memory."""
        positions = np.flatnonzero(chosen) if chosen.dtype == bool else np.asarray(chosen, dtype=np.int64)
        homes = np.searchsorted(self.starts, positions, side="right") - 1
        segments, tables = [], []
        for number in np.unique(homes):
            rows = positions[homes == number] - self.starts[number]
            segments.append(dataclasses.replace(self.segments[number], samples=len(rows)))
            tables.append(self._load(int(number)).take(pa.array(rows)))
        return Samples(segments, tables, split=self.split)

    def spread(self, limit: int, seed: int) -> Samples:
        """At most `limit` samples, each equally likely; a function of the seed and of the order of samples."""
        if len(self) <= limit:
            return self
        chosen = np.random.Generator(np.random.Philox(key=[seed, 0])).choice(len(self), limit, replace=False, shuffle=False)
        return self.take(np.sort(chosen))


def read_samples(folder: str, manifest: Manifest, split: str) -> Samples:
    """The samples of `split`; index files are checked against the manifest when they are opened.

    Raises:
        IntegrityError: an index file was changed.
        StorageError: it is not there.
    """
    refs = {ref.uri: ref for ref in manifest.index}
    segments = []
    for shard in manifest.split(split).shards:
        ref = refs[shard.index]
        segments.append(
            Segment(
                uri=join(folder, shard.uri),
                samples=shard.samples,
                bytes=shard.bytes,
                index=join(folder, ref.uri),
                index_sha256=ref.sha256,
                row_group=shard.row_group,
            )
        )
    return Samples(segments, split=split)
