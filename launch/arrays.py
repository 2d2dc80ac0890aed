"""Job arrays: a comparison's seeds side by side, and the parts of a source's index; the last job puts them together."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from launch.acts import index_order
from launch.cluster import ClusterConfig
from launch.local import check_parts
from launch.sending import Say, Script, Site, active_jobs, send_all, site_of
from launch.slurm import TASK, render_array
from launch.submit import Intent, Submission
from pipeline.claim import owning
from pipeline.config import RunConfig, packaged
from pipeline.decode import digest
from pipeline.errors import ConfigError
from pipeline.records import RequestBatch
from pipeline.requests import batch_digest
from pipeline.storage import absolute, is_local, join

__all__ = ["intend_comparison", "intend_index", "submit_arrays"]


def intend_comparison(
    run: str,
    overrides: Sequence[str],
    *,
    methods: str,
    seeds: int,
    config: RunConfig,
    batch: RequestBatch,
    cluster: ClusterConfig,
    strict: bool = True,
) -> Intent:
    """What `unlearn submit --compare` would send: the source's index, an array of seeds, and the comparison.

    Args:
        run: as it was given, a packaged name or a file.
        overrides: `key=value` texts, as they were given.
        methods: names with commas; empty: those of the run.
        seeds: how many.
        config: the same, resolved.
        batch: its requests.
        cluster: where it goes; of its nodes a job gets one.
        strict: see `launch.sending.active_jobs`.

    Raises:
        ConfigError: see `launch.slurm.render`.
    """
    name = f"{config.name}-compare-{batch_digest(batch)[:8]}"
    site = site_of(join(config.output, name), name)
    given = run if run in packaged("run") or not is_local(run) else absolute(run)
    compare = ["compare", given, *(["--methods", methods] if methods else []), "--seeds", str(seeds)]
    fields = [f"{field}={json.dumps(value)}" for field, value in config.source.items() if field != "component"]
    settings = ["--on-error", config.shards.on_error, "--max-quarantined", str(config.shards.max_quarantined)]
    # By itself first: seeds that begin together would all want to pack the same source.
    index = ["index", str(config.source["component"]), "--out", config.output, *settings, *_last(fields)]
    return _intent(
        site,
        cluster,
        [
            ("source", "packs and indexes the source", index, 0, 0),
            ("seeds", "all methods with one seed", [*compare, "--only-seed", TASK, *_last(overrides)], seeds, cluster.node.gpus),
            ("comparison", "the seeds side by side", [*compare, *_last(overrides)], 0, cluster.node.gpus),
        ],
        strict=strict,
    )


def intend_index(
    source: str,
    fields: Sequence[str],
    *,
    output: str,
    on_error: str,
    max_quarantined: int,
    tasks: int,
    cluster: ClusterConfig,
    strict: bool = True,
) -> Intent:
    """What `unlearn submit-index` would send: an array of `tasks` parts of the index, and the job that puts them together.

    Args:
        source: as in `unlearn index`.
        fields: as there.
        output: as there.
        on_error: as there.
        max_quarantined: as there.
        tasks: how many.
        cluster: where it goes; of its nodes a task gets one, without GPUs.
        strict: see `launch.sending.active_jobs`.

    Raises:
        ConfigError: an unknown source or field, or what `launch.slurm.render` refuses.
    """
    order = index_order(source, [*fields], output=output, on_error=on_error, max_quarantined=max_quarantined, task=f"0/{tasks}")
    name = f"index-{digest(order)[:8]}"
    given = ["--out", order.output, "--on-error", on_error, "--max-quarantined", str(max_quarantined)]
    command = ["index", source, *given]
    return _intent(
        site_of(join(order.output, name), name),
        cluster,
        [
            ("parts", f"one of {tasks} shares of the index", [*command, "--task", f"{TASK}/{tasks}", *_last(fields)], tasks, 0),
            ("index", "puts the parts together", [*command, *_last(fields)], 0, 0),
        ],
        strict=strict,
    )


def _last(words: Sequence[str]) -> list[str]:
    """`key=value` words at the end of a command: whatever they begin with, none is an option."""
    return ["--", *words] if words else []


def _intent(site: Site, cluster: ClusterConfig, jobs: Sequence[tuple[str, str, list[str], int, int]], *, strict: bool) -> Intent:
    scripts: list[Script] = []
    for number, (stage, title, command, tasks, gpus) in enumerate(jobs, start=1):
        log = join(site.logs, f"slurm-{stage}.log")
        text = render_array(
            cluster,
            name=f"{site.name}.{stage}",
            title=title,
            command=command,
            tasks=tasks,
            gpus=gpus,
            log=log,
            chdir=os.getcwd(),
            python=cluster.python or sys.executable,
        )
        file = join(site.scripts, f"{number:02d}-{stage}.sbatch")
        needs = (scripts[-1].stage,) if scripts else ()
        shown = log.replace(".log", "-*.log") if tasks else log
        scripts.append(Script(stage=stage, needs=needs, file=file, text=text, log=shown))
    active = active_jobs(site, scripts, strict=strict)
    # What lies before a job that is queued or running is done.
    begin = max((number for number, script in enumerate(scripts, start=1) if script.stage in active), default=0)
    return Intent(site=site, wanted=tuple(scripts[begin:]), active=active, current=())


def submit_arrays(seen: Intent, cluster: ClusterConfig, *, say: Say, config: RunConfig | None = None) -> Submission:
    """Send what is not under way.

    Args:
        seen: what is to be sent.
        cluster: where it goes.
        say: takes one line of progress at a time.
        config: of a comparison, whose parts are checked first.

    Raises:
        Refused: Slurm did not take a job; no job of this submission is left.
        UnlearnError: what else the check of the parts refuses.
    """
    if seen.wanted:
        if config is not None:
            check_parts(config)
        with owning(join(seen.site.home, "jobs"), lease_seconds=cluster.lease_seconds):
            if set(active_jobs(seen.site, seen.wanted)) - set(seen.active):
                raise ConfigError(f"{seen.site.home}: another submission was faster", "see `unlearn status`")
            sent = send_all(seen.site, seen.wanted, seen.active, say)
        return Submission(site=seen.site, sent=sent, active=seen.active, current=())
    return Submission(site=seen.site, sent={}, active=seen.active, current=())
