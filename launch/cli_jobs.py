"""The commands for work through Slurm: submit, submit-index, status, cancel. What they need is imported inside them."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answering import AsJson, Overrides, Run, answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from launch.submit import Intent, Submission

__all__ = ["add_to"]

Cluster = Annotated[
    str,
    typer.Option("--cluster", metavar="NAME|FILE", help="The cluster: a packaged name, or a YAML file; else one node, no GPU."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the job files and the commands that send them; send nothing.")]
Place = Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="A run folder, a run's name, or digits of its batch digest.")]
Out = Annotated[str, typer.Option("--out", help="Folder below which runs lie.")]


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    app.command()(submit)
    app.command("submit-index")(submit_index)
    app.command()(status)
    app.command()(cancel)


def submit(
    run: Run,
    overrides: Overrides = None,
    cluster: Cluster = "",
    dry_run: DryRun = False,
    compare: Annotated[bool, typer.Option("--compare", help="Compare methods instead: a job array over seeds.")] = False,
    methods: Annotated[str, typer.Option("--methods", metavar="A,B,C", help="Methods to compare, as in `compare`.")] = "",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds to compare, from the run's own on.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run the whole chain through Slurm, a job for each stage; send again what is missing, and nothing twice."""
    with answering():
        from launch.arrays import intend_comparison, submit_arrays
        from launch.cluster import read_cluster
        from launch.local import check_parts
        from launch.submit import intend
        from launch.submit import submit as send
        from pipeline.config import read_batch, resolve
        from pipeline.errors import ConfigError

        place = read_cluster(cluster)
        if compare:
            chosen = [name for word in methods.split(",") if (name := word.strip())]
            config = resolve(run, overrides, compare=chosen)
            batch = read_batch(config)
            seen = intend_comparison(
                run,
                overrides or [],
                methods=",".join(chosen),
                seeds=seeds,
                config=config,
                batch=batch,
                cluster=place,
                strict=not dry_run,
            )
        elif methods or seeds > 1:
            raise ConfigError("--methods and --seeds are a comparison's", "add --compare")
        else:
            config = dataclasses.replace(resolve(run, overrides), methods={})  # `methods` is for comparisons
            batch = read_batch(config)
            seen = intend(config, batch, place, strict=not dry_run)
        if dry_run:
            check_parts(config, to_stderr=as_json)
            _show(seen, as_json=as_json)
        elif compare:
            _tell(submit_arrays(seen, place, say=_speech(as_json=as_json), config=config), as_json=as_json)
        else:
            _tell(send(config, batch, place, say=_speech(as_json=as_json), to_stderr=as_json), as_json=as_json)


def submit_index(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="As in `unlearn index`.")],
    fields: Annotated[list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="Fields of the source.")] = None,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Into how many jobs the work is cut.")] = 8,
    out: Annotated[str, typer.Option("--out", help="Folder or URI below which packed sources lie.")] = "runs",
    on_error: Annotated[str, typer.Option("--on-error", help="Faulty shards and samples: stop, or quarantine.")] = "stop",
    max_quarantined: Annotated[int, typer.Option("--max-quarantined", help="More faults than this end the act.")] = 100,
    cluster: Cluster = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Build or refresh the key index of a source of shards through Slurm, with a job array."""
    with answering():
        from launch.arrays import intend_index, submit_arrays
        from launch.cluster import read_cluster

        place = read_cluster(cluster)
        seen = intend_index(
            source,
            fields or [],
            output=out,
            on_error=on_error,
            max_quarantined=max_quarantined,
            tasks=tasks,
            cluster=place,
            strict=not dry_run,
        )
        if dry_run:
            _show(seen, as_json=as_json)
        else:
            _tell(submit_arrays(seen, place, say=_speech(as_json=as_json)), as_json=as_json)


def _speech(*, as_json: bool) -> Callable[[str], None]:
    stream = sys.stderr if as_json else sys.stdout
    return lambda line: print(line, file=stream, flush=True)


def _show(seen: Intent, *, as_json: bool) -> None:
    """What would be sent: each job's file, its text, and the command, in which a stage's name stands for its job's number."""
    import os
    import shlex

    from launch.sending import command
    from launch.show import print_json

    known, commands = dict(seen.active), []
    for script in seen.wanted:
        commands.append(command(script, known))
        known[script.stage] = script.stage
    if as_json:
        jobs = [
            {"stage": script.stage, "file": script.file, "text": script.text, "command": words}
            for script, words in zip(seen.wanted, commands, strict=True)
        ]
        print_json({"folder": seen.site.home, "jobs": jobs, "active": seen.active, "up_to_date": seen.current})
        return
    for script in seen.wanted:
        print(f"# {script.file}\n{script.text}")
    print("# Sent in this order; the name of a stage stands for its job's number:" if commands else "# Nothing would be sent.")
    for words in commands:
        print(shlex.join(words))
    for name in sorted(name for name in os.environ if name.startswith("SBATCH_")):
        print(f"# {name} is set in this environment, and goes before what the files say.")


def _tell(done: Submission, *, as_json: bool) -> None:
    from launch.jobs import job_rows, status_of
    from launch.show import print_json, print_table

    site, found = done.site, status_of(done.site.home)
    if as_json:
        facts = {"folder": site.home, "scripts": site.scripts, "logs": site.logs}
        print_json({**facts, "sent": done.sent, "active": done.active, "up_to_date": done.current, "jobs": found.jobs})
        return
    if not done.sent and not done.active:
        print(f"nothing to do: all {len(done.current)} stages are up to date")
        return
    if done.active and not done.sent:
        print(f"nothing sent: jobs {', '.join(done.active.values())} are queued or running already")
    print()
    columns, rows, lines = job_rows(found)
    print_table(columns, rows)
    print()
    for line in lines:
        print(line)
    print(f"job files: {site.scripts}\nlogs: {site.logs}\nfollow it with: unlearn status {site.home}")


def status(place: Place, out: Out = "runs", as_json: AsJson = False) -> None:
    """Say how the jobs of a run are, and which stages have their receipts."""
    with answering():
        from launch.jobs import find_jobs, job_rows, status_of
        from launch.show import print_json, print_table

        found = status_of(find_jobs(place, out))
        if as_json:
            print_json(found)
            return
        columns, rows, lines = job_rows(found)
        print_table(columns, rows)
        for line in lines:
            print(line)


def cancel(place: Place, out: Out = "runs", as_json: AsJson = False) -> None:
    """Cancel the queued and running jobs of a run; what is done stays done."""
    with answering():
        from launch.jobs import cancel_jobs, find_jobs
        from launch.show import print_json

        folder = find_jobs(place, out)
        gone = cancel_jobs(folder)
        if as_json:
            print_json({"folder": folder, "cancelled": gone})
            return
        for stage, job in gone.items():
            print(f"{stage}: job {job} cancelled")
        if not gone:
            print("nothing to cancel: no job is queued or running")
