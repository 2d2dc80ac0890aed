"""Import of many requests from one file, in one transaction: all of them, or none where a row is faulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from pipeline.errors import ConfigError
from pipeline.ledger import history
from pipeline.ledger.pseudonyms import keyed_digest
from pipeline.ledger.refusals import refuse_broad
from pipeline.ledger.requests import Submission, known, prepare
from pipeline.ledger.schema import REQUEST, REQUEST_VALUE
from pipeline.ledger.states import FINAL
from pipeline.ledger.store import Transaction
from pipeline.ledger.tables import RowFile
from pipeline.records import record

__all__ = ["Imported", "import_file"]

REQUESTS_AT_ONCE, VALUES_AT_ONCE = 5_000, 50_000


@record
class Imported:
    """What an import did: rows read, new requests, repeats of older ones, values of the new ones, and the history entry."""

    rows: int
    new: int
    repeats: int
    values: int
    entry: int


def import_file(
    tx: Transaction,
    path: str,
    *,
    line: str = "",
    lines: Callable[[str], str] = str,
    checked: bool = False,
    confirmed: bool = False,
) -> Imported:
    """Take in all requests of a file; the history gets one entry.

    Args:
        tx: a transaction that writes; it must not go on where this raises.
        path: a CSV or Parquet file with columns as in `tables.COLUMNS`; rows that share a request_id are one request.
        line: the model line of rows that name none.
        lines: turns the name of a line into the ledger's, and raises where there is none; called once for each.
        checked: the values were looked up in an index.
        confirmed: a person agreed to whatever number of images that is.

    Raises:
        ConfigError, DataError: too broad, or a faulty file or row; the message has its number, and nothing of its text.
        StorageError: the file cannot be read.
    """
    with RowFile(path) as file:
        taking = _Taking(tx, path, checked or confirmed, lines)
        for numbers, submission in _submissions(file, line):
            taking.add(numbers, submission)
        taking.flush()
        if not taking.rows:
            raise ConfigError(f"{path}: no request in it", "name at least one key, label, prefix or digest")
        if not checked and not confirmed:
            refuse_broad(taking.kinds, None, where=path)
        digest = keyed_digest(tx.secret, "import", file.sha256)
    facts = {"rows": taking.rows, "new": taking.new, "repeats": taking.repeats, "values": taking.values}
    entry = history.append(tx, "request", f"import-{digest[:16]}", "imported", {**facts, "digest": digest, "state": taking.state})
    return Imported(**facts, entry=entry)


def _submissions(file: RowFile, line: str) -> Iterator[tuple[list[int], Submission]]:
    """The requests of a file, each with the numbers of its first and last row."""
    numbers: list[int] = []
    values: list[str] = []
    first: dict[str, str] = {}
    for number, row in file.rows():
        row["kind"] = file.kind_of(row)
        value = row.pop("value")
        if not value:
            raise ConfigError(f"{file.path}: row {number}: empty: no value", "name a key, label, prefix or digest")
        if numbers and row.get("request_id") and row["request_id"] == first.get("request_id"):
            for name, text in row.items():
                if text and text != first[name]:
                    message = f"{file.path}: row {number}: {name}: another than in row {numbers[0]} of the same request"
                    raise ConfigError(message, "give each request a request_id of its own")
            numbers[1:] = [number]
            values.append(value)
            continue
        if numbers:
            yield numbers, _submission(first, values, line)
        numbers, values, first = [number], [value], row
    if numbers:
        yield numbers, _submission(first, values, line)


def _submission(row: Mapping[str, str], values: list[str], line: str) -> Submission:
    given = {name: text for name, text in row.items() if text}
    return Submission(**{"line": line, **given}, values=tuple(values))


class _Taking:
    """Requests on their way into the ledger, some thousands at a time."""

    def __init__(self, tx: Transaction, path: str, checked: bool, lines: Callable[[str], str]) -> None:
        self.tx, self.path, self.state = tx, path, "queued" if checked else "received"
        self.secret, self.entry = tx.secret, tx.seq + 1
        self.kinds: set[str] = set()
        self._line, self._lines = lines, dict[str, str]()
        self.rows = self.new = self.repeats = self.values = 0
        self._waiting: list[tuple[int, dict[str, Any], list[str]]] = []
        self._size = 0

    def add(self, numbers: list[int], submission: Submission) -> None:
        if submission.line not in self._lines:
            try:
                self._lines[submission.line] = self._line(submission.line)
            except ConfigError as fault:
                raise ConfigError(f"{self.path}: row {numbers[0]}: line: {fault.message}", fault.cure) from None
        if self._lines[submission.line] != submission.line:
            submission = dataclasses.replace(submission, line=self._lines[submission.line])
        row, values = prepare(submission, self.secret, self.tx.now, where=f"{self.path}: row {numbers[0]}")
        self.rows += len(submission.values)
        self.kinds.add(submission.kind)
        row["request_id"] = row["request_id"] or f"r-{self.entry:06d}-{self.rows:07d}"
        row["state"], row["entry"] = self.state, self.entry
        self._waiting.append((numbers[0], row, values))
        self._size += len(values)
        if len(self._waiting) >= REQUESTS_AT_ONCE or self._size >= VALUES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Insert what waits, and count what is there already."""
        same = known(self.tx, [row["fingerprint"] for _, row, _ in self._waiting])
        taken = self._names_taken()
        fresh: list[tuple[Any, ...]] = []
        more: list[tuple[str, str]] = []
        repeated: dict[str, int] = {}
        for number, row, values in self._waiting:
            old = same.get(row["fingerprint"])
            if old is not None:
                if old["copies"] != row["copies"] and old["state"] not in FINAL:
                    message = f"{self.path}: row {number}: request {old['request_id']} is open with copies={old['copies']}"
                    raise ConfigError(message, "withdraw it first, or ask for the same")
                repeated[old["request_id"]] = repeated.get(old["request_id"], 0) + 1
                continue
            if row["request_id"] in taken:
                message = f"{self.path}: row {number}: request_id: the ledger has another request of this name"
                raise ConfigError(message, "choose another name")
            taken.add(row["request_id"])
            same[row["fingerprint"]] = row
            fresh.append(tuple(row.values()))
            more += [(row["request_id"], value) for value in values]
        if fresh:
            self.tx.insert(REQUEST, tuple(self._waiting[0][1]), fresh)
            self.tx.insert(REQUEST_VALUE, ("request_id", "value"), more)
        if repeated:
            more_often = REQUEST.c.repeats + sa.bindparam("count")
            counted = sa.update(REQUEST).where(REQUEST.c.request_id == sa.bindparam("named")).values(repeats=more_often)
            self.tx.execute(counted, [{"named": name, "count": count} for name, count in repeated.items()])
        self.new, self.values, self.repeats = (
            self.new + len(fresh),
            self.values + len(more),
            self.repeats + sum(repeated.values()),
        )
        self._waiting, self._size = [], 0

    def _names_taken(self) -> set[str]:
        """Names that rows bring along and that the ledger has; those that begin with r- are of this import alone."""
        names = [row["request_id"] for _, row, _ in self._waiting if not row["request_id"].startswith("r-")]
        if not names:
            return set()
        query = sa.select(REQUEST.c.request_id).where(self.tx.any_of(REQUEST.c.request_id, names))
        return {str(name) for name in self.tx.execute(query).scalars()}
