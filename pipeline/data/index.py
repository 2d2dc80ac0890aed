"""The key index: where every sample of a list of shards lies, with its label and digest, as one Parquet table."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shards import Sample, read_shard
from pipeline.errors import DataError, IntegrityError
from pipeline.records import FileRef, ShardRef
from pipeline.storage import publish_bytes, read_bytes

__all__ = ["SCHEMA", "KeysDigest", "Progress", "build_index", "keys_digest", "map_shards", "read_table", "write_table"]

Progress = Callable[[str, int], None]
"""Called with what is being done and how many samples are done so far."""

Task = TypeVar("Task")
Answer = TypeVar("Answer")

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("ext", pa.string()),
        ("label", pa.int32()),
        ("sha256", pa.string()),
    ]
)
"""One row a sample, in shard order. `shard` counts in the list of shards; `offset` and `size` are the image's bytes."""

MODULUS = 1 << 256
# A worker costs about half a second to start: below this many shards each, fewer workers are faster.
SHARDS_PER_WORKER = 8


class KeysDigest:
    """Order-free digest of a multiset of keys, for proof that a pass read each key equally often.

    The sum modulo 2**256 of sha256(salt|key). A sum and not an exclusive or, so that a key read twice does not cancel.
    Two digests made on different ranks merge into the digest of both.
    """

    def __init__(self, salt: str) -> None:
        self._salt, self._sum = salt, 0

    def add(self, key: str, times: int = 1) -> None:
        """Count a key."""
        self._sum += times * int.from_bytes(hashlib.sha256(f"{self._salt}|{key}".encode()).digest(), "big")

    def merge(self, digest: str) -> None:
        """Count all that another digest with the same salt counted, given as its `hex()`."""
        self._sum += int(digest, 16)

    def hex(self) -> str:
        """64 hexadecimal digits."""
        return f"{self._sum % MODULUS:064x}"


def keys_digest(keys: Iterable[str], salt: str) -> str:
    """`KeysDigest` of all keys, each once; `salt` is the batch digest."""
    counted = KeysDigest(salt)
    for key in keys:
        counted.add(key)
    return counted.hex()


def map_shards(work: Callable[[Task], Answer], tasks: Sequence[Task], *, workers: int = 0) -> Iterable[Answer]:
    """Do `work` for each task, in order, in processes where there are enough tasks.

    Args:
        work: a module-level function of one task.
        tasks: picklable tasks, about one shard each.
        workers: processes; 0 chooses for this machine and this number of tasks.
    """
    workers = workers or min(len(os.sched_getaffinity(0)), len(tasks) // SHARDS_PER_WORKER)
    if workers < 2 or len(tasks) < 2:
        yield from map(work, tasks)
        return
    # Spawned, not forked: the parent may hold threads of torch or of fsspec.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(work, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _columns(samples: list[Sample], shard: int) -> pa.RecordBatch:
    columns = {name: [getattr(sample, name) for sample in samples] for name in SCHEMA.names if name != "shard"}
    return pa.RecordBatch.from_pydict({**columns, "shard": [shard] * len(samples)}, schema=SCHEMA)


def build_index(
    uris: Sequence[str], *, workers: int = 0, progress: Progress | None = None
) -> tuple[pa.Table, tuple[ShardRef, ...]]:
    """Read all shards and index them; the result does not depend on `workers`.

    Args:
        uris: shards in order; column `shard` counts in this list.
        workers: processes; 0 chooses for this machine.
        progress: told the number of samples read so far.

    Returns:
        The table of `SCHEMA`, and each shard's digest, size and samples.

    Raises:
        DataError: a bad shard or sample (`pipeline.data.shards`), or a key that lies in two shards.
    """
    batches: list[pa.RecordBatch] = []
    refs: list[ShardRef] = []
    homes: dict[str, str] = {}
    # memory:// lives in this process alone.
    workers = 1 if any(uri.startswith("memory://") for uri in uris) else workers
    for samples, ref in map_shards(read_shard, uris, workers=workers):
        for sample in samples:
            home = homes.setdefault(sample.key, ref.uri)
            if home != ref.uri:
                raise DataError(f"{ref.uri}: key '{sample.key}': also in {home}", "give each sample a key of its own")
        batches.append(_columns(samples, len(refs)))
        refs.append(ref)
        if progress is not None:
            progress("index", len(homes))
    return pa.Table.from_batches(batches, schema=SCHEMA), tuple(refs)


def write_table(table: pa.Table, uri: str) -> FileRef:
    """Publish a table as Parquet; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return publish_bytes(uri, sink.getvalue().to_pybytes())


def read_table(uri: str, ref: FileRef) -> pa.Table:
    """Read a published table.

    Raises:
        IntegrityError: its bytes are not those that `ref` recorded.
    """
    content = read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != ref.sha256:
        raise IntegrityError(
            f"{uri}: not the bytes that were recorded", "restore the file, or remove its folder to build it again"
        )
    return pq.read_table(pa.BufferReader(content))
