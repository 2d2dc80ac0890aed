"""Slurm's clients: send a script, ask after jobs, cancel them. Slurm's accounting (`sacct`) is not needed.

Slurm forgets a job some minutes after its end; what it does not know any more is simply absent from the answers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import ConfigError, StorageError
from pipeline.records import record

__all__ = ["Refused", "SlurmJob", "ask", "cancel", "mine", "require", "send"]

PATIENCE_SECONDS = 120.0
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
FACTS = re.compile(
    r"^JobId=(?P<job>\d+)(?: ArrayJobId=(?P<array>\d+) ArrayTaskId=(?P<task>\S+))?.*?"
    r" JobState=(?P<state>\S+) Reason=(?P<reason>\S+).*? Restarts=(?P<restarts>\d+)(?:.*? ExitCode=(?P<code>\d+:\d+))?"
)


class Refused(ConfigError):
    """Slurm did not take a job, and said why."""


@record
class SlurmJob:
    """What Slurm says of a job."""

    job: str
    state: str
    reason: str = ""
    restarts: int = 0

    @property
    def active(self) -> bool:
        """Whether it is queued or runs."""
        return self.state not in ENDED


def require() -> None:
    """Raise ConfigError where Slurm's commands are not at hand."""
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch: not found", "run this where Slurm is, on a login node; or see the jobs with --dry-run")


def _client(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_SECONDS,
            env=_environment(os.environ),
        )
    except FileNotFoundError:
        raise ConfigError(f"{words[0]}: not found", "run this where Slurm is, on a login node") from None
    except subprocess.TimeoutExpired:
        message = f"{words[0]}: no answer from Slurm in {PATIENCE_SECONDS:g} s"
        raise StorageError(message, "see whether `scontrol ping` answers, then run the same command again") from None


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Without what would change the clients' answers, and, inside a job, without that job's own size and limits."""
    foreign = ("SQUEUE_", "SCONTROL_", "SCANCEL_", *(["SLURM_"] if "SLURM_JOB_ID" in given else []))
    return {name: text for name, text in given.items() if name == "SLURM_CONF" or not name.startswith(foreign)}


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """What a client complained of, in one line."""
    return "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or f"ended with {done.returncode}"


def send(words: Sequence[str]) -> str:
    """Run an `sbatch --parsable` command; returns the job's number.

    Raises:
        Refused: Slurm did not take it.
    """
    done = _client(words)
    number = done.stdout.strip().partition(";")[0]  # NUMBER;CLUSTER where there are several clusters
    if done.returncode or not number.isdecimal():
        raise Refused(f"{words[-1]}: {_words(done)}", "correct the cluster's file, then submit again")
    return number


def ask(jobs: Iterable[str]) -> dict[str, SlurmJob]:
    """What Slurm knows of the jobs, by number.

    Raises:
        StorageError: Slurm does not answer.
    """
    found = {}
    for job in dict.fromkeys(jobs):
        done = _client(["scontrol", "show", "job", "-o", job])
        tasks = [_parsed(match) for line in done.stdout.splitlines() if (match := FACTS.match(line))]
        if not tasks and "Invalid job id" not in done.stderr:
            tasks = _queued(job, _words(done))
        if tasks:
            found[job] = _together(job, tasks)
    return found


def _parsed(match: re.Match[str]) -> SlurmJob:
    state, reason, code = match["state"], match["reason"], (match["code"] or "0:0").split(":")
    if state == "FAILED":  # "NonZeroExitCode" says less than the code itself
        reason = f"exit code {code[0]}" if code[1] == "0" else f"signal {code[1]}"
    elif reason == "None" or (state in ("CANCELLED", "COMPLETED") and not reason.startswith("Dependency")):
        reason = ""  # why it had waited before does not matter any more
    return SlurmJob(job=match["job"], state=state, reason=reason.replace("_", " "), restarts=int(match["restarts"]))


def _queued(job: str, why: str) -> list[SlurmJob]:
    """The same of squeue, which knows less, where scontrol failed."""
    done = _client(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%i %T %r"])
    if done.returncode and "Invalid job id" not in done.stderr:
        raise StorageError(f"Slurm does not answer: {why}", "see whether `scontrol ping` answers, then run this again")
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.strip()]
    return [SlurmJob(job=word, state=state, reason="" if reason == "None" else reason) for word, state, reason in lines]


def _together(job: str, tasks: list[SlurmJob]) -> SlurmJob:
    """One answer for the tasks of an array: the state of those that need looking at first."""
    if len(tasks) == 1:
        return SlurmJob(job=job, state=tasks[0].state, reason=tasks[0].reason, restarts=tasks[0].restarts)
    order = sorted(tasks, key=lambda task: (not task.active, task.state == "COMPLETED", task.state != "RUNNING"))
    count = sum(task.state == order[0].state for task in tasks)
    reason = f"{count} of {len(tasks)} tasks" + (f": {order[0].reason}" if order[0].reason else "")
    return SlurmJob(job=job, state=order[0].state, reason=reason, restarts=sum(task.restarts for task in tasks))


def mine(files: Iterable[str]) -> dict[str, str]:
    """My queued and running jobs that were made of one of these scripts: the script, and the job's number.

    It finds also what was sent by hand, or by a command that died before it could note the number.
    """
    wanted, found = set(files), {}
    done = _client(["squeue", "--noheader", "--me", "--format=%F %o"])
    if done.returncode:
        raise StorageError(f"Slurm does not answer: {_words(done)}", "see whether `scontrol ping` answers, then try again")
    for line in done.stdout.splitlines():
        job, _, script = line.partition(" ")
        if script in wanted:
            found[script] = job
    return found


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are left as they are.

    Raises:
        StorageError: Slurm does not answer, or may not do that.
    """
    if jobs and (done := _client(["scancel", *jobs])).returncode:
        raise StorageError(f"scancel {' '.join(jobs)}: {_words(done)}", "see `squeue --me`, then run this again")
