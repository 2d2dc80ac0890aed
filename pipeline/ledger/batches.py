"""Batches of requests: closed when it is time, and moved from state to state with their requests."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from pipeline.errors import ConfigError
from pipeline.ledger import history
from pipeline.ledger.deadlines import later
from pipeline.ledger.leases import Lease, refuse_lost
from pipeline.ledger.schema import BATCH, BATCH_REQUEST, REQUEST, REQUEST_VALUE
from pipeline.ledger.states import FINAL, REQUEST_MOVES, ForbiddenMove, refuse_move, sources
from pipeline.ledger.store import Transaction
from pipeline.records import DeletionRequest, RequestBatch, Selector, record
from pipeline.requests import batch_digest

__all__ = [
    "Policy",
    "as_batch",
    "close",
    "close_due",
    "find",
    "listing",
    "move",
    "note",
    "without",
]

WAITING = ("received", "queued")
# What the requests of a batch become when the batch does, and what is written beside them.
FOLLOW = {
    "running": ("running", "pending"),
    "evaluated": ("evaluated", "pending"),
    "released": ("released", "released"),
    "failed": ("failed", "failed"),
    "closed": ("batched", "pending"),
    "held": ("held", "failed"),
    "moved_on": ("queued", "moved_on"),
    "rolled_back": ("queued", "moved_on"),
}


@record
class Policy:
    """When waiting requests of one model line become a batch; any one condition suffices, 0 leaves it out."""

    every_seconds: float = 7 * 86400.0
    """The oldest has waited so long."""
    count: int = 0
    """So many wait."""
    before_due_seconds: float = 10 * 86400.0
    """The nearest due date is so near."""
    most: int = 100_000
    """Requests of one batch; more make another one."""


def close_due(tx: Transaction, policy: Policy, *, line: str = "") -> list[str]:
    """Close the batches that are due by `policy`, nearest due dates first.

    Args:
        tx: a transaction that writes.
        policy: when.
        line: only of this model line; empty: of all.

    Returns:
        The new batches' names.
    """
    closed = []
    while found := _due(tx, policy, line):
        closed.append(close(tx, found[0], reason=found[1], most=policy.most))
    return closed


def _due(tx: Transaction, policy: Policy, line: str) -> tuple[str, str] | None:
    """The first line with a batch to close, and why."""
    waiting = (REQUEST.c.state.in_(WAITING), *([REQUEST.c.line == line] if line else []))
    query = sa.select(REQUEST.c.line, sa.func.count(), sa.func.min(REQUEST.c.queued_at), sa.func.min(REQUEST.c.due_at)).where(
        *waiting
    )
    found: Any = tx.execute(query.group_by(REQUEST.c.line).order_by(REQUEST.c.line))
    for name, count, oldest, due in found:
        if policy.before_due_seconds and due <= later(tx.now, policy.before_due_seconds):
            return name, "due"
        if policy.count and count >= policy.count:
            return name, "count"
        if policy.every_seconds and later(oldest, policy.every_seconds) <= tx.now:
            return name, "time"
    return None


def close(tx: Transaction, line: str, *, reason: str = "manual", most: int = 100_000) -> str:
    """Make a batch of the waiting requests of a line, nearest due dates first.

    Args:
        tx: a transaction that writes.
        line: the model line.
        reason: time, count, due or manual.
        most: requests at most.

    Returns:
        The batch's name.

    Raises:
        ConfigError: none waits.
    """
    number = tx.execute(sa.select(sa.func.count()).select_from(BATCH)).scalar_one() + 1
    name = f"b-{number:06d}"
    empty = {"requests_count": 0, "requests_digest": "", "due_at": "", "state": "closed", "folder": "", "attempts": 0}
    row = {"batch_id": name, "line": line, "reason": reason, "closed_at": tx.now, **empty, "lease_number": 0, "failure": ""}
    tx.execute(sa.insert(BATCH).values(row))
    chosen = sa.select(sa.literal(name), REQUEST.c.request_id, sa.literal("pending")).where(
        REQUEST.c.line == line, REQUEST.c.state.in_(WAITING)
    )
    chosen = chosen.order_by(REQUEST.c.due_at, REQUEST.c.request_id).limit(most)
    tx.execute(sa.insert(BATCH_REQUEST).from_select(["batch_id", "request_id", "outcome"], chosen))
    tx.execute(sa.update(REQUEST).where(REQUEST.c.request_id.in_(_members(name))).values(state="batched", batch_id=name))
    if not _measure(tx, name):
        raise ConfigError(f"{line}: no request waits", "`unlearn requests list` shows what there is")
    told = find(tx, name)
    history.append(
        tx, "batch", name, "closed", {key: told[key] for key in ("line", "reason", "requests_count", "requests_digest", "due_at")}
    )
    return name


def _members(batch_id: str) -> sa.Select[tuple[str]]:
    return sa.select(BATCH_REQUEST.c.request_id).where(BATCH_REQUEST.c.batch_id == batch_id)


def _measure(tx: Transaction, batch_id: str) -> int:
    """Write down count, nearest due date and digest of a batch's requests; returns the count."""
    query = sa.select(sa.func.count(), sa.func.min(REQUEST.c.due_at)).where(REQUEST.c.request_id.in_(_members(batch_id)))
    count, due = tuple(tx.execute(query).one())
    if count:
        facts = {"requests_count": count, "due_at": due, "requests_digest": batch_digest(as_batch(tx, batch_id))}
        tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == batch_id).values(facts))
    return int(count)


def as_batch(tx: Transaction, batch_id: str) -> RequestBatch:
    """What a run reads: each request's name, selector and rule for copies; no subject, no note.

    The same batch always gives the same record, whatever became of its requests since. Raises ConfigError for an unknown name.
    """
    query = (
        sa.select(REQUEST.c.request_id, REQUEST.c.kind, REQUEST.c.copies, REQUEST_VALUE.c.value)
        .join(REQUEST_VALUE, REQUEST_VALUE.c.request_id == REQUEST.c.request_id)
        .where(REQUEST.c.request_id.in_(_members(batch_id)))
    )
    rows = sorted(tuple(row) for row in tx.execute(query))
    if not rows:
        find(tx, batch_id)
    requests = [
        DeletionRequest(request_id=name, selector=Selector(kind=kind, values=tuple(row[3] for row in values)), copies=copies)
        for (name, kind, copies), values in itertools.groupby(rows, key=lambda row: row[:3])
    ]
    return RequestBatch(requests=tuple(requests))


def find(tx: Transaction, batch_id: str) -> dict[str, Any]:
    """The row of a batch. Raises ConfigError for an unknown name."""
    row = tx.execute(sa.select(BATCH).where(BATCH.c.batch_id == batch_id)).mappings().first()
    if row is None:
        raise ConfigError(f"batch {batch_id}: the ledger has none of this name", "`unlearn schedule status` shows the names")
    return dict(row)


def listing(tx: Transaction, *, line: str = "", states: Collection[str] = (), limit: int = 100) -> list[dict[str, Any]]:
    """Batches, newest first: rows of the table.

    Args:
        tx: any transaction.
        line: only of this model line.
        states: only in one of these; empty: all.
        limit: at most so many.
    """
    query = sa.select(BATCH).order_by(BATCH.c.batch_id.desc()).limit(limit)
    if line:
        query = query.where(BATCH.c.line == line)
    if states:
        query = query.where(BATCH.c.state.in_(states))
    return [dict(row) for row in tx.execute(query).mappings()]


def note(tx: Transaction, lease: Lease, *, folder: str | None = None, jobs: Any = None, next_try_at: str | None = None) -> None:
    """Write down what a worker knows of its batch: run folder, jobs (plain data), time of the next try. Raises LeaseLost."""
    refuse_lost(tx, lease)
    given = {"folder": folder, "jobs": jobs, "next_try_at": next_try_at}
    values = {name: value for name, value in given.items() if value is not None}
    tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == lease.batch_id).values(values))


def move(
    tx: Transaction,
    batch_id: str,
    state: str,
    *,
    lease: Lease | None = None,
    failed: Collection[str] = (),
    failure: str = "",
    next_try_at: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Move a batch, and its requests with it.

    Args:
        tx: a transaction that writes; it must not go on where this raises.
        batch_id: which.
        state: what it becomes.
        lease: of the worker that moves it; None: a person does.
        failed: requests that a released batch does not fulfil: they become failed.
        failure: why it failed, without keys, labels, subjects and notes.
        next_try_at: not to be claimed before.
        detail: more for the history, without personal data.

    Raises:
        ConfigError: no such batch.
        ForbiddenMove: its state or that of one of its requests does not allow it.
        LeaseLost: another worker has claimed it meanwhile.
    """
    row = find(tx, batch_id)
    if lease is not None:
        refuse_lost(tx, lease)
    refuse_move("batch", batch_id, row["state"], state)
    _follow(tx, row, state, tuple(failed))
    values: dict[str, Any] = {"state": state, "failure": failure, "next_try_at": next_try_at}
    if state == "running":
        values["attempts"] = row["attempts"] + 1
    tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == batch_id).values(values))
    facts = {
        "was": row["state"],
        "attempts": values.get("attempts", row["attempts"]),
        **({"failure": failure} if failure else {}),
    }
    if failed:
        facts["failed"] = sorted(failed)
    history.append(tx, "batch", batch_id, state, {**facts, **(detail or {})})


def _follow(tx: Transaction, row: Mapping[str, Any], state: str, failed: tuple[str, ...]) -> None:
    name, (after, outcome) = row["batch_id"], FOLLOW[state]
    mine = REQUEST.c.batch_id == name
    if failed:
        if state != "released":
            raise ForbiddenMove(f"batch {name}: single requests fail only where the others are released", "leave them out")
        one = sa.and_(mine, REQUEST.c.request_id.in_(failed), REQUEST.c.state.in_(sources(REQUEST_MOVES, "failed")))
        change = {"state": "failed", "attempts": REQUEST.c.attempts + 1}
        if tx.execute(sa.update(REQUEST).where(one).values(change)).rowcount != len(failed):
            raise ForbiddenMove(f"batch {name}: of the requests that failed, not all are its own", "name requests of this batch")
    # A person was asked about those that are held alone: they do not go on with the others.
    before = (row["state"],) if state in ("closed", "moved_on") else sources(REQUEST_MOVES, after)
    able = sa.and_(mine, REQUEST.c.state.in_(before), REQUEST.c.request_id.not_in(failed))
    if state == "rolled_back":
        other = REQUEST.alias("other")
        twin = sa.select(other.c.request_id).where(other.c.fingerprint == REQUEST.c.fingerprint, other.c.state.not_in(FINAL))
        able = sa.and_(able, ~twin.exists())  # The same request, sent again since, stands for it.
    values: dict[str, Any] = {"state": after}
    if after == "queued":
        values.update(batch_id=None, queued_at=tx.now)
    if after == "failed":
        values.update(attempts=REQUEST.c.attempts + 1)
    moved = tx.execute(sa.update(REQUEST).where(able).values(values)).rowcount
    if moved + len(failed) != row["requests_count"] and state not in ("moved_on", "rolled_back"):
        raise ForbiddenMove(f"batch {name}: some of its requests cannot become {after}", "they went on without it")
    beside = BATCH_REQUEST.c.batch_id == name
    left = sa.select(REQUEST.c.request_id).where(mine) if after == "queued" else list(failed)
    tx.execute(sa.update(BATCH_REQUEST).where(beside, BATCH_REQUEST.c.request_id.not_in(left)).values(outcome=outcome))
    if failed:
        tx.execute(sa.update(BATCH_REQUEST).where(beside, BATCH_REQUEST.c.request_id.in_(failed)).values(outcome="failed"))


def without(tx: Transaction, batch_id: str, request_id: str) -> None:
    """Take a request out of a batch that never ran; an empty one is withdrawn.

    Raises:
        ForbiddenMove: the batch has run, or a worker is about to start it.
    """
    row = find(tx, batch_id)
    if row["state"] != "closed" or row["attempts"] or (row["lease_until"] or "") > tx.now:
        raise ForbiddenMove(
            f"request {request_id}: batch {batch_id} has run or is being started", "it can no longer be withdrawn"
        )
    one = sa.and_(BATCH_REQUEST.c.batch_id == batch_id, BATCH_REQUEST.c.request_id == request_id)
    tx.execute(sa.delete(BATCH_REQUEST).where(one))
    if _measure(tx, batch_id):
        told = find(tx, batch_id)
        history.append(
            tx, "batch", batch_id, "reduced", {key: told[key] for key in ("requests_count", "requests_digest", "due_at")}
        )
        return
    empty = {"state": "withdrawn", "requests_count": 0, "requests_digest": ""}
    tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == batch_id).values(empty))
    history.append(tx, "batch", batch_id, "withdrawn", {"was": "closed"})
