"""A run's chain through Slurm: one batch script a stage, sent in order, each to begin when those that it needs have ended well.

The same command twice, or after it died half-way, sends what is missing and nothing twice.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping

from launch.cluster import ClusterConfig
from launch.local import check_parts, prepare_folder, refuse_erased, refuse_other_batch
from launch.sending import Say, Script, Site, active_jobs, send_all, site_of
from launch.slurm import render
from launch.spec import chain_of_jobs
from pipeline.chain import chain_for, current_receipt
from pipeline.claim import owning
from pipeline.config import RunConfig, read_run, run_folder, run_id
from pipeline.decode import canonical
from pipeline.errors import ConfigError
from pipeline.records import RequestBatch, record
from pipeline.requests import batch_digest
from pipeline.storage import join, publish_bytes, read_bytes

__all__ = ["Intent", "Submission", "current_stages", "intend", "prepare", "submit"]


@record
class Intent:
    """What a submission would send, beside jobs that are queued or running and stages that have nothing to do."""

    site: Site
    wanted: tuple[Script, ...]
    active: Mapping[str, str]
    current: tuple[str, ...]


@record
class Submission:
    """What one submission did: jobs it sent, jobs of an earlier one that it left alone, stages that have nothing to do."""

    site: Site
    sent: Mapping[str, str]
    active: Mapping[str, str]
    current: tuple[str, ...]


def prepare(config: RunConfig, batch: RequestBatch, cluster: ClusterConfig) -> tuple[Site, tuple[Script, ...]]:
    """The batch scripts of all stages of a run; nothing is written.

    Raises:
        ConfigError: what cannot be asked of the cluster, or written into a script.
    """
    site = site_of(run_folder(config, batch), run_id(config, batch))
    scripts = []
    for number, job in enumerate(chain_of_jobs(config, cluster), start=1):
        log = join(site.logs, f"slurm-{job.stage}.log")
        text = render(
            job,
            cluster,
            folder=site.home,
            name=site.name,
            log=log,
            chdir=os.getcwd(),
            python=cluster.python or sys.executable,
        )
        file = join(site.scripts, f"{number:02d}-{job.stage}.sbatch")
        scripts.append(Script(stage=job.stage, needs=job.needs, file=file, text=text, log=log, alone=True))
    return site, tuple(scripts)


def current_stages(config: RunConfig, folder: str) -> tuple[str, ...]:
    """The stages that have nothing to do, whatever happens before them: they and all that they need have current receipts."""
    current: list[str] = []
    for spec in chain_for(config):
        if all(need in current for need in spec.needs) and current_receipt(config, folder, spec):
            current.append(spec.name)
    return tuple(current)


def intend(config: RunConfig, batch: RequestBatch, cluster: ClusterConfig, *, strict: bool = True) -> Intent:
    """What a submission would send now.

    Args:
        config: a resolved run.
        batch: its requests.
        cluster: where it goes.
        strict: see `launch.sending.active_jobs`.

    Raises:
        ConfigError: the folder belongs to another batch, its images were erased, jobs of another configuration are under way,
            or what `prepare` refuses.
        StorageError: Slurm does not answer.
    """
    site, scripts = prepare(config, batch, cluster)
    refuse_other_batch(site.home, batch_digest(batch))
    refuse_erased(site.home)
    current = current_stages(config, site.home)
    active = active_jobs(site, scripts, strict=strict) if len(current) < len(scripts) else {}
    if active:
        _refuse_change(site, config, cluster)
    wanted = tuple(script for script in scripts if script.stage not in (*current, *active))
    return Intent(site=site, wanted=wanted, active=active, current=current)


def submit(config: RunConfig, batch: RequestBatch, cluster: ClusterConfig, *, say: Say, to_stderr: bool = False) -> Submission:
    """Send what is not up to date and not under way.

    Args:
        config: a resolved run.
        batch: its requests.
        cluster: where it goes.
        say: takes one line of progress at a time.
        to_stderr: keep standard output free, for JSON.

    Raises:
        ConfigError: what `intend` refuses, or Slurm is not here.
        Refused: Slurm did not take a job; no job of this submission is left.
        UnlearnError: what else the check of the parts refuses.
    """
    seen = intend(config, batch, cluster)
    if not seen.wanted:
        return Submission(site=seen.site, sent={}, active=seen.active, current=seen.current)
    check_parts(config, to_stderr=to_stderr)
    with owning(join(seen.site.home, "jobs"), lease_seconds=cluster.lease_seconds):
        seen = intend(config, batch, cluster)  # another submission may have been faster
        if seen.wanted and not seen.active:
            with owning(seen.site.home, lease_seconds=cluster.lease_seconds):
                prepare_folder(config, batch, seen.site.home)
                publish_bytes(_cluster_uri(seen.site), canonical(cluster))
        sent = send_all(seen.site, seen.wanted, seen.active, say)
    return Submission(site=seen.site, sent=sent, active=seen.active, current=seen.current)


def _cluster_uri(site: Site) -> str:
    return join(site.home, "jobs", "cluster.json")


def _refuse_change(site: Site, config: RunConfig, cluster: ClusterConfig) -> None:
    """ConfigError where jobs that are under way would find another configuration than the one they were sent with."""
    bare = dataclasses.replace(config, requests="", embedded_requests=())
    what = "the run" if canonical(read_run(site.home)) != canonical(bare) else ""
    if not what and read_bytes(_cluster_uri(site)) != canonical(cluster):
        what = "the cluster"
    if what:
        message = f"{site.home}: jobs are queued or running for another configuration of {what}"
        raise ConfigError(message, "wait for them, or stop them with `unlearn cancel`")
