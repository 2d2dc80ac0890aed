"""Leases: the right to work on a batch, for one worker at a time, and lost to another when no heartbeat renews it.

A lease that ran out but that nobody took over is still good: what counts is its number, which only grows.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from pipeline.errors import UnlearnError
from pipeline.ledger import history
from pipeline.ledger.deadlines import later
from pipeline.ledger.schema import BATCH
from pipeline.ledger.store import Transaction
from pipeline.records import record

__all__ = ["CLAIMABLE", "Lease", "LeaseLost", "claim", "give_back", "heartbeat", "refuse_lost"]

CLAIMABLE = ("closed", "running", "evaluated", "failed")


@record
class Lease:
    """The right to work on a batch until `until`. `number` only grows: who holds an old one has lost it."""

    batch_id: str
    owner: str
    number: int
    until: str


class LeaseLost(UnlearnError):
    """Another worker has claimed the batch meanwhile; stop working on it."""


def claim(
    tx: Transaction, owner: str, seconds: float, *, batch_id: str = "", line: str = "", states: Collection[str] = CLAIMABLE
) -> Lease | None:
    """Take the batch with the nearest due date that nobody works on, for so many seconds.

    A batch is free when it has no lease or one that has run out, and when the time of its next try has come.

    Args:
        tx: a transaction that writes.
        owner: who will work on it, different for each process.
        seconds: how long, without heartbeat.
        batch_id: only this one.
        line: only of this model line.
        states: only in one of these.

    Returns:
        The lease, or None where no batch is free.
    """
    free: tuple[Any, ...] = (sa.or_(BATCH.c.lease_until.is_(None), BATCH.c.lease_until <= tx.now),)
    free += (sa.or_(BATCH.c.next_try_at.is_(None), BATCH.c.next_try_at <= tx.now), BATCH.c.state.in_(states))
    query = sa.select(BATCH).where(*free).order_by(BATCH.c.due_at, BATCH.c.batch_id).limit(1)
    if batch_id:
        query = query.where(BATCH.c.batch_id == batch_id)
    if line:
        query = query.where(BATCH.c.line == line)
    row = tx.execute(query).mappings().first()
    if row is None:
        return None
    lease = Lease(batch_id=row["batch_id"], owner=owner, number=row["lease_number"] + 1, until=later(tx.now, seconds))
    values = {"lease_owner": owner, "lease_number": lease.number, "lease_until": lease.until}
    tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == lease.batch_id).values(values))
    lost = row["lease_owner"] if row["lease_until"] is not None else None
    # Who looks after a running batch every minute, and gives it back, leaves no entry each time.
    if lost is not None or row["state"] in ("closed", "failed"):
        facts = {"owner": owner, "number": lease.number, "until": lease.until, "state": row["state"]}
        history.append(tx, "batch", lease.batch_id, "claimed", {**facts, **({"taken_from": lost} if lost else {})})
    return lease


def refuse_lost(tx: Transaction, lease: Lease) -> None:
    """Raise LeaseLost where another has claimed the batch, or a person took it away."""
    query = sa.select(BATCH.c.lease_owner, BATCH.c.lease_number).where(BATCH.c.batch_id == lease.batch_id)
    if tuple(tx.execute(query).one()) != (lease.owner, lease.number):
        raise LeaseLost(f"batch {lease.batch_id}: claim {lease.number} was lost", "another worker goes on with it")


def heartbeat(tx: Transaction, lease: Lease, seconds: float) -> Lease:
    """The same lease for so many seconds from now. Raises LeaseLost where another has claimed the batch."""
    refuse_lost(tx, lease)
    until = later(tx.now, seconds)
    tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == lease.batch_id).values(lease_until=until))
    return Lease(batch_id=lease.batch_id, owner=lease.owner, number=lease.number, until=until)


def give_back(tx: Transaction, lease: Lease) -> None:
    """End a lease before its time. Raises LeaseLost where another has claimed the batch."""
    refuse_lost(tx, lease)
    tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == lease.batch_id).values(lease_owner=None, lease_until=None))
