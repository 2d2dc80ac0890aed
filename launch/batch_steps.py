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
from pipeline.ledger.leases import Lease, LeaseLost
from pipeline.ledger.schema import MODEL
from pipeline.ledger.store import Transaction
from pipeline.records import record
from pipeline.storage import join

__all__ = ["Step", "bring_on", "stopped"]

REPEATED = ("configuration", "data", "verdict")
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
    run = BatchRun(batch_id=lease.batch_id, config=config, batch=batch, folder=folder, cluster=desk.cluster(row["line"]), jobs=jobs)
    work = _Work(desk=desk, lease=lease, row=row, run=run, runner=desk.runner(row["line"]))
    if row["state"] == "running" and desk.where(row["line"]) == "local":
        # Whoever ran it is gone, for its lease ran out. It counts as an attempt, or a batch that kills its host would do so for ever.
        if (step := _fail(desk, lease, "lost")).state == "held":
            return step
    if row["state"] != "evaluated" and not (row["state"] == "running" and desk.where(row["line"]) == "slurm"):
        if step := _refuse(work):
            return step
        _begin(work)
    step = _carry_on(work) if row["state"] != "evaluated" else Step(batch_id=lease.batch_id, state="evaluated")
    return _release(work) if step.state == "evaluated" and desk.policy.release == "auto" else step
