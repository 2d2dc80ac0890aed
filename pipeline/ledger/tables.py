"""Files of requests, CSV or Parquet, read in pieces: rows of text with their numbers, however large the file is."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.errors import ConfigError, DataError, StorageError

__all__ = ["COLUMNS", "Row", "RowFile"]

COLUMNS = ("request_id", "kind", "value", "line", "subject", "copies", "basis", "note", "received_at", "due_at")
SHORT = {"key": "keys", "label": "label", "prefix": "prefix", "digest": "digest", "likeness": "likeness"}
"""A column called so stands for `value`, and says the kind."""
SINGULAR = {"key": "keys", "labels": "label", "prefixes": "prefix", "digests": "digest"}
ROWS = 20_000
BLOCK_BYTES = 1 << 20
Row = tuple[int, dict[str, str]]


class RowFile:
    """An open file of requests.

    Attributes:
        path: its name, for messages.
        sha256: of its bytes.
        columns: those that it has, with `value` for a column named after a kind.
        kind: what that column's name says; empty where a column `kind` does.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._stream: IO[bytes] = open(path, "rb")  # noqa: SIM115
        except OSError as fault:
            raise StorageError(f"{path}: {fault.strerror}", "name a file that can be read") from None
        try:
            self.sha256 = hashlib.file_digest(self._stream, "sha256").hexdigest()
            self._parquet = Path(path).suffix.lower() in (".parquet", ".pq")
            if not self._parquet and Path(path).suffix.lower() != ".csv":
                raise ConfigError(f"{path}: neither .csv nor .parquet", "write the requests as one of these")
            self._names = self._header()
            short = [name for name in self._names if name in SHORT and "value" not in self._names]
            if len(short) > 1 or (short and "kind" in self._names):
                raise ConfigError(f"{path}: columns {', '.join(short)}: which holds the values?", "name columns kind and value")
            self.kind = SHORT[short[0]] if short else ""
            self._renamed = {short[0]: "value"} if short else {}
            self.columns = tuple(self._renamed.get(name, name) for name in self._names)
            self._check_columns()
        except BaseException:
            self.close()
            raise

    def kind_of(self, row: Mapping[str, str]) -> str:
        """The kind of a row's value, as requests have it."""
        kind = row.get("kind") or self.kind
        return SINGULAR.get(kind, kind)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def _check_columns(self) -> None:
        needed = {"value"} if self.kind else {"kind", "value"}
        missing = sorted(needed - set(self.columns))
        unknown = sorted(set(self.columns) - set(COLUMNS))
        doubled = sorted({name for name in self.columns if self.columns.count(name) > 1})
        cure = f"columns: {', '.join(COLUMNS)}; or key in place of kind and value"
        for what, names in (("no column", missing), ("unknown column", unknown), ("a column twice:", doubled)):
            if names:
                raise ConfigError(f"{self.path}: {what} {', '.join(names)}", cure)

    def _header(self) -> list[str]:
        self._stream.seek(0)
        with self._readable():
            if self._parquet:
                return list(pa.parquet.ParquetFile(self._stream).schema_arrow.names)
            line = self._stream.readline(1 << 16).decode("utf-8-sig")
        import csv

        return [name.strip() for name in next(csv.reader([line]), [])]

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, UnicodeDecodeError, OSError):  # their own texts quote the rows
            kind = "Parquet" if self._parquet else "CSV"
            raise DataError(f"{self.path}: not readable as {kind}", "write the file again") from None

    def _pieces(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns `names`, each a column of bytes or text, in pieces."""
        self._stream.seek(0)
        if self._parquet:
            with self._readable():
                yield from pa.parquet.ParquetFile(self._stream).iter_batches(ROWS, columns=list(names))
            return
        faulty: list[int | None] = []

        def invalid(row: Any) -> str:
            faulty.append(row.number)
            return "error"

        try:
            # One thread, else a faulty row has no number. Not closed with the reader: the stream is read several times.
            reader = pa.csv.open_csv(
                pa.PythonFile(_Unclosed(self._stream), mode="r"),
                pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, skip_rows=1, column_names=self._names),
                pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=invalid),
                pa.csv.ConvertOptions(
                    include_columns=list(names), column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False
                ),
            )
            yield from reader
        except StopIteration:
            return
        except pa.ArrowInvalid as fault:
            if faulty and faulty[-1] is not None:
                message = f"{self.path}: row {faulty[-1] - 1}: not {len(self._names)} columns"
                raise DataError(message, "correct the row, or put its text in quotes") from None
            if "Empty CSV" in str(fault):
                return
            raise DataError(f"{self.path}: not readable as CSV", "write the file again") from None

    def rows(self) -> Iterator[Row]:
        """All rows with their numbers, from 1 on; rows that share a request_id come one after the other.

        Raises:
            DataError: a row that is not readable, named by its number.
        """
        if "request_id" in self.columns and self._scattered():
            yield from self._gathered()
            return
        yield from self._in_order()

    def _in_order(self) -> Iterator[Row]:
        number = 0
        for piece in self._pieces(self._names):
            columns = [self._text(piece.column(place), number) for place in range(piece.num_columns)]
            for values in zip(*columns, strict=True):
                number += 1
                yield number, dict(zip(self.columns, values, strict=True))

    def _text(self, column: pa.Array, before: int) -> list[str]:
        with self._readable():
            if not pa.types.is_binary(column.type):
                return [value or "" for value in column.cast(pa.string()).to_pylist()]
        found = []
        for number, value in enumerate(column.to_pylist(), start=before + 1):
            try:
                found.append(value.decode().strip() if value else "")
            except UnicodeDecodeError:
                raise DataError(f"{self.path}: row {number}: not UTF-8", "write the file in UTF-8") from None
        return found

    def _scattered(self) -> bool:
        """Whether a request_id comes again after others: 8 bytes are kept for each change of it."""
        last, marks = None, [np.empty(0, dtype=np.int64)]
        for piece in self._pieces(["request_id"]):
            changes = []
            for name in self._text(piece.column(0), 0):
                if name and name != last:
                    changes.append(hash(name))
                last = name
            marks.append(np.array(changes, dtype=np.int64))
        together = np.sort(np.concatenate(marks))
        return bool((together[1:] == together[:-1]).any())

    def _gathered(self) -> Iterator[Row]:
        """The rows ordered by request_id, by way of a temporary database that SQLite keeps on disk and removes."""
        with contextlib.closing(sqlite3.connect("")) as scratch:
            names = ", ".join(self.columns)
            scratch.execute(f"CREATE TABLE line (number INTEGER PRIMARY KEY, {names})")
            marks = ", ".join("?" for _ in range(len(self.columns) + 1))
            insert = f"INSERT INTO line VALUES ({marks})"  # noqa: S608
            scratch.executemany(insert, ((number, *row.values()) for number, row in self._in_order()))
            for number, *values in scratch.execute("SELECT * FROM line ORDER BY request_id, number"):
                yield number, dict(zip(self.columns, values, strict=True))


class _Unclosed:
    """A stream that its reader does not close."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        return None
