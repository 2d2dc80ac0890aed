"""Requests for people: searched and paged by the database, without keys, subjects, bases and notes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from pipeline.ledger.deadlines import later
from pipeline.ledger.requests import KINDS
from pipeline.ledger.schema import REQUEST
from pipeline.ledger.states import FINAL, REQUEST_MOVES
from pipeline.ledger.store import Transaction

__all__ = ["COLUMNS", "PAGE", "SOON_SECONDS", "Found", "Search", "figures", "marked", "rows_of", "search"]

PAGE = 100
SOON_SECONDS = 7 * 86400.0
COLUMNS = (
    REQUEST.c.request_id, REQUEST.c.line, REQUEST.c.kind, REQUEST.c.values_count, REQUEST.c.received_at, REQUEST.c.due_at,
    REQUEST.c.extended_from, REQUEST.c.state, REQUEST.c.batch_id, REQUEST.c.attempts, REQUEST.c.repeats,
)  # fmt: skip
"""What is shown of a request: no other column is read."""
WAITING = ("received", "queued")
LONGEST = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for; empty: anything. q: part of a request's name · state: one, `open` or `all` · due: `overdue`, `soon`."""

    q: str = ""
    line: str = ""
    state: str = "open"
    kind: str = ""
    batch: str = ""
    due: str = ""
    page: int = 1

    def as_query(self, **changed: Any) -> dict[str, str]:
        """The fields that differ from a search for nothing, as a link has them."""
        given = {**dataclasses.asdict(self), **changed}
        return {name: str(value) for name, value in given.items() if value != getattr(Search(), name)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """One page of what a search found. `total` counts all pages."""

    search: Search
    rows: Sequence[Mapping[str, Any]]
    total: int
    pages: int
    size: int = PAGE

    @property
    def first(self) -> int:
        """Number of the page's first row, from 1 on."""
        return (self.search.page - 1) * self.size + 1 if self.total else 0


def _conditions(asked: Search, now: str) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if asked.q:
        found.append(REQUEST.c.request_id.ilike(f"%{_literal(asked.q[:LONGEST])}%", escape="\\"))
    if asked.batch:
        found.append(REQUEST.c.batch_id == asked.batch)
    if asked.line:
        found.append(REQUEST.c.line == asked.line)
    if asked.kind in KINDS:
        found.append(REQUEST.c.kind == asked.kind)
    if asked.state in REQUEST_MOVES:
        found.append(REQUEST.c.state == asked.state)
    elif asked.state != "all":
        found.append(REQUEST.c.state.not_in(FINAL))
    if asked.due in ("overdue", "soon"):  # what is closed is neither
        found.append(REQUEST.c.state.not_in(FINAL))
        near = (REQUEST.c.due_at >= now, REQUEST.c.due_at <= later(now, SOON_SECONDS))
        found += [REQUEST.c.due_at < now] if asked.due == "overdue" else near
    return found


def _literal(text: str) -> str:
    """A text in which LIKE's own signs stand for themselves."""
    return text.replace("\0", "").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def search(tx: Transaction, asked: Search) -> Found:
    """The page of requests that a search asks for; open ones by due date, others with the latest first."""
    conditions = _conditions(asked, tx.now)
    total = int(tx.execute(sa.select(sa.func.count()).select_from(REQUEST).where(*conditions)).scalar_one())
    pages = max(1, -(-total // PAGE))
    asked = dataclasses.replace(asked, page=min(max(1, asked.page), pages))
    latest_first = asked.state == "all" or asked.state in FINAL
    order = REQUEST.c.due_at.desc() if latest_first else REQUEST.c.due_at
    query = sa.select(*COLUMNS).where(*conditions).order_by(order, REQUEST.c.request_id)
    rows = tx.execute(query.limit(PAGE).offset((asked.page - 1) * PAGE)).mappings()
    return Found(search=asked, rows=[marked(dict(row), tx.now) for row in rows], total=total, pages=pages)


def rows_of(tx: Transaction, *, is_open: bool, after: tuple[str, str] = ("", ""), limit: int = 1000) -> list[dict[str, Any]]:
    """Open or closed requests by due date and name, in pieces: those after the pair of both that was last seen."""
    key = sa.tuple_(REQUEST.c.due_at, REQUEST.c.request_id)
    state = REQUEST.c.state.not_in(FINAL) if is_open else REQUEST.c.state.in_(FINAL)
    query = sa.select(*COLUMNS).where(state, key > after).order_by(REQUEST.c.due_at, REQUEST.c.request_id).limit(limit)
    return [marked(dict(row), tx.now) for row in tx.execute(query).mappings()]


def marked(row: Mapping[str, Any], now: str) -> dict[str, Any]:
    """A row with `due`: `overdue`, `soon`, or empty where it is neither, or no longer open."""
    due = ""
    if row["state"] not in FINAL:
        due = "overdue" if row["due_at"] < now else "soon" if row["due_at"] <= later(now, SOON_SECONDS) else ""
    return {**row, "due": due}


def figures(tx: Transaction) -> dict[str, Any]:
    """What stands above the queue: how many wait, are at work, late and due soon; by state; the lines that there are."""
    rows: Any = tx.execute(sa.select(REQUEST.c.state, sa.func.count()).group_by(REQUEST.c.state))
    by_state = {str(state): int(number) for state, number in rows}
    is_open = REQUEST.c.state.not_in(FINAL)
    late = sa.select(sa.func.count()).where(is_open, REQUEST.c.due_at < tx.now)
    soon = sa.select(sa.func.count()).where(is_open, REQUEST.c.due_at >= tx.now, REQUEST.c.due_at <= later(tx.now, SOON_SECONDS))
    return {
        "by_state": {state: by_state[state] for state in REQUEST_MOVES if state in by_state},
        "total": sum(by_state.values()),
        "open": sum(number for state, number in by_state.items() if state not in FINAL),
        "waiting": sum(by_state.get(state, 0) for state in WAITING),
        "overdue": int(tx.execute(late).scalar_one()),
        "soon": int(tx.execute(soon).scalar_one()),
        "lines": sorted(str(line) for line in tx.execute(sa.select(REQUEST.c.line).distinct()).scalars()),
        "oldest": tx.execute(sa.select(sa.func.min(REQUEST.c.queued_at)).where(REQUEST.c.state.in_(WAITING))).scalar(),
        "nearest": tx.execute(sa.select(sa.func.min(REQUEST.c.due_at)).where(is_open)).scalar(),
    }
