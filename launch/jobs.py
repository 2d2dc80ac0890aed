"""How the jobs of a submission are: what Slurm says of them, and what the receipts say once Slurm has forgotten them."""

from __future__ import annotations

from launch import queue
from launch.acts import find_run
from launch.sending import noted, own_jobs
from pipeline.chain import chain_for, current_receipt, read_receipt, stage
from pipeline.config import RunConfig, read_run
from pipeline.errors import ConfigError, UnlearnError
from pipeline.records import record
from pipeline.storage import absolute, exists, is_local, join, list_files

__all__ = ["JobStatus", "Status", "cancel_jobs", "find_jobs", "job_rows", "status_of"]

COLUMNS = ("stage", "job", "state", "restarts", "reason", "receipt")


@record
class JobStatus:
    """One stage's job and receipt. `state` is Slurm's word, `forgotten`, or `not submitted`."""

    stage: str
    job: str
    state: str
    restarts: int | None
    reason: str
    receipt: str
    """`current`, `outdated` or `none`; empty for what has no receipts."""
    log: str


@record
class Status:
    """All of a submission's jobs. `told` is empty, or why Slurm could not be asked."""

    folder: str
    jobs: tuple[JobStatus, ...]
    told: str = ""


def find_jobs(place: str, output: str = "runs") -> str:
    """The folder with the notes of a submission: a folder, a run's name below `output`, or digits of its batch digest.

    Raises:
        ConfigError: none is meant, or several.
    """
    here = absolute(place)
    return here if exists(join(here, "jobs", "submitted.json")) else find_run(place, output)


def status_of(folder: str) -> Status:
    """What is known of every stage's job.

    Raises:
        ConfigError: the folder's configuration is not of this version.
        IntegrityError: notes or receipts were changed.
    """
    sent, told = noted(folder), ""
    jobs = {stage: item.job for stage, item in sent.items()}
    try:
        jobs = own_jobs(folder, _scripts(folder))
        known = queue.ask(jobs.values())
    except UnlearnError as fault:
        known, told = {}, fault.message
    config = read_run(folder) if exists(join(folder, "config.yaml")) else None
    rows = []
    for name in [spec.name for spec in chain_for(config)] if config else list(jobs):
        job = jobs.get(name, "")
        found = known.get(job)
        rows.append(
            JobStatus(
                stage=name,
                job=job,
                state=found.state if found else ("forgotten" if job else "not submitted"),
                restarts=found.restarts if found else None,
                reason=found.reason if found else "",
                receipt=_receipt(config, folder, name) if config else "",
                log=sent[name].log if name in sent else "",
            )
        )
    return Status(folder=folder, jobs=tuple(rows), told=told)


def _scripts(folder: str) -> list[str]:
    there = is_local(folder) and exists(join(folder, "jobs"))
    return list_files(join(folder, "jobs"), ".sbatch") if there else []


def _receipt(config: RunConfig, folder: str, name: str) -> str:
    if current_receipt(config, folder, stage(name, config)):
        return "current"
    return "none" if read_receipt(folder, name) is None else "outdated"


def job_rows(status: Status) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns and rows of the table, and lines to say below it."""
    rows = [
        [job.stage, job.job, job.state, "" if job.restarts is None else str(job.restarts), job.reason, job.receipt]
        for job in status.jobs
    ]
    lines = [f"Slurm could not be asked: {status.told}"] if status.told else []
    # A job that Slurm has forgotten and that left no receipt is looked at like one that failed.
    bad = ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "forgotten")
    lines += [f"{job.stage}: see {job.log}" for job in status.jobs if job.state in bad and job.receipt != "current" and job.log]
    return list(COLUMNS), rows, lines


def cancel_jobs(folder: str) -> dict[str, str]:
    """Cancel the submission's queued and running jobs; returns them by stage.

    Raises:
        ConfigError: nothing was ever submitted there.
        StorageError: Slurm does not answer.
    """
    jobs = own_jobs(folder, _scripts(folder))
    if not jobs:
        raise ConfigError(f"{folder}: no job was submitted for it", "name the folder that `unlearn submit` printed")
    known = queue.ask(jobs.values())
    active = {stage: job for stage, job in jobs.items() if job in known and known[job].active}
    # The last first, so that none of them begins because the one before it is gone.
    queue.cancel(list(reversed(active.values())))
    return active
