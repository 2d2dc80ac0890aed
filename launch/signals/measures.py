"""Prometheus metrics of a ledger, in the text format 0.0.4: how many requests and batches are where, and what is late."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from pipeline.ledger.deadlines import later, moment
from pipeline.ledger.schema import ALIAS, BATCH, MODEL, REQUEST
from pipeline.ledger.states import BATCH_MOVES, FINAL, REQUEST_MOVES
from pipeline.ledger.store import Transaction

__all__ = ["CONTENT_TYPE", "SOON_SECONDS", "Sample", "exposition", "samples"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SOON_SECONDS = 7 * 86400.0
WAITING, AT_WORK = ("received", "queued"), ("closed", "running", "evaluated")

Sample = tuple[str, str, str, dict[str, str], float]
"""Name, type, help, labels, value."""

HELP = {
    "unlearn_requests": "Deletion requests by state and model line.",
    "unlearn_requests_oldest_waiting_seconds": "How long the oldest request of a line has waited for a batch; 0: none waits.",
    "unlearn_requests_overdue": "Open requests whose due date has passed.",
    "unlearn_requests_due_soon": "Open requests that are due within seven days, overdue ones not counted.",
    "unlearn_batches": "Batches of requests by state and model line.",
    "unlearn_batches_lease_expired": "Batches at work whose worker has let its lease run out.",
    "unlearn_models": "Models of a line whose weights are still kept.",
    "unlearn_alias_changes": "Changes of the aliases of a line so far.",
    "unlearn_history_entries": "Entries in the ledger's history.",
    "unlearn_last_tick_timestamp_seconds": "When the scheduler last did its round, in seconds since 1970.",
}


def samples(tx: Transaction, *, last_tick: str = "") -> Iterator[Sample]:
    """What the ledger holds now.

    Args:
        tx: any transaction.
        last_tick: when the scheduler last did its round, ISO 8601; empty: not known, and left out.
    """
    lines = sorted({*_column(tx, REQUEST.c.line), *_column(tx, BATCH.c.line), *_column(tx, MODEL.c.line)})
    for table, states, name in ((REQUEST, REQUEST_MOVES, "unlearn_requests"), (BATCH, BATCH_MOVES, "unlearn_batches")):
        query = sa.select(table.c.line, table.c.state, sa.func.count()).group_by(table.c.line, table.c.state)
        rows: Any = tx.execute(query)
        found = {(line, state): count for line, state, count in rows}
        for line in lines:
            # All states, so that a series that falls to nothing is seen to.
            for state in states:
                yield _gauge(name, found.get((line, state), 0), line=line, state=state)
    soon, late = later(tx.now, SOON_SECONDS), REQUEST.c.due_at < tx.now
    for line in lines:
        mine = REQUEST.c.line == line
        oldest = tx.execute(sa.select(sa.func.min(REQUEST.c.queued_at)).where(mine, REQUEST.c.state.in_(WAITING))).scalar()
        yield _gauge("unlearn_requests_oldest_waiting_seconds", _seconds(oldest, tx.now) if oldest else 0.0, line=line)
        yield _gauge("unlearn_requests_overdue", _count(tx, REQUEST, mine, REQUEST.c.state.not_in(FINAL), late), line=line)
        near = (mine, REQUEST.c.state.not_in(FINAL), ~late, REQUEST.c.due_at <= soon)
        yield _gauge("unlearn_requests_due_soon", _count(tx, REQUEST, *near), line=line)
        yield _gauge("unlearn_models", _count(tx, MODEL, MODEL.c.line == line, MODEL.c.removed_at.is_(None)), line=line)
        yield _gauge("unlearn_alias_changes", _count(tx, ALIAS, ALIAS.c.line == line), line=line)
    held = (BATCH.c.state.in_(AT_WORK), BATCH.c.lease_owner.is_not(None), BATCH.c.lease_until < tx.now)
    yield _gauge("unlearn_batches_lease_expired", _count(tx, BATCH, *held))
    yield _gauge("unlearn_history_entries", tx.seq)
    if last_tick:
        yield _gauge("unlearn_last_tick_timestamp_seconds", moment(last_tick, where="last tick").timestamp())


def _gauge(name: str, value: float, **labels: str) -> Sample:
    return name, "gauge", HELP[name], labels, float(value)


def _column(tx: Transaction, column: sa.Column[Any]) -> list[str]:
    return [str(value) for value in tx.execute(sa.select(column).distinct()).scalars()]


def _count(tx: Transaction, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(table).where(*conditions)).scalar_one())


def _seconds(before: str, after: str) -> float:
    span: datetime.timedelta = moment(after, where="now") - moment(before, where="queued_at")
    return max(0.0, span.total_seconds())


def exposition(found: Sequence[Sample]) -> str:
    """Samples as the text that Prometheus reads; those of one name stand together."""
    lines: list[str] = []
    for name in dict.fromkeys(sample[0] for sample in found):
        mine = [sample for sample in found if sample[0] == name]
        lines += [f"# HELP {name} {_escaped(mine[0][2], quote=False)}", f"# TYPE {name} {mine[0][1]}"]
        for _, _, _, labels, value in mine:
            inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            lines.append(f"{name}{f'{{{inside}}}' if inside else ''} {value:.15g}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str, *, quote: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text
