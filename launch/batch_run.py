"""How a batch of the ledger is run: on this machine, or through Slurm. What the schedule asks of either, and what it gets back.

Workers' messages may quote keys and labels of requests. None of them leaves here: an end is told by a fixed word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from launch.queue import SlurmJob
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, GateFailed, Preempted, StorageError, UnlearnError
from pipeline.records import RequestBatch, record

__all__ = ["WORDS", "BatchRun", "Local", "Runner", "Slurm", "runner_for", "word_of", "word_of_code"]

WORDS = ("configuration", "data", "storage", "verdict", "preempted", "crash", "lost", "rolled back")
"""What a failed run is called: wrong configuration or requests · bad data, integrity or weights · storage away, full or in use ·
the verdict failed · stopped from outside · a bug, or a killed process · the worker vanished without a word · the very same
requests were released before and rolled back, so the same run would only make the same model."""
CODES = {2: "configuration", 3: "data", 4: "verdict", 75: "preempted"}


@record
class BatchRun:
    """A batch that is to be run. `jobs`: what the ledger notes of its last start."""

    batch_id: str
    config: RunConfig
    batch: RequestBatch
    folder: str
    cluster: str
    jobs: Mapping[str, Any]


class Runner(Protocol):
    """Runs batches. All of it may be repeated, by other processes on other hosts too: what is done is not done again."""

    def plan(self, run: BatchRun) -> None:
        """Raise UnlearnError where the batch cannot be run as it is."""

    def unmatched(self, run: BatchRun) -> tuple[str, ...]:
        """Names of the requests that mean no image."""

    def skip_images(self, run: BatchRun) -> None:
        """Make all streams skip the batch's images from now on."""

    def carry_on(self, run: BatchRun, note: Callable[[Mapping[str, str]], None]) -> str | None:
        """Start the run, or go on with it, or see how it is.

        Args:
            run: which.
            note: takes the numbers of jobs that were sent, by stage.

        Returns:
            An empty text when it has ended well, a word of `WORDS` when it failed, None while it is under way.
        """


def word_of(fault: BaseException) -> str:
    """The word of `WORDS` for what a run raised."""
    classes = ((Preempted, "preempted"), (ConfigError, "configuration"), (GateFailed, "verdict"), (StorageError, "storage"))
    if isinstance(fault, UnlearnError):
        return next((word for kind, word in classes if isinstance(fault, kind)), "data")
    return "crash"


def word_of_code(code: int) -> str:
    """The word of `WORDS` for an exit code of `unlearn`."""
    return CODES.get(code, "crash")


class Local:
    """Runs a batch in this process, to its end.

    Args:
        say: takes one line of progress at a time.
        to_stderr: keep standard output free, for JSON.
    """

    def __init__(self, say: Callable[[str], None], *, to_stderr: bool = False) -> None:
        self.say, self.to_stderr = say, to_stderr

    def plan(self, run: BatchRun) -> None:
        """See what the batch would do to the source, where that is indexed."""
        from launch.plan import forecast, make_plan

        make_plan(run.config, run.batch, forecast(run.config, run.batch, to_stderr=self.to_stderr))

    def unmatched(self, run: BatchRun) -> tuple[str, ...]:
        """Ask the source's index."""
        from launch.acts import carry_out
        from pipeline.schedule_orders import SiftAnswer, SiftOrder

        order = SiftOrder(config=run.config, batch=run.batch)
        return carry_out("sift", order, SiftAnswer, to_stderr=self.to_stderr).unmatched

    def skip_images(self, run: BatchRun) -> None:
        """Set the batch's tombstones."""
        from launch.acts import carry_out
        from pipeline.orders import BatchOrder, TombstoneAnswer

        order = BatchOrder(config=run.config, batch=run.batch)
        carry_out("tombstone", order, TombstoneAnswer, to_stderr=self.to_stderr)

    def carry_on(self, run: BatchRun, note: Callable[[Mapping[str, str]], None]) -> str | None:
        """Run the chain from where it is."""
        from launch.local import run_chain

        return _judged(run_chain(run.config, run.batch, say=self.say, to_stderr=self.to_stderr).folder)


class Slurm(Local):
    """Sends a batch's stages as jobs, and looks after them; waits for nothing."""

    def carry_on(self, run: BatchRun, note: Callable[[Mapping[str, str]], None]) -> str | None:
        """Send what the ledger has no job of; afterwards see how the jobs are."""
        from launch.cluster import read_cluster
        from launch.submit import submit

        if run.jobs.get("sent"):
            return self._look(run)
        cluster = read_cluster(run.cluster)
        done = submit(run.config, run.batch, cluster, say=self.say, to_stderr=self.to_stderr)
        sent = {**done.active, **done.sent}
        if not sent:
            return _judged(run.folder)
        note(sent)
        return None

    def _look(self, run: BatchRun) -> str | None:
        from launch.jobs import status_of

        status = status_of(run.folder)
        if all(job.receipt == "current" for job in status.jobs):
            return _judged(run.folder)
        if status.told:
            self.say("Slurm does not answer")
            return None
        left = [SlurmJob(job=job.job, state=job.state, reason=job.reason) for job in status.jobs if job.receipt != "current"]
        if any(job.active for job in left if job.state not in ("forgotten", "not submitted")):
            return None
        return _word_of_jobs(left)


def _word_of_jobs(jobs: list[SlurmJob]) -> str:
    """The word for the first job that did not end well; those after it were only waiting for it."""
    for job in jobs:
        if job.state == "FAILED" and job.reason.startswith("exit code "):
            return word_of_code(int(job.reason.removeprefix("exit code ")))
        if job.state in ("PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL"):
            return "preempted"
        if job.state in ("FAILED", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE", "LAUNCH_FAILED", "REVOKED"):
            return "crash"
    return "lost"


def _judged(folder: str) -> str:
    from launch.local import read_report, refuse_failed

    try:
        refuse_failed(read_report(folder))
    except GateFailed:
        return "verdict"
    return ""


def runner_for(where: str, say: Callable[[str], None], *, to_stderr: bool = False) -> Runner:
    """What runs batches `local`ly or through `slurm`."""
    return (Slurm if where == "slurm" else Local)(say, to_stderr=to_stderr)
