"""The `unlearn` command. Exit codes: 0 done, 1 our bug, 2 wrong use or configuration, 3 bad data, integrity or storage,
4 the verdict failed, 75 preempted (run it again), 130 interrupted.

What a command needs is imported inside it, so that `unlearn --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from typing import Annotated, Any

import typer

from launch import (
    cli_audit,
    cli_jobs,
    cli_keys,
    cli_ledger,
    cli_release,
    cli_requests,
    cli_schedule,
    cli_serve,
    cli_trace,
    cli_verify,
)
from launch.answering import AsJson, Overrides, Run, answering

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


Cluster = Annotated[
    str, typer.Option("--cluster", metavar="NAME|FILE", help="What nodes have: a name in configs/launch, or a YAML file.")
]


@app.command()
def run(
    run: Run,
    overrides: Overrides = None,
    cluster: Cluster = "",
    nodes: Annotated[int, typer.Option("--nodes", min=0, help="Nodes that run this same command; 0: this machine.")] = 0,
    node_rank: Annotated[int, typer.Option("--node-rank", help="This node's number among them, from 0 on.")] = -1,
    hosts: Annotated[str, typer.Option("--hosts", metavar="A,B,C", help="The nodes' addresses, in that order.")] = "",
    address: Annotated[str, typer.Option("--address", help="This node's address, where --hosts does not say it.")] = "",
    dry: Annotated[bool, typer.Option("--dry-run", help="Print what each node would run; touch nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole chain on this machine, or with other nodes; go on where it stopped."""
    with answering():
        from launch.local import read_report, refuse_failed, run_chain
        from launch.node_run import dry_run, given_nodes, run_on_nodes
        from launch.show import print_json, print_table, report_rows
        from pipeline.config import read_batch, resolve
        from pipeline.storage import join

        config = dataclasses.replace(resolve(run, overrides), methods={})  # `methods` is for `unlearn compare`
        rank = None if node_rank < 0 else node_rank
        given, batch = given_nodes(cluster, nodes, hosts, rank, address, shown=dry), read_batch(config)
        if dry:
            given = given or given_nodes("", 1, "", 0, "", shown=True)
            assert given is not None  # one node was given
            words = ["run", run, *(overrides or []), *(["--cluster", cluster] if cluster else [])]
            print("\n".join(dry_run(config, batch, given, words)))
            return
        speech = sys.stderr if as_json else sys.stdout

        def say(line: str) -> None:
            print(line, file=speech, flush=True)

        if given is None:
            outcome = run_chain(config, batch, say=say, to_stderr=as_json)
        else:
            outcome = run_on_nodes(config, batch, given, say=say, to_stderr=as_json)
        report = read_report(outcome.folder)
        page = join(outcome.folder, "report.html")
        if as_json:
            facts: dict[str, Any] = {"folder": outcome.folder, "report": page, "ran": outcome.ran, "up_to_date": outcome.current}
            verdict = report.get("verdict")
            print_json({**facts, "headline": report.get("headline", []), "table": report.get("table", []), "verdict": verdict})
            refuse_failed(report)
            return
        if not outcome.ran:
            print(f"nothing to do: all {len(outcome.current)} stages are up to date")
        print()
        print_table(*report_rows(report))
        print()
        for line in report.get("headline", []):
            print(line)
        print(f"report: {page}")
        refuse_failed(report)


@app.command("stage")
def one_stage(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder that `unlearn submit` prepared.")],
    name: Annotated[str, typer.Argument(metavar="STAGE", help="The stage to run.")],
    node_rank: Annotated[int, typer.Option("--node-rank", help="This node's number; by default Slurm's.")] = -1,
    address: Annotated[str, typer.Option("--address", help="This node's address; by default Slurm's.")] = "",
) -> None:
    """Do this node's part in one stage: what each node of a batch job runs."""
    with answering():
        from launch.node_run import run_one_stage

        rank = None if node_rank < 0 else node_rank
        ran = run_one_stage(folder, name, node_rank=rank, address=address, say=lambda line: print(line, flush=True))
        if not ran:
            print(f"{name}: nothing to do on this node")


@app.command()
def compare(
    run: Run,
    overrides: Overrides = None,
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B,C", help="Methods to compare; without it the run file's `methods`, or all.")
    ] = "",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from the run's own on.")] = 1,
    cost_budget: Annotated[float, typer.Option("--cost-budget", min=0, help="Cost that is in budget, of retraining.")] = 0.20,
    loss_budget: Annotated[
        float, typer.Option("--loss-budget", min=0, help="More error on unseen kept images than retrained that is in budget.")
    ] = 0.03,
    only_seed: Annotated[
        int, typer.Option("--only-seed", help="Run the seed of this number, from 0 on, and draw up nothing: a task of an array.")
    ] = -1,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown, with its command.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set several methods side by side, with one original and one retrained model a seed; go on where it stopped."""
    with answering():
        from launch.compare import command, compare_methods, run_one_seed
        from launch.show import markdown, print_json, print_table
        from pipeline.config import read_batch, resolve
        from pipeline.errors import ConfigError
        from pipeline.orders import Budget

        chosen = [name for word in methods.split(",") if (name := word.strip())]
        if methods and not chosen:
            raise ConfigError("--methods: no name", "write e.g. --methods decouple,salun")
        config, budget = resolve(run, overrides, compare=chosen), Budget(cost=cost_budget, loss=loss_budget)
        quiet = as_json or as_markdown
        speech = sys.stderr if quiet else sys.stdout
        if only_seed >= 0:
            if only_seed >= seeds:
                raise ConfigError(f"--only-seed {only_seed}: not one of {seeds} seeds", f"write 0 to {seeds - 1}")
            say = lambda line: print(line, file=speech, flush=True)  # noqa: E731
            compared, ran, current = run_one_seed(config, read_batch(config), only_seed, say=say, to_stderr=quiet)
            if as_json:
                print_json({"folder": compared.folder, "ran": ran, "up_to_date": current, "failed": compared.failed})
            return
        found = compare_methods(
            config,
            read_batch(config),
            seeds=seeds,
            budget=budget,
            say=lambda line: print(line, file=speech, flush=True),
            to_stderr=quiet,
        )
        table = found.facts["table"]
        if as_json:
            facts = {"folder": found.folder, "report": found.page, "ran": found.ran, "up_to_date": found.current}
            print_json({**facts, "summary": found.facts["summary"], "table": table})
            return
        if as_markdown:
            print(f"`{command(run, overrides or [], methods, seeds, budget)}`\n\n{markdown(table['columns'], table['rows'])}\n")
            print(table["note"])
            return
        if not found.ran:
            print(f"nothing to do: all {len(found.current)} stages are up to date")
        print()
        print_table(table["columns"], table["rows"])
        print(f"\n{table['note']}\n{found.facts['summary']}\ncomparison: {found.page}")


@app.command()
def check(run: Run, overrides: Overrides = None) -> None:
    """Decode the configuration, the requests and every part; touch nothing."""
    with answering():
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
    with answering():
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
def plan(
    run: Run,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option("--nodes", min=0, help="Estimate for so many nodes; 0: the cluster's.")] = 0,
    gpus: Annotated[int, typer.Option("--gpus", min=-1, help="GPUs of a node; -1: the cluster's.")] = -1,
    cluster: Cluster = "",
    curve: Annotated[
        str, typer.Option("--curve", metavar="FILE.png", help="Draw time and cost from 1 to 4,096 ranks into this file.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a run would do, without doing it; with one of the options, what it would take. KEY=VALUE may set node.*, too."""
    with answering():
        from launch.outlook import Wish, look_ahead, parted
        from launch.plan import forecast, lines, make_plan, price, price_lines, stage_rows
        from launch.plan_text import print_outlook
        from launch.show import print_json, print_table
        from pipeline.config import read_batch, resolve
        from pipeline.decode import plain

        own, fields = parted(overrides)
        config = dataclasses.replace(resolve(run, own), methods={})
        batch = read_batch(config)
        wish = Wish(cluster=cluster, nodes=nodes, gpus=None if gpus < 0 else gpus, fields=fields, curve=curve)
        planned = make_plan(config, batch, forecast(config, batch, to_stderr=as_json))
        cost = price(config, planned.folder, to_stderr=as_json)
        outlook = None if wish == Wish() else look_ahead(config, batch, planned, wish, to_stderr=as_json)
        if as_json:
            more = {"outlook": plain(outlook)} if outlook else {}
            print_json({**plain(planned), **more, **({"price": plain(cost)} if cost else {})})
            return
        for label, text in [*lines(planned), *(price_lines(cost) if cost else [])]:
            print(f"{label + ':' if label else '':<19}{text}")
        print()
        print_table(*stage_rows(planned))
        if outlook is not None:
            print()
            print_outlook(outlook)


@app.command()
def index(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A source (see `unlearn list`), or a URI, glob or brace pattern of tars.")
    ],
    fields: Annotated[list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="Fields of the source.")] = None,
    out: Annotated[str, typer.Option("--out", help="Folder or URI below which packed sources lie.")] = "runs",
    on_error: Annotated[str, typer.Option("--on-error", help="Faulty shards and samples: stop, or quarantine.")] = "stop",
    max_quarantined: Annotated[int, typer.Option("--max-quarantined", help="More faults than this end the act.")] = 100,
    task: Annotated[
        str, typer.Option("--task", metavar="I/N", help="Build every N-th part of the index, from the I-th on.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Build or refresh the key index of a source; only new and changed shards are read."""
    with answering():
        from launch.acts import answer_lines, carry_out, index_order
        from launch.show import print_json
        from pipeline.orders import IndexAnswer

        order = index_order(source, fields or [], output=out, on_error=on_error, max_quarantined=max_quarantined, task=task)
        answer = carry_out("index", order, IndexAnswer, to_stderr=as_json)
        if as_json:
            print_json(answer)
            return
        for line in answer_lines(answer):
            print(line)


@app.command()
def tombstone(run: Run, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Make all streams skip a batch's images from their next batch on, before anything is rewritten."""
    with answering():
        from launch.acts import carry_out
        from launch.show import print_json
        from pipeline.config import read_batch, resolve
        from pipeline.orders import BatchOrder, TombstoneAnswer

        config = resolve(run, overrides)
        answer = carry_out("tombstone", BatchOrder(config=config, batch=read_batch(config)), TombstoneAnswer, to_stderr=as_json)
        if as_json:
            print_json(answer)
            return
        print(f"{answer.images} images are skipped from now on: {answer.file}")


@app.command()
def erase(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="A run folder, a run's name, or digits of its batch digest.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    out: Annotated[str, typer.Option("--out", help="Folder below which runs lie.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """Remove a finished batch's images from the source, older versions too, and write the proof."""
    with answering():
        from launch.acts import carry_out, erasure_lines, find_run, plan_lines
        from launch.show import print_json
        from pipeline.errors import ConfigError, StorageError
        from pipeline.orders import EraseOrder, ErasurePlan
        from pipeline.records import Erasure

        folder = find_run(batch, out)
        plan = carry_out("erase", EraseOrder(folder=folder, do=False), ErasurePlan, to_stderr=as_json)
        if plan.locked:
            uri, _, date = plan.locked[0].rpartition(": ")
            raise StorageError(f"cannot erase before {date}: {uri}: held by the store's object lock", "come back after that date")
        for line in plan_lines(plan):
            print(line, file=sys.stderr if as_json else sys.stdout)
        if not yes and not sys.stdin.isatty():
            raise ConfigError("erase: nobody is there to ask", "add --yes")
        if not yes and not typer.confirm("Remove them for good?", err=as_json):
            print("nothing was touched", file=sys.stderr if as_json else sys.stdout)
            return
        proof = carry_out("erase", EraseOrder(folder=folder, do=True), Erasure, to_stderr=as_json)
        if as_json:
            print_json(proof)
            return
        for line in erasure_lines(proof, folder):
            print(line)


cli_verify.add_to(app)
cli_jobs.add_to(app)
cli_audit.add_to(app)
cli_requests.add_to(app)
cli_serve.add_to(app)
cli_ledger.add_to(app)
cli_release.add_to(app)
cli_keys.add_to(app)
cli_schedule.add_to(app)
cli_trace.add_to(app)


def main() -> None:
    """Entry point of the `unlearn` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end a run that succeeded.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
