"""Index rows as Parquet: one row group a shard, written as equal bytes for equal rows, checked by digest when opened."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IntegrityError
from pipeline.records import FileRef
from pipeline.storage import hash_file, is_local, publish_bytes, read_bytes

__all__ = [
    "RUN_SCHEMA",
    "SCHEMA",
    "IndexFile",
    "KeysDigest",
    "key_hash",
    "keys_digest",
    "open_index",
    "read_columns",
    "read_row_group",
    "write_index",
]

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("key_hash", pa.uint64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("ext", pa.string()),
        ("label", pa.int32()),
        ("sha256", pa.binary(32)),
    ]
)
"""One row a sample, in the shard's order. `offset` and `size` locate the image's bytes in its shard; `key_hash` is the
first 8 bytes of sha256(key), so that keys are looked up as numbers."""

RUN_SCHEMA = SCHEMA.append(pa.field("group", pa.int32()))
"""A run's own rows: `group` is the position in the manifest's groups, -1 for images that are not to be forgotten."""

MODULUS = 1 << 256
FILES_OPEN = 64
META = b"unlearn"


class KeysDigest:
    """Order-free digest of a multiset of keys, for proof that a pass read each key equally often.

    The sum modulo 2**256 of sha256(salt + key). A sum and not an exclusive or, so that a key read twice does not cancel. Two
    digests made on different ranks, or of different shards, merge into the digest of both.
    """

    def __init__(self, salt: str = "") -> None:
        self._salt, self._sum = salt, 0

    def add(self, key: str, times: int = 1) -> None:
        """Count a key."""
        self._sum += times * int.from_bytes(hashlib.sha256((self._salt + key).encode()).digest(), "big")

    def merge(self, digest: str, times: int = 1) -> None:
        """Count all that another digest counted, given as its `hex()`."""
        self._sum += times * int(digest, 16)

    def hex(self) -> str:
        """64 hexadecimal digits."""
        return f"{self._sum % MODULUS:064x}"


def keys_digest(keys: Iterable[str]) -> str:
    """`KeysDigest` of all keys, each once."""
    counted = KeysDigest()
    for key in keys:
        counted.add(key)
    return counted.hex()


def key_hash(key: str) -> int:
    """The first 8 bytes of sha256(key), big-endian: 64 bits."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def write_index(uri: str, tables: Iterable[pa.Table], *, schema: pa.Schema = SCHEMA, meta: bytes = b"") -> FileRef:
    """Publish tables as row groups of one Parquet file; equal tables give equal bytes. No table may be empty."""
    sink = pa.BufferOutputStream()
    # Hashes do not repeat and do not compress; keys of one shard share their beginnings.
    plain = {"key": "DELTA_BYTE_ARRAY", "key_hash": "PLAIN", "sha256": "PLAIN", "offset": "DELTA_BINARY_PACKED", "size": "PLAIN"}
    compression = {name: "none" if name in ("key_hash", "sha256") else "zstd" for name in schema.names}
    dictionary = [name for name in schema.names if name not in plain]
    with pq.ParquetWriter(
        sink, schema, compression=compression, use_dictionary=dictionary, column_encoding=plain, write_statistics=False
    ) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({META: meta})
    return publish_bytes(uri, sink.getvalue().to_pybytes())


class IndexFile:
    """An open index file. pyarrow's reader is not made for several threads at once, so reads take turns."""

    def __init__(self, uri: str, sha256: str) -> None:
        content = None if is_local(uri) else read_bytes(uri)
        found = hash_file(uri).sha256 if content is None else hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise _changed(uri)
        # Opened only now: pyarrow has errors of its own for a file that is damaged.
        self._file = pq.ParquetFile(uri, memory_map=True) if content is None else pq.ParquetFile(pa.BufferReader(content))
        self._lock = threading.Lock()

    @property
    def counts(self) -> list[int]:
        """Rows of each row group."""
        meta = self._file.metadata
        return [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]

    @property
    def meta(self) -> bytes:
        """What the writer left with the file."""
        return bytes(self._file.metadata.metadata.get(META, b""))

    def row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one shard."""
        with self._lock:
            return self._file.read_row_group(number, columns=columns, use_threads=False)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows."""
        with self._lock:
            return self._file.read(columns=list(names), use_threads=False)


def _changed(uri: str) -> IntegrityError:
    return IntegrityError(f"{uri}: not the index that was recorded", "restore the file, or run the shard stage again")


@functools.lru_cache(maxsize=FILES_OPEN)
def open_index(uri: str, sha256: str) -> IndexFile:
    """Open a published index file.

    Raises:
        IntegrityError: its bytes are not those that were recorded.
        StorageError: it is not there.
    """
    try:
        return IndexFile(uri, sha256)
    except pa.ArrowException:
        raise _changed(uri) from None


def read_row_group(uri: str, sha256: str, number: int) -> pa.Table:
    """Rows of one shard. Safe to call from several threads."""
    return open_index(uri, sha256).row_group(number)


def read_columns(uri: str, sha256: str, names: Sequence[str]) -> tuple[pa.Table, list[int]]:
    """Some columns of all rows of an index file, and the rows in each row group; the file is not kept open."""
    file = IndexFile(uri, sha256)
    return file.columns(names), file.counts
