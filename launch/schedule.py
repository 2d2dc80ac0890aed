"""One tick of the schedule: close what is due, then take batches one after the other and bring each as far as it goes.

Any number of ticks may run at once, on any hosts, and each may die anywhere. What is to be done is written into the ledger
before it is done, and what was done after it; a batch has one worker at a time, by its lease in the ledger, and its run folder
one owner, by that folder's claim. So a batch whose worker died is taken up by another, which finds there what is done already.
Batches of one model line run one after the other: the later ones must not train on what the earlier ones forget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import sqlalchemy as sa

from launch.ahead import Danger, danger_line, look_ahead
from launch.batch_steps import Step, bring_on, give_back, stopped
from launch.desk import Desk, heartbeat
from launch.policy import span_seconds
from launch.signals.rounds import begin_rounds, tell_round
from launch.worker import Asked, terminable
from pipeline.errors import StorageError
from pipeline.ledger import batches, leases
from pipeline.ledger.leases import Lease, LeaseLost
from pipeline.ledger.schema import BATCH
from pipeline.ledger.store import Transaction
from pipeline.records import record

__all__ = ["Tick", "free_batches", "tick"]


@record
class Tick:
    """What one tick did: batches that it closed, what became of those that it worked on, and due dates in danger."""

    closed: tuple[str, ...]
    steps: tuple[Step, ...]
    dangers: tuple[Danger, ...]


def tick(desk: Desk) -> Tick:
    """Do once what is due.

    Raises:
        Asked: this process was told to leave; the batch that it worked on is free for others.
        ConfigError: where signals should go is no such place; nothing was done.
        StorageError: the ledger cannot be reached.
    """
    began = time.monotonic()
    _tell(desk, lambda: begin_rounds(desk.ledger, desk.signals))
    closed = _close_due(desk)
    steps: list[Step] = []
    while lease := _claim_next(desk, {step.batch_id for step in steps}):
        steps.append(_work_on(desk, lease))
    done = Tick(closed=tuple(closed), steps=tuple(steps), dangers=_warn(desk))
    failed = sum(step.state in ("failed", "held") for step in done.steps)
    facts = {"closed": len(closed), "claimed": len(steps), "failed": failed, "seconds": time.monotonic() - began}
    _tell(desk, lambda: tell_round(desk.ledger, desk.signals, **facts))
    return done


def _tell(desk: Desk, act: Callable[[], None]) -> None:
    """Do what concerns signals: an outbox that cannot be written ends no tick."""
    try:
        act()
    except StorageError as fault:
        desk.say(f"signals: {fault.message}")


def _close_due(desk: Desk) -> list[str]:
    policy = batches.Policy(
        every_seconds=span_seconds(desk.policy.every),
        count=desk.policy.count,
        before_due_seconds=span_seconds(desk.policy.before_due),
        most=desk.policy.most,
    )
    closed = []
    for line in tuple(desk.policy.lines) or ("",):
        with desk.ledger.write() as tx:
            names = batches.close_due(tx, policy, line=line)
        closed += names
    for name in closed:
        desk.say(f"{name}: closed")
    return closed


def _claim_next(desk: Desk, seen: Collection[str]) -> Lease | None:
    """The lease of the batch with the nearest due date that can be worked on and that this tick has not had yet."""
    with desk.ledger.read() as tx:
        if not _free(desk, tx, seen):
            return None
    with desk.ledger.write() as tx:
        for name in _free(desk, tx, seen):
            if lease := leases.claim(tx, desk.owner, desk.policy.lease_seconds, batch_id=name):
                return lease
    return None


def _free(desk: Desk, tx: Transaction, seen: Collection[str]) -> list[str]:
    """Batches that nobody works on, whose time has come, and whose line is not busy with another one."""
    wanted = ("closed", "failed", "running", *(["evaluated"] if desk.policy.release == "auto" else []))
    query = sa.select(BATCH).where(BATCH.c.state.in_(leases.CLAIMABLE)).order_by(BATCH.c.due_at, BATCH.c.batch_id)
    rows = list(tx.execute(query).mappings())
    busy = {row["line"]: row["batch_id"] for row in rows if row["state"] == "running" or (row["lease_until"] or "") > tx.now}
    return [
        row["batch_id"]
        for row in rows
        if row["state"] in wanted
        and row["batch_id"] not in seen
        and (not desk.policy.lines or row["line"] in desk.policy.lines)
        and max(row["lease_until"] or "", row["next_try_at"] or "") <= tx.now
        and busy.get(row["line"], row["batch_id"]) == row["batch_id"]
    ]


def _warn(desk: Desk) -> tuple[Danger, ...]:
    """Say which due dates have passed, or will not be met as things are."""
    with desk.ledger.read() as tx:
        dangers = look_ahead(tx, desk.policy).dangers
    for danger in dangers:
        desk.say(danger_line(danger))
    return dangers


def free_batches(desk: Desk) -> list[str]:
    """The batches that a tick could take up now, nearest due date first; nothing is changed."""
    with desk.ledger.read() as tx:
        return _free(desk, tx, ())


def _work_on(desk: Desk, lease: Lease) -> Step:
    """Bring a batch as far as it goes now, and give it back."""
    try:
        with terminable(f"schedule: batch {lease.batch_id}"):
            with heartbeat(desk, lease):
                step = bring_on(desk, lease)
        give_back(desk, lease)
    except LeaseLost:
        step = Step(batch_id=lease.batch_id, state="taken over")
    except (Asked, KeyboardInterrupt):
        stopped(desk, lease)
        raise
    desk.say(f"{step.batch_id}: {step.state}{f' ({step.failure})' if step.failure else ''}")
    return step
