"""The `unlearn` command. Exit codes: 0 done, 1 our bug, 2 wrong use or configuration, 3 bad data, integrity or storage,
4 the verdict failed, 75 preempted (run it again), 130 interrupted.

What a command needs is imported inside it, so that `unlearn --help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pipeline.errors import IntegrityError, UnlearnError

__all__ = ["app", "main"]

app = typer.Typer(
    name="unlearn",
    help="Make an image-to-image model forget the images of a batch of deletion requests.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Boxes and colour belong on a terminal only.
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A packaged run (see `unlearn list`) or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Fields to change, e.g. engine.zero_stage=2 requests=batch.csv", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one line of JSON on standard output.")]


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn named failures into one message and their exit code."""
    from launch.worker import WorkerError

    try:
        yield
    except UnlearnError as fault:
        _complain(f"error: {fault.message}", *([f"  cure: {fault.cure}"] if fault.cure else []))
        raise typer.Exit(fault.exit_code) from None
    except WorkerError as crash:
        _complain(crash.output, f"error: {crash}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again to go on")
        raise typer.Exit(130) from None


def _complain(*lines: str) -> None:
    sys.stdout.flush()
    for line in lines:
        print(line, file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        from pipeline import __version__

        print(f"unlearn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Make an image-to-image model forget the images of a batch of deletion requests."""


@app.command()
def run(run: Run, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the whole chain on this machine; go on where it stopped."""
    with _answering():
        from launch.local import read_report, run_chain
        from launch.show import print_json, print_table, report_rows
        from pipeline.config import read_batch, resolve
        from pipeline.storage import join

        config = resolve(run, overrides)
        speech = sys.stderr if as_json else sys.stdout
        outcome = run_chain(config, read_batch(config), say=lambda line: print(line, file=speech, flush=True), to_stderr=as_json)
        report = read_report(outcome.folder)
        page = join(outcome.folder, "report.html")
        if as_json:
            facts: dict[str, Any] = {"folder": outcome.folder, "report": page, "ran": outcome.ran, "up_to_date": outcome.current}
            print_json({**facts, "headline": report.get("headline", []), "table": report.get("table", [])})
            return
        if not outcome.ran:
            print(f"nothing to do: all {len(outcome.current)} stages are up to date")
        print()
        print_table(*report_rows(report))
        print()
        for line in report.get("headline", []):
            print(line)
        print(f"report: {page}")


@app.command()
def check(run: Run, overrides: Overrides = None) -> None:
    """Decode the configuration, the requests and every part; touch nothing."""
    with _answering():
        from launch.local import check_parts, refuse_other_batch
        from pipeline.config import read_batch, resolve, run_folder
        from pipeline.requests import batch_digest

        config = resolve(run, overrides)
        batch = read_batch(config)
        refuse_other_batch(run_folder(config, batch), batch_digest(batch))
        check_parts(config)
        print(f"ok: run {config.name}, {len(batch.requests)} requests; labels and keys are looked up when the source is indexed")


@app.command("list")
def list_parts(as_json: AsJson = False) -> None:
    """Say which models, methods, sources, tasks and packaged runs there are."""
    with _answering():
        from launch.show import print_json, print_table
        from pipeline import component
        from pipeline.config import packaged

        parts = {group: {name: component.summary(group, name) for name in component.names(group)} for group in component.GROUPS}
        parts["run"] = {name: str(path) for name, path in packaged("run").items()}
        if as_json:
            print_json(parts)
            return
        rows = [[group, name, text] for group, named in parts.items() for name, text in named.items()]
        print_table(["kind", "name", "what it is"], rows)


@app.command()
def plan(run: Run, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a run would do, without doing it."""
    with _answering():
        from launch.plan import NOT_COMPUTED, lines, make_plan
        from launch.show import print_json, print_table
        from pipeline.config import read_batch, resolve

        config = resolve(run, overrides)
        planned = make_plan(config, read_batch(config))
        if as_json:
            print_json(planned)
            return
        for label, text in lines(planned):
            print(f"{label + ':':<19}{text}")
        print()
        costs = [NOT_COMPUTED if stage.sample_gradients is None else str(stage.sample_gradients) for stage in planned.stages]
        rows = [[s.name, s.state, str(s.ranks), cost, s.title] for s, cost in zip(planned.stages, costs, strict=True)]
        print_table(["stage", "state", "ranks", "sample gradients", "what it does"], rows)


@app.command()
def verify(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A run folder, as `unlearn run` printed it.")],
    as_json: AsJson = False,
) -> None:
    """Check offline that a run folder is what its receipts say."""
    with _answering():
        from launch.show import print_json
        from launch.verify import verify as examine

        found = examine(folder)
        if as_json:
            print_json(found)
        if found.faults:
            lead = f"{found.folder}: {len(found.faults)} faults" if len(found.faults) > 1 else found.folder
            raise IntegrityError("\n  ".join([lead, *found.faults]), "restore what is named, or run the chain again")
        if not as_json:
            elsewhere = f"; {found.remote} shards on other storage not fetched" if found.remote else ""
            print(f"{found.receipts} receipts, {found.files} files, {found.shards} shards checked{elsewhere}")
            print("receipts and digests intact; unsigned")


def main() -> None:
    """Entry point of the `unlearn` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end a run that succeeded.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
