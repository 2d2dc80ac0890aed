"""One tick of the schedule: close what is due, then take batches one after the other and bring each as far as it goes.

Any number of ticks may run at once, on any hosts, and each may die anywhere. What is to be done is written into the ledger before
it is done, and what was done after it; a batch has one worker at a time, by its lease in the ledger, and its run folder one owner, by
that folder's claim. So a batch whose worker died is taken up by another, which finds in the run folder what is done already.
Batches of one model line run one after the other: the later ones must not train on what the earlier ones forget.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from launch.batch_run import BatchRun, Runner, runner_for, word_of
from launch.endings import WorkerError
from launch.made import made_by
from launch.policy import SchedulePolicy, backoff_seconds, run_of, span_seconds
from launch.worker import Asked, terminable
from pipeline.claim import AT_WORK
from pipeline.config import run_folder
from pipeline.errors import ConfigError, StorageError, UnlearnError
from pipeline.ledger import batches, history, leases, lineage, requests
from pipeline.ledger.deadlines import later
from pipeline.ledger.leases import Lease, LeaseLost
from pipeline.ledger.schema import BATCH
from pipeline.ledger.store import Ledger, Transaction
from pipeline.records import record

__all__ = ["Desk", "Step", "Tick", "tick"]

HELD = ("configuration", "data", "verdict")
"""Failures that the same run would only repeat: a person must look."""
LOST = "lost"


@record
class Step:
    """What one tick did with one batch: its state afterwards, and why it failed, where it did."""

    batch_id: str
    state: str
    failure: str = ""
    """A word of `launch.batch_run.WORDS`, or empty."""


@record
class Tick:
    """What one tick did: batches that it closed, and those that it worked on."""

    closed: tuple[str, ...]
    steps: tuple[Step, ...]


class Desk:
    """Where a tick works.

    Args:
        ledger: an open one.
        policy: the schedule's.
        owner: who ticks, different for each process.
        say: takes one line at a time, without personal data.
        runners: what runs batches, by `local` and `slurm`; None: the real ones.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: SchedulePolicy,
        *,
        owner: str,
        say: Callable[[str], None],
        runners: Mapping[str, Runner] | None = None,
        to_stderr: bool = False,
    ) -> None:
        self.ledger, self.policy, self.owner, self.say = ledger, policy, owner, say
        self._runners, self._to_stderr = runners, to_stderr

    def where(self, line: str) -> str:
        """`local` or `slurm`."""
        own = self.policy.lines.get(line)
        return (own.submit if own else "") or self.policy.submit

    def cluster(self, line: str) -> str:
        """The cluster that a line's batches go to."""
        own = self.policy.lines.get(line)
        return (own.cluster if own else "") or self.policy.cluster

    def runner(self, line: str) -> Runner:
        """What runs a line's batches."""
        where = self.where(line)
        return self._runners[where] if self._runners else runner_for(where, self.say, to_stderr=self._to_stderr)


def tick(desk: Desk) -> Tick:
    """Do once what is due.

    Raises:
        Asked: this process was told to leave; the batch that it worked on is free for others.
        StorageError: the ledger cannot be reached.
    """
    closed = _close_due(desk)
    steps: list[Step] = []
    while lease := _claim_next(desk, [step.batch_id for step in steps]):
        steps.append(_work_on(desk, lease))
    return Tick(closed=tuple(closed), steps=tuple(steps))


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
            closed += batches.close_due(tx, policy, line=line)
    for name in closed:
        desk.say(f"{name}: closed")
    return closed


def _claim_next(desk: Desk, seen: list[str]) -> Lease | None:
    """The lease of the batch with the nearest due date that can be worked on now and that this tick has not had yet."""
    with desk.ledger.read() as tx:
        if not _free(desk, tx, seen):
            return None
    with desk.ledger.write() as tx:
        for name in _free(desk, tx, seen):
            if lease := leases.claim(tx, desk.owner, desk.policy.lease_seconds, batch_id=name):
                return lease
    return None


def _free(desk: Desk, tx: Transaction, seen: list[str]) -> list[str]:
    states = ("closed", "failed", "running", *(["evaluated"] if desk.policy.release == "auto" else []))
    rows = tx.execute(sa.select(BATCH).where(BATCH.c.state.in_(leases.CLAIMABLE)).order_by(BATCH.c.due_at, BATCH.c.batch_id))
    known = [dict(row) for row in rows.mappings()]
    busy = {row["line"]: row["batch_id"] for row in known if row["state"] == "running" or (row["lease_until"] or "") > tx.now}
    return [
        row["batch_id"]
        for row in known
        if row["batch_id"] not in seen
        and row["state"] in states
        and (not desk.policy.lines or row["line"] in desk.policy.lines)
        and (row["lease_until"] or "") <= tx.now
        and (row["next_try_at"] or "") <= tx.now
        and busy.get(row["line"], row["batch_id"]) == row["batch_id"]
    ]


def _work_on(desk: Desk, lease: Lease) -> Step:
    """Bring a batch as far as it goes now, and give it back."""
    try:
        with terminable(f"schedule: {lease.batch_id}"), _heartbeat(desk, lease):
            step = _bring_on(desk, lease)
            with desk.ledger.write() as tx:
                leases.give_back(tx, lease)
    except LeaseLost:
        step = Step(batch_id=lease.batch_id, state="taken over")
    desk.say(f"{step.batch_id}: {step.state}{f' ({step.failure})' if step.failure else ''}")
    return step


def _bring_on(desk: Desk, lease: Lease) -> Step:
    with desk.ledger.read() as tx:
        row = batches.find(tx, lease.batch_id)
        if row["state"] in ("closed", "failed"):
            row["jobs"] = {"original": _original(desk, tx, row["line"]), "preempted": (row["jobs"] or {}).get("preempted", 0)}
        batch = batches.as_batch(tx, lease.batch_id)
    try:
        config = run_of(desk.policy, row["line"], original=(row["jobs"] or {}).get("original", ""))
    except ConfigError:
        return _fail(desk, lease, row, "configuration", ())
    folder = run_folder(config, batch)
    run = BatchRun(
        batch_id=lease.batch_id,
        config=config,
        batch=batch,
        folder=folder,
        cluster=desk.cluster(row["line"]),
        jobs=row["jobs"] or {},
    )
    runner = desk.runner(row["line"])
    if row["state"] in ("closed", "failed"):
        refused = _refused(runner, run)
        if refused == "storage":
            return _postpone(desk, lease, row)
        if refused:
            return _fail(desk, lease, row, refused, _unmatched(runner, run, refused))
        row = _begin(desk, lease, row, run)
    elif row["state"] == "running" and desk.where(row["line"]) == "local":
        # Whoever ran it is gone: its lease ran out. That counts as an attempt, or a batch that kills its host would do so for ever.
        step = _fail(desk, lease, row, LOST, ())
        if step.state == "held":
            return step
        row = _begin(desk, lease, row, run)
    if row["state"] == "running":
        return _carry_on(desk, lease, row, run, runner)
    return _release(desk, lease, row, run)
