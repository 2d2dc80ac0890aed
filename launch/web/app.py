"""The server's addresses: each reads the ledger or a run folder anew and renders one page; none writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from launch.signals.emit import DEFAULT_OUTBOX, LAST_TICK
from launch.signals.measures import CONTENT_TYPE, exposition, samples
from launch.signals.outbox import read_mark
from launch.web import runs
from launch.web.guard import App, Guard
from launch.web.pages import HERE, render, server_link
from launch.web.progress import as_json
from launch.web.queue import Search
from launch.web.site import Site
from pipeline.addresses import join
from pipeline.errors import UnlearnError
from pipeline.storage import exists, read_bytes

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["create_app", "metrics_text", "read_only"]

REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; base-uri 'none'; frame-ancestors 'none'"
"""A report brings its style inside itself, and runs nothing."""


def read_only(ledger: Ledger) -> None:
    """Let the database refuse to write by this ledger's connections."""

    def settle(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    if ledger.engine.dialect.name == "sqlite":  # PostgreSQL's read transactions say so themselves
        sa.event.listen(ledger.engine, "connect", settle)


def metrics_text(ledger: Ledger, outbox: str = "") -> str:
    """The ledger's metrics for Prometheus; `outbox` names the file in which a scheduler notes its last round."""
    with ledger.read() as tx:
        return exposition(list(samples(tx, last_tick=read_mark(outbox or DEFAULT_OUTBOX, LAST_TICK))))


def create_app(
    ledger: Ledger, *, runs_at: str = "runs", releases_at: str = "", token: str = "", names: frozenset[str], outbox: str = ""
) -> App:
    """The application, guarded.

    Args:
        ledger: open; it is made read only.
        runs_at: folder or URI below which runs lie.
        releases_at: folder or URI below which model lines' releases lie; empty: only the ledger's word.
        token: that readers must bring; empty: none.
        names: host names that the page is reached by.
        outbox: file in which a scheduler notes its last round.
    """
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException

    read_only(ledger)
    site = Site(ledger, runs=runs_at, releases=releases_at)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/static", StaticFiles(directory=HERE / "static"))

    def show(template: str, make: Callable[[], dict[str, Any]]) -> HTMLResponse:
        return HTMLResponse(render(template, make(), link=server_link, static=False, now=site.now()))

    def fault(title: str, words: str, status: int) -> HTMLResponse:
        context = {"title": title, "words": words}
        return HTMLResponse(render("fault", context, link=server_link, static=False, now=""), status_code=status)

    @app.exception_handler(UnlearnError)
    def refused(_request: Any, error: UnlearnError) -> Response:
        return fault(error.message, error.cure, 503 if error.exit_code == 3 else 404)

    @app.exception_handler(HTTPException)
    def missing(_request: Any, error: HTTPException) -> Response:
        return fault("There is no such page" if error.status_code == 404 else "That cannot be done", "", error.status_code)

    @app.get("/")
    def queue(
        q: str = "", line: str = "", state: str = "open", kind: str = "", batch: str = "", due: str = "", page: str = "1"
    ) -> Response:
        asked = Search(q=q.strip(), line=line, state=state, kind=kind, batch=batch.strip(), due=due, page=_number(page))
        return show("queue", lambda: site.queue(asked, server_link))

    @app.get("/queue")
    def queue_too() -> Response:
        return RedirectResponse("/", status_code=308)

    @app.get("/requests/{name}")
    def request(name: str) -> Response:
        return show("request", lambda: site.request(name))

    @app.get("/batches")
    def batches(state: str = "", page: str = "1") -> Response:
        return show("batches", lambda: site.batches(server_link, state=state, page=_number(page)))

    @app.get("/batches/{name}")
    def batch(name: str, page: str = "1") -> Response:
        return show("batch", lambda: site.batch(name, server_link, page=_number(page)))

    @app.get("/runs")
    def all_runs(page: str = "1") -> Response:
        return show("runs", lambda: site.runs(server_link, page=_number(page)))

    @app.get("/runs/{name}")
    def run(name: str) -> Response:
        return show("run", lambda: site.run(name, server_link))

    @app.get("/progress/{name}")
    def progress(name: str) -> Response:
        return JSONResponse(as_json(runs.progress(name, site.folder(name))))

    @app.get("/report/{name}")
    def report(name: str) -> Response:
        uri = join(site.folder(name), "report.html")
        if not exists(uri):
            raise HTTPException(404)
        return HTMLResponse(read_bytes(uri), headers={"content-security-policy": REPORT_POLICY})

    @app.get("/grid/{name}")
    def grid(name: str, file: str = "") -> Response:
        folder = site.folder(name)
        if file not in runs.grids(folder):
            raise HTTPException(404)
        return Response(read_bytes(join(folder, "evaluation", file)), media_type="image/png")

    @app.get("/releases")
    def releases() -> Response:
        return show("releases", site.releases)

    @app.get("/trace")
    def trace(q: str = "") -> Response:
        return show("trace", lambda: site.trace(q))

    @app.get("/cost")
    def cost(page: str = "1") -> Response:
        return show("cost", lambda: site.cost(server_link, page=_number(page)))

    @app.get("/history")
    def history(before: str = "0") -> Response:
        return show("history", lambda: site.history(server_link, before=_number(before, 0)))

    @app.get("/metrics")
    def metrics() -> Response:
        return PlainTextResponse(metrics_text(ledger, outbox), media_type=CONTENT_TYPE)

    def login(wrong: bool) -> str:
        return render("login", {"wrong": wrong, "navigation": ()}, link=server_link, static=False, now=site.now())

    return Guard(app, token=token, names=names, login=login)


def _number(text: str, otherwise: int = 1) -> int:
    """A number of an address; nonsense is the first page."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise
