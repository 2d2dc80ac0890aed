"""Batch scripts on their way to Slurm: where they lie, sending them in order, and notes of what was sent.

A note is written after every single job, and what lies with Slurm under a script's name is found without a note too: so
nothing is lost, or sent twice, when a command dies half-way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from pydantic import StringConstraints

from launch import queue
from launch.slurm import submit_words
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError, StorageError, UnlearnError
from pipeline.records import record
from pipeline.storage import absolute, exists, is_local, join, publish_bytes, read_bytes

__all__ = ["Say", "Script", "Sent", "Site", "active_jobs", "command", "noted", "own_jobs", "send_all", "site_of"]

Say = Callable[[str], None]
Number = Annotated[str, StringConstraints(pattern=r"^\d{1,20}$")]


@record
class Site:
    """Where a submission's files lie: `home` on any storage, with the notes of what was sent; scripts and logs on this machine's
    storage, because Slurm reads and writes them."""

    home: str
    name: str
    scripts: str
    logs: str


@record
class Script:
    """One batch script, and the scripts that must have ended well before it."""

    stage: str
    needs: tuple[str, ...]
    file: str
    text: str
    log: str
    alone: bool = False
    """It works in a folder that has one owner at a time, and waits for the end of all jobs before it."""


@record
class Sent:
    """A job that was sent."""

    stage: str
    job: Number
    at: str
    log: str = ""


@record
class _Notes:
    """`jobs/submitted.json`: the last job of each stage."""

    jobs: tuple[Sent, ...] = ()


def site_of(home: str, name: str) -> Site:
    """Where the files of a submission called `name` lie, whose results go to `home`."""
    if is_local(home):
        return Site(home=home, name=name, scripts=join(home, "jobs"), logs=join(home, "logs"))
    here = absolute(f"jobs-{name}")
    return Site(home=home, name=name, scripts=here, logs=here)


def noted(site_home: str) -> dict[str, Sent]:
    """The last job that was sent for each stage.

    Raises:
        IntegrityError: the notes were changed.
    """
    uri = join(site_home, "jobs", "submitted.json")
    if not exists(uri):
        return {}
    try:
        notes = decode(_Notes, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
    except ValueError:
        raise IntegrityError(f"{uri}: not JSON", "remove the file, if no job of this run is queued or running") from None
    return {sent.stage: sent for sent in notes.jobs}


def own_jobs(site_home: str, files: Iterable[str]) -> dict[str, str]:
    """Each stage's last job: as noted, or what Slurm has queued or running under the name of one of the scripts.

    The latter were sent by hand, or by a command that died before it could note the number.
    """
    found = {stage: item.job for stage, item in noted(site_home).items()}
    by_script = {os.path.basename(file).removesuffix(".sbatch").partition("-")[2]: job for file, job in queue.mine(files).items()}
    return {**found, **by_script}


def active_jobs(site: Site, scripts: Sequence[Script], *, strict: bool = True) -> dict[str, str]:
    """Jobs of the scripts that are queued or running, by stage.

    Args:
        site: where the files lie.
        scripts: of the submission.
        strict: whether Slurm must answer; else, where it does not, no job is taken to be under way.

    Raises:
        ConfigError: Slurm is not here.
        StorageError: it does not answer.
    """
    try:
        queue.require()
        jobs = own_jobs(site.home, [script.file for script in scripts])
        known = queue.ask(jobs.values())
    except (ConfigError, StorageError):
        if strict:
            raise
        return {}
    return {stage: job for stage, job in jobs.items() if job in known and known[job].active}


def command(script: Script, known: Mapping[str, str]) -> list[str]:
    """The sbatch command of a script, where `known` are the jobs of the stages that were sent before it."""
    after = [known[need] for need in script.needs if need in known]
    return submit_words(script.file, after, [job for job in known.values() if job not in after] if script.alone else [])


def send_all(site: Site, scripts: Sequence[Script], active: Mapping[str, str], say: Say) -> dict[str, str]:
    """Send scripts in order; returns the jobs' numbers by stage.

    Args:
        site: where the files lie.
        scripts: those to send.
        active: jobs that others may wait for, by stage.
        say: takes one line of progress at a time.

    Raises:
        Refused: Slurm did not take one; those before it were cancelled.
    """
    os.makedirs(site.logs, exist_ok=True)
    for script in scripts:
        publish_bytes(script.file, script.text.encode())
    sent: dict[str, str] = {}
    for script in scripts:
        words = command(script, {**active, **sent})
        try:
            job = queue.send(words)
        except UnlearnError as fault:
            raise type(fault)(f"{script.stage}: {fault.message}{_withdraw(sent, script)}", fault.cure) from None
        sent[script.stage] = job
        _note(site, Sent(stage=script.stage, job=job, at=datetime.now(UTC).isoformat(timespec="seconds"), log=script.log))
        say(f"{script.stage}: job {job}" + (f", {words[2].removeprefix('--dependency=')}" if len(words) > 3 else ""))
    return sent


def _withdraw(sent: Mapping[str, str], script: Script) -> str:
    """Cancel what was sent before a script that was not taken, and that one's job where only the answer was lost."""
    try:
        queue.cancel([*sent.values(), *queue.mine([script.file]).values()])
    except UnlearnError as fault:
        return f"; jobs {', '.join(sent.values())} are left, because {fault.message}" if sent else ""
    return f"; jobs {', '.join(sent.values())}, sent before it, were cancelled" if sent else ""


def _note(site: Site, sent: Sent) -> None:
    jobs = {**noted(site.home), sent.stage: sent}
    publish_bytes(join(site.home, "jobs", "submitted.json"), canonical(_Notes(jobs=tuple(jobs.values()))))
