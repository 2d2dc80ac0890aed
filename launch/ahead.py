"""Which due dates the queue cannot meet, and when batches will be closed: looked up in the ledger, nothing is changed."""

from __future__ import annotations

import statistics
from typing import Any

import sqlalchemy as sa

from launch.made import stage_seconds
from launch.policy import SchedulePolicy, span_seconds
from pipeline.ledger import batches
from pipeline.ledger.deadlines import later
from pipeline.ledger.schema import REQUEST
from pipeline.ledger.states import FINAL
from pipeline.ledger.store import Transaction
from pipeline.records import record

__all__ = ["Ahead", "Danger", "Queue", "danger_line", "look_ahead"]

WAITING = ("received", "queued")
OPEN = ("closed", "failed", "running", "evaluated")
EARLIER = 5
"""Finished batches of a line that tell how long one takes."""


@record
class Queue:
    """One model line: its waiting requests, when the next batch is closed (empty: nothing waits), and how long a batch takes.

    `seconds` is the median of earlier batches, by their receipts; None: there is none to go by.
    """

    line: str
    waiting: int
    nearest_due: str
    closes_at: str
    closes_by: str
    """time, count or due: what will close it."""
    seconds: float | None


@record
class Danger:
    """A due date that has passed, or that will not be met as things are. `what`: a batch's name, `waiting` or `held`."""

    line: str
    what: str
    due_at: str
    why: str
    """overdue, held, or late: the queue would have it done only at `done_at`."""
    requests: int
    done_at: str = ""


@record
class Ahead:
    """The lines of a ledger, and the due dates that are in danger."""

    queues: tuple[Queue, ...]
    dangers: tuple[Danger, ...]


def danger_line(danger: Danger) -> str:
    """One line about a due date in danger."""
    until = f"; done at {danger.done_at[:16]}Z at the earliest, by earlier batches' times" if danger.done_at else ""
    return f"{danger.line}: {danger.what}: {danger.requests} requests due {danger.due_at[:16]}Z: {danger.why}{until}"


def look_ahead(tx: Transaction, policy: SchedulePolicy) -> Ahead:
    """Compare what waits with its due dates.

    A line's batches run one after the other, so a batch is done when all before it and itself have taken their usual time. Where
    no earlier batch tells that time, only passed due dates and held requests are known to be in danger.
    """
    queues = tuple(_queue(tx, policy, line) for line in _lines(tx, policy))
    return Ahead(queues=queues, dangers=tuple(danger for queue in queues for danger in _dangers(tx, queue)))


def _lines(tx: Transaction, policy: SchedulePolicy) -> list[str]:
    query = sa.select(REQUEST.c.line).where(REQUEST.c.state.not_in(FINAL)).group_by(REQUEST.c.line).order_by(REQUEST.c.line)
    return [line for line in tx.execute(query).scalars() if not policy.lines or line in policy.lines]


def _queue(tx: Transaction, policy: SchedulePolicy, line: str) -> Queue:
    count, oldest, due = _gathered(tx, line, WAITING, REQUEST.c.queued_at)
    closes: list[tuple[str, str]] = []
    if count:
        if policy.every != "0":
            closes.append((later(oldest, span_seconds(policy.every)), "time"))
        if policy.before_due != "0":
            closes.append((later(due, -span_seconds(policy.before_due)), "due"))
        if policy.count and count >= policy.count:
            closes.append((tx.now, "count"))
    at, by = min(closes, default=("", ""))
    return Queue(
        line=line,
        waiting=count,
        nearest_due=due,
        closes_at=max(at, tx.now) if at else "",
        closes_by=by,
        seconds=_usual_seconds(tx, line),
    )


def _gathered(tx: Transaction, line: str, states: tuple[str, ...], since: sa.Column[Any]) -> tuple[int, str, str]:
    query = sa.select(sa.func.count(), sa.func.min(since), sa.func.min(REQUEST.c.due_at))
    count, first, due = tuple(tx.execute(query.where(REQUEST.c.line == line, REQUEST.c.state.in_(states))).one())
    return int(count), str(first or ""), str(due or "")


def _usual_seconds(tx: Transaction, line: str) -> float | None:
    done = batches.listing(tx, line=line, states=("evaluated", "released", "rolled_back"), limit=EARLIER)
    known = [seconds for row in done if row["folder"] and (seconds := stage_seconds(row["folder"])) is not None]
    return statistics.median(known) if known else None


def _dangers(tx: Transaction, queue: Queue) -> list[Danger]:
    found, busy_until = [], tx.now
    rows = batches.listing(tx, line=queue.line, states=OPEN, limit=10_000)
    for row in sorted(rows, key=lambda row: (row["due_at"], row["batch_id"])):
        if queue.seconds is not None and row["state"] != "evaluated":
            busy_until = later(max(busy_until, row["next_try_at"] or ""), queue.seconds)
        found += _danger(tx, queue, row["batch_id"], row["due_at"], row["requests_count"], busy_until)
    if queue.waiting:
        if queue.seconds is not None:
            busy_until = later(max(busy_until, queue.closes_at), queue.seconds)
        found += _danger(tx, queue, "waiting", queue.nearest_due, queue.waiting, busy_until)
    held, _, due = _gathered(tx, queue.line, ("held",), REQUEST.c.due_at)
    if held:
        found.append(Danger(line=queue.line, what="held", due_at=due, why="overdue" if due < tx.now else "held", requests=held))
    return found


def _danger(tx: Transaction, queue: Queue, what: str, due: str, count: int, done_at: str) -> list[Danger]:
    if due < tx.now:
        return [Danger(line=queue.line, what=what, due_at=due, why="overdue", requests=count)]
    if queue.seconds is not None and done_at > due:
        return [Danger(line=queue.line, what=what, due_at=due, why="late", requests=count, done_at=done_at)]
    return []
