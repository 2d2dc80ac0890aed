"""Ledgers with requests in them, the rules that always hold in one, and ways to break off its work."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

from pipeline.ledger import batches, history
from pipeline.ledger.requests import Submission, submit
from pipeline.ledger.schema import BATCH, BATCH_REQUEST, REQUEST, REQUEST_VALUE
from pipeline.ledger.store import Ledger, Transaction
from pipeline.requests import batch_digest

LIVE = ("closed", "running", "evaluated", "failed", "held")
WITH_BATCH = {
    "closed": {"batched"},
    "running": {"running"},
    "evaluated": {"evaluated"},
    "failed": {"failed", "held"},
    "held": {"held"},
    "released": {"released", "failed", "held"},
}


class Broken(Exception):
    """The end of a process, as far as a test can bring it about from inside."""


def fill(ledger: Ledger, count: int, *, line: str = "demo", first: int = 0) -> list[str]:
    """Take in so many requests of one key each; returns their names."""
    with ledger.write() as tx:
        return [
            submit(tx, Submission(kind="keys", values=(f"{line}-{number}",), line=line)).request_id
            for number in range(first, first + count)
        ]


@contextlib.contextmanager
def broken_at(ledger: Ledger, number: int) -> Iterator[collections.Counter[str]]:
    """Raise `Broken` in place of the statement of this number, from 1 on; counts them under `statements`."""
    seen: collections.Counter[str] = collections.Counter()

    def before(*_: object) -> None:
        seen["statements"] += 1
        if seen["statements"] == number:
            raise Broken

    sa.event.listen(ledger.engine, "before_cursor_execute", before)
    try:
        yield seen
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", before)


def assert_consistent(ledger: Ledger) -> None:
    """What holds in every ledger at any time: batches and requests agree, and the history is whole."""
    assert history.check(ledger) == []
    with ledger.read() as tx:
        rows = {row["batch_id"]: row for row in tx.execute(sa.select(BATCH)).mappings()}
        for name, row in rows.items():
            _assert_batch(tx, name, row)
        for row in tx.execute(sa.select(REQUEST)).mappings():
            assert (row["batch_id"] is None) == (row["state"] in ("received", "queued", "withdrawn", "refused")), dict(row)
            assert row["batch_id"] is None or row["batch_id"] in rows
        values = sa.select(REQUEST_VALUE.c.request_id, sa.func.count()).group_by(REQUEST_VALUE.c.request_id)
        counted = dict(tuple(row) for row in tx.execute(values))
        assert counted == dict(tuple(row) for row in tx.execute(sa.select(REQUEST.c.request_id, REQUEST.c.values_count)))


def _assert_batch(tx: Transaction, name: str, row: sa.RowMapping) -> None:
    members = list(tx.execute(sa.select(BATCH_REQUEST.c.request_id).where(BATCH_REQUEST.c.batch_id == name)).scalars())
    assert len(members) == row["requests_count"], dict(row)
    assert (row["state"] == "withdrawn") == (not members)
    if members:
        assert row["requests_digest"] == batch_digest(batches.as_batch(tx, name))
    if row["state"] in WITH_BATCH:
        states = set(tx.execute(sa.select(REQUEST.c.state).where(REQUEST.c.batch_id == name)).scalars())
        assert states <= WITH_BATCH[row["state"]], (dict(row), states)
    live = sa.select(sa.func.count()).select_from(BATCH_REQUEST.join(BATCH, BATCH.c.batch_id == BATCH_REQUEST.c.batch_id))
    twice = live.where(BATCH_REQUEST.c.request_id.in_(members), BATCH.c.state.in_(LIVE)).group_by(BATCH_REQUEST.c.request_id)
    assert all(count == 1 for count in tx.execute(twice).scalars()), "a request is in one live batch at most"


def move_through(ledger: Ledger, batch_id: str, *states: str) -> None:
    """Move a batch from state to state."""
    for state in states:
        with ledger.write() as tx:
            batches.move(tx, batch_id, state)
