"""The commands that show what a ledger holds: serve, pages, metrics. What they need is imported inside them."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.answering import AsJson, LedgerUrl, answering

__all__ = ["add_to", "metrics", "pages", "serve"]

Runs = Annotated[str, typer.Option("--runs", metavar="URI", help="Folder or URI below which runs lie.")]
Releases = Annotated[
    str, typer.Option("--releases", metavar="URI", help="Where releases lie, to compare aliases with the ledger's.")
]
OutboxFile = Annotated[
    str,
    typer.Option(
        "--outbox", metavar="FILE", envvar="UNLEARN_OUTBOX", show_default=False, help="Where a scheduler notes its rounds."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    app.command()(serve)
    app.command()(pages)
    app.command()(metrics)


def serve(
    ledger: LedgerUrl = "",
    runs: Runs = "runs",
    releases: Releases = "",
    host: Annotated[str, typer.Option("--host", help="Address to bind; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8377,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A host name that the page is reached by, beside this host's; repeatable.")
    ] = None,
    token_file: Annotated[
        str, typer.Option("--token-file", metavar="FILE", help="Holds the token that readers must bring; or UNLEARN_SERVE_TOKEN.")
    ] = "",
    outbox: OutboxFile = "",
) -> None:
    """Show queue, batches, runs, releases, lineage and cost in a browser; read only."""
    with answering():
        import os

        from launch.web.guard import read_token
        from launch.web.serving import own_names, run_server
        from pipeline.ledger.store import open_ledger

        token = read_token(token_file, os.environ.get("UNLEARN_SERVE_TOKEN", ""), host)
        with open_ledger(ledger, create=False) as opened:
            told = {"runs_at": runs, "releases_at": releases, "token": token, "outbox": outbox}
            run_server(opened, host=host, port=port, names=own_names(host, name or []), say=print, **told)


def pages(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new or empty folder, or one that pages were written to before.")],
    ledger: LedgerUrl = "",
    runs: Runs = "runs",
    releases: Releases = "",
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Reports and picture grids, too: they show images to be forgotten.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write the same pages as files, which need no server."""
    with answering():
        from launch.show import print_json
        from launch.web.app import read_only
        from launch.web.export import export
        from launch.web.site import Site
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False) as opened:
            read_only(opened)
            files = export(Site(opened, runs=runs, releases=releases), out, pictures=pictures)
        if as_json:
            print_json({"folder": out, "files": files, "pictures": pictures})
            return
        print(f"{files} files: {out}/index.html")


def metrics(ledger: LedgerUrl = "", outbox: OutboxFile = "") -> None:
    """Print the ledger's metrics as Prometheus reads them."""
    with answering():
        from launch.web.app import metrics_text, read_only
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False) as opened:
            read_only(opened)
            print(metrics_text(opened, outbox), end="")
