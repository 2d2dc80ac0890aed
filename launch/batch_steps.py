"""What the holder of a batch's lease does with it: refuse or begin it, run it or look after it, record how it ended, release it.

Each act is one transaction, and what is done outside of the ledger between two of them may be done again.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from launch.batch_run import BatchRun, Runner, word_of
from launch.desk import Desk
from launch.endings import WorkerError
from launch.made import made_by
from launch.policy import backoff_seconds, run_of
from launch.worker import Asked
from pipeline.config import run_folder
from pipeline.errors import ConfigError, StorageError, UnlearnError
from pipeline.ledger import batches, history, leases, lineage, requests
from pipeline.ledger.deadlines import later
from pipeline.ledger.leases import Lease
from pipeline.ledger.schema import BATCH, MODEL
from pipeline.ledger.states import ForbiddenMove
from pipeline.ledger.store import Ledger, Transaction
from pipeline.records import record
from pipeline.storage import join

__all__ = ["Step", "bring_on", "decide", "give_back", "stopped"]

REPEATED = ("configuration", "data", "verdict", "rolled back")
"""Failures that the same run would only repeat: a person must look."""
FAULTS = (UnlearnError, WorkerError)


@record
class Step:
    """What one tick did with one batch: the state that it left it in, and a word of `launch.batch_run.WORDS` where it failed."""

    batch_id: str
    state: str
    failure: str = ""


@dataclasses.dataclass(kw_only=True)
class _Work:
    """A batch at hand: its row as it was read last, and its run."""

    desk: Desk
    lease: Lease
    row: dict[str, Any]
    run: BatchRun
    runner: Runner

    @property
    def own_original(self) -> bool:
        """Whether the run trains the original itself, for which the batch's images must still be read."""
        return self.run.config.original == "train"


def bring_on(desk: Desk, lease: Lease) -> Step:
    """Bring a batch as far as it goes now.

    Raises:
        LeaseLost: another worker has it.
        Asked: this process was told to leave.
        StorageError: the ledger cannot be reached.
    """
    with desk.ledger.read() as tx:
        row = batches.find(tx, lease.batch_id)
        batch = batches.as_batch(tx, lease.batch_id)
        original = _original(desk, tx, row)
    try:
        config = run_of(desk.policy, row["line"], original=original)
        folder = run_folder(config, batch)
    except ConfigError:
        return _fail(desk, lease, "configuration")
    jobs = {**(row["jobs"] or {}), "original": original}
    state, where = str(row["state"]), desk.where(row["line"])
    # What runs already is gone on with where it runs, whatever the policy says by now.
    runner = desk.runner(jobs.get("where", where) if state == "running" else where)
    cluster = desk.cluster(row["line"])
    run = BatchRun(batch_id=lease.batch_id, config=config, batch=batch, folder=folder, cluster=cluster, jobs=jobs)
    work = _Work(desk=desk, lease=lease, row=row, run=run, runner=runner)
    if state == "running" and jobs.get("where") == "local":
        # Whoever ran it is gone, for its lease ran out. It counts as an attempt: a batch may be what kills its hosts.
        step = _fail(desk, lease, "lost")
        if step.state == "held":
            return step
        state, work.runner = "failed", desk.runner(where)
    if state in ("closed", "failed"):
        if refused := _refuse(work):
            return refused
        _begin(work)
        state = "running"
    step = _carry_on(work) if state == "running" else Step(batch_id=lease.batch_id, state=state)
    return _release(work) if step.state == "evaluated" and desk.policy.release == "auto" else step


def _original(desk: Desk, tx: Transaction, row: Mapping[str, Any]) -> str:
    """Address of the weights that a batch is unlearned from, empty: as its run says. A run that goes on keeps what it has."""
    jobs = row["jobs"] or {}
    if row["state"] in ("running", "evaluated"):
        return str(jobs.get("original", ""))
    if desk.line(row["line"]).original != "released":
        return ""
    known = lineage.alias_history(tx, row["line"], desk.policy.alias)
    if not known:
        return ""
    place = tx.execute(sa.select(MODEL.c.uri).where(MODEL.c.model_id == known[-1]["model_id"])).scalar_one()
    return str(place if place.endswith(".safetensors") else join(place, "model.safetensors"))


def _refuse(work: _Work) -> Step | None:
    """Refuse a batch whose plan shows that it cannot be run as it is; None: it can."""
    if not work.run.jobs.get("agreed") and _was_rolled_back(work):
        return _fail(work.desk, work.lease, "rolled back")
    try:
        work.runner.plan(work.run)
    except Asked:
        raise
    except StorageError:
        return _postpone(work)
    except FAULTS as fault:
        return _fail(work.desk, work.lease, word_of(fault), _unmatched(work, word_of(fault)))
    return None


def _was_rolled_back(work: _Work) -> bool:
    same = sa.select(BATCH.c.batch_id).where(
        BATCH.c.requests_digest == work.row["requests_digest"], BATCH.c.state == "rolled_back", BATCH.c.line == work.row["line"]
    )
    with work.desk.ledger.read() as tx:
        return tx.execute(same).first() is not None


def decide(ledger: Ledger, batch_id: str, *, apart: bool, reason: str) -> str:
    """A person's word on a batch that is held: it is tried again, or (`apart`) its requests go back to the queue.

    Args:
        ledger: an open one.
        batch_id: which.
        apart: give the batch up, not its requests.
        reason: goes into the history as it is.

    Returns:
        The batch's state.

    Raises:
        ConfigError: no such batch, or no reason.
        ForbiddenMove: it is not held.
    """
    if not reason.strip():
        raise ConfigError(f"batch {batch_id}: a decision without reason", "say why with --reason")
    state = "moved_on" if apart else "closed"
    with ledger.write() as tx:
        row = batches.find(tx, batch_id)
        if row["state"] != "held":
            raise ForbiddenMove(f"batch {batch_id}: is {row['state']}, not held", "only held batches wait for a person")
        batches.move(tx, batch_id, state, detail={"reason": reason})
        jobs = {**(row["jobs"] or {}), "agreed": True}
        tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == batch_id).values(jobs=jobs))
    return state


def _unmatched(work: _Work, word: str) -> tuple[str, ...]:
    """The requests because of which the configuration was refused, where it is because they mean no image."""
    if word != "configuration":
        return ()
    try:
        return work.runner.unmatched(work.run)
    except Asked:
        raise
    except FAULTS:
        return ()


def _postpone(work: _Work) -> Step:
    """The storage is away before the run begins, or after its end: it costs no attempt."""
    with work.desk.ledger.write() as tx:
        pause = backoff_seconds(work.desk.policy, 1, random.random())  # noqa: S311
        batches.note(tx, work.lease, next_try_at=later(tx.now, pause))
        state = batches.find(tx, work.lease.batch_id)["state"]
    return Step(batch_id=work.lease.batch_id, state=state, failure="storage")


def _begin(work: _Work) -> None:
    """Write down that the run is about to start, and from what."""
    with work.desk.ledger.write() as tx:
        name, row = work.lease.batch_id, batches.find(tx, work.lease.batch_id)
        if row["state"] == "failed":
            batches.move(tx, name, "closed", lease=work.lease)
        where = work.desk.where(row["line"])
        batches.move(tx, name, "running", lease=work.lease, detail={"folder": work.run.folder, "where": where})
        jobs = {"where": where, "original": work.run.jobs["original"], "preempted": work.run.jobs.get("preempted", 0)}
        batches.note(tx, work.lease, folder=work.run.folder, jobs=jobs)
    work.run = dataclasses.replace(work.run, jobs=jobs)


def _carry_on(work: _Work) -> Step:
    """Run the batch, or look after its jobs, and record an end."""

    def note(sent: Mapping[str, str]) -> None:
        with work.desk.ledger.write() as tx:
            batches.note(tx, work.lease, jobs={**work.run.jobs, "sent": dict(sent)})
            history.append(tx, "batch", work.lease.batch_id, "sent", {"jobs": dict(sent)})

    try:
        skipping = work.desk.policy.tombstones
        if skipping and not work.own_original and not work.run.jobs.get("sent"):
            _skip_images(work)
        word = work.runner.carry_on(work.run, note)
        if skipping and work.own_original and word == "":
            _skip_images(work)
        made = made_by(work.run.folder) if word == "" else ()
    except Asked:
        raise
    except FAULTS as fault:
        word, made = word_of(fault), ()
    if word is None:
        return Step(batch_id=work.lease.batch_id, state="running")
    if word:
        return _fail(work.desk, work.lease, word, _unmatched(work, word))
    with work.desk.ledger.write() as tx:
        name = work.lease.batch_id
        lineage.record_made(tx, made, line=work.row["line"], batch_id=name, folder=work.run.folder)
        batches.move(tx, name, "evaluated", lease=work.lease)
    return Step(batch_id=name, state="evaluated")


def _skip_images(work: _Work) -> None:
    """From now on no stream reads the batch's images; of runs that begin later, the ledger knows that they never did."""
    work.runner.skip_images(work.run)
    with work.desk.ledger.write() as tx:
        leases.refuse_lost(tx, work.lease)
        history.append(tx, "batch", work.lease.batch_id, lineage.SKIPPED, {})


def stopped(desk: Desk, lease: Lease) -> None:
    """This process was told to leave: what it ran goes on with the next tick, wherever that is."""
    with desk.ledger.read() as tx:
        running = batches.find(tx, lease.batch_id)["state"] == "running"
    if running:
        _fail(desk, lease, "preempted")
    give_back(desk, lease)


def give_back(desk: Desk, lease: Lease) -> None:
    """Nobody works on the batch any more. Raises LeaseLost."""
    with desk.ledger.write() as tx:
        leases.give_back(tx, lease)


def _fail(desk: Desk, lease: Lease, word: str, unmatched: Collection[str] = ()) -> Step:
    """Record a failure, and decide by policy: again at once, again after a pause, without some requests, or held for a person."""
    name, policy = lease.batch_id, desk.policy
    with desk.ledger.write() as tx:
        row = batches.find(tx, name)
        jobs = dict(row["jobs"] or {})
        jobs["preempted"] = jobs.get("preempted", 0) + (word == "preempted")
        failures = row["attempts"] - jobs["preempted"]
        spent = jobs["preempted"] > policy.preemptions or failures >= policy.attempts
        pause = 0.0 if word == "preempted" else backoff_seconds(policy, max(1, failures), random.random())  # noqa: S311
        if row["state"] == "running":
            batches.move(tx, name, "failed", lease=lease, failure=word, next_try_at=later(tx.now, pause))
            batches.note(tx, lease, jobs=jobs)
        else:
            leases.refuse_lost(tx, lease)
        if unmatched:
            _go_on_without(tx, policy.most, lease, word, unmatched)
        elif spent or word in REPEATED:
            batches.move(tx, name, "held", lease=lease, failure=word)
        return Step(batch_id=name, state=batches.find(tx, name)["state"], failure=word)


def _go_on_without(tx: Transaction, most: int, lease: Lease, word: str, unmatched: Collection[str]) -> None:
    """Hold the requests that mean no image, and close a new batch of the others: another batch, with a run folder of its own."""
    row = batches.find(tx, lease.batch_id)
    if row["state"] == "closed":
        batches.move(tx, lease.batch_id, "held", lease=lease, failure=word)
    without = {"without": sorted(unmatched)}
    batches.move(tx, lease.batch_id, "moved_on", lease=lease, failure=word, detail=without)
    requests.move(tx, sorted(unmatched), "held", reason="means no training image")
    if len(unmatched) < row["requests_count"]:
        new = batches.close(tx, row["line"], reason="others", most=most)
        history.append(tx, "batch", new, "follows", {"batch": lease.batch_id, **without})


def _release(work: _Work) -> Step:
    """Release the model of a batch that passed. What the gate refuses is held for a person."""
    from launch.releasing import release_run

    try:
        release_run(work.desk.ledger, work.desk.policy, work.run.folder)
    except Asked:
        raise
    except StorageError:
        return _postpone(work)
    except FAULTS as fault:
        with work.desk.ledger.write() as tx:
            batches.move(tx, work.lease.batch_id, "held", lease=work.lease, failure=word_of(fault))
        return Step(batch_id=work.lease.batch_id, state="held", failure=word_of(fault))
    with work.desk.ledger.read() as tx:
        return Step(batch_id=work.lease.batch_id, state=batches.find(tx, work.lease.batch_id)["state"])
