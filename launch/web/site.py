"""What each page shows, for the server and for files alike: the ledger's rows and the run folders put together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launch.web import queue, runs, views
from launch.web.pages import Link
from launch.web.progress import texts_of
from launch.web.trace import trace
from pipeline.addresses import absolute, join
from pipeline.errors import ConfigError, UnlearnError
from pipeline.ledger.requests import KINDS
from pipeline.ledger.states import REQUEST_MOVES
from pipeline.storage import exists, read_bytes

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["RUNS_PAGE", "Site"]

RUNS_PAGE = 25
Context = dict[str, Any]
Address = Callable[[int], str]


class Site:
    """All pages of a ledger and the runs and releases beside it.

    Args:
        ledger: read only.
        runs: folder or URI below which runs lie.
        releases: folder or URI below which model lines' releases lie; empty: they are not looked at.
    """

    def __init__(self, ledger: Ledger, *, runs: str = "runs", releases: str = "") -> None:
        self.ledger, self.runs_at, self.releases_at = ledger, runs, releases
        self._seen: set[str] = set()

    def now(self) -> str:
        """The time that due dates are seen from."""
        return self.ledger.now()

    def folders(self) -> dict[str, str]:
        """Names of all runs that are known, and where each lies."""
        with self.ledger.read() as tx:
            noted = views.batch_folders(tx)
        return runs.run_folders(self.runs_at, noted, self._seen)

    def queue(self, asked: queue.Search, link: Link) -> Context:
        """The requests that a search asks for, and the figures above them."""
        with self.ledger.read() as tx:
            found, figures = queue.search(tx, asked), queue.figures(tx)
        latest = found.search.state not in ("open", *(set(REQUEST_MOVES) - {"released", "withdrawn", "refused"}))
        return {
            "found": found,
            "figures": figures,
            "states": list(REQUEST_MOVES),
            "kinds": KINDS,
            "order": "latest due date first" if latest else "nearest due date first",
            "address": lambda page: link("queue", **found.search.as_query(page=page)),
        }

    def request(self, name: str) -> Context:
        """One request. Raises ConfigError for an unknown name."""
        with self.ledger.read() as tx:
            return views.one_request(tx, name)

    def batches(self, link: Link, *, state: str = "", page: int = 1) -> Context:
        """One page of batches."""
        with self.ledger.read() as tx:
            found = views.all_batches(tx, state=state, page=page)
        at_work = sum(found["by_state"].get(name, 0) for name in ("running", "evaluated"))
        shown = {"rows": found["rows"], "total": found["total"], "by_state": found["by_state"], "at_work": at_work}
        paged = _paged(found, lambda number: link("batches", state=state, page=number))
        return {**shown, "shown_state": found["state"], "runs": self.folders(), **paged}

    def batch(self, name: str, link: Link, *, page: int = 1) -> Context:
        """One batch. Raises ConfigError for an unknown name."""
        with self.ledger.read() as tx:
            found = views.one_batch(tx, name, page=page)
        shown = {key: found[key] for key in ("batch", "outcomes", "rows", "history")}
        return {
            **shown,
            "models_made": found["models"],
            "runs": self.folders(),
            **_paged(found, lambda n: link("batches", name, page=n)),
        }

    def _some_runs(self, page: int, size: int) -> tuple[list[Context], dict[str, Any]]:
        folders, batches = self.folders(), self._batch_of()
        names = sorted(folders, key=lambda name: (batches.get(name, ""), name), reverse=True)
        pages = max(1, -(-len(names) // size))
        page = min(max(1, page), pages)
        rows = [runs.summary(name, folders[name]) for name in names[(page - 1) * size : page * size]]
        return rows, {"total": len(names), "page": page, "pages": pages}

    def _batch_of(self) -> dict[str, str]:
        """Run names of batches, and the batch's own name."""
        with self.ledger.read() as tx:
            return views.batches_by_run(tx)

    def runs(self, link: Link, *, page: int = 1) -> Context:
        """One page of runs, those of the latest batches first."""
        rows, found = self._some_runs(page, RUNS_PAGE)
        at_work = sum(row["state"] == "running" for row in rows)
        facts = {"rows": rows, "total": found["total"], "at_work": at_work, "place": absolute(self.runs_at)}
        return {**facts, **_paged(found, lambda n: link("runs", page=n))}

    def folder(self, name: str) -> str:
        """Where a run lies. Raises ConfigError where none is called so."""
        folders = self.folders()
        if name not in folders:
            raise ConfigError("no run is called so", "the list of runs shows their names")
        return folders[name]

    def run(self, name: str, link: Link) -> Context:
        """One run, how far it is, and its pictures. Raises ConfigError where none is called so."""
        folder = self.folder(name)
        found = runs.progress(name, folder)
        pictures = [(_grid_title(grid), address) for grid in found["grids"] if (address := link("grid", f"{name}", file=grid))]
        return {"run": found, "texts": texts_of(found), "pictures": pictures, "batch_id": self._batch_of().get(name, "")}

    def releases(self) -> Context:
        """Aliases, their changes, and models."""
        with self.ledger.read() as tx:
            found = views.releases(tx)
        stored = None if not self.releases_at else {(row["line"], row["name"]): self._stored(row) for row in found["aliases"]}
        return {"aliases": found["aliases"], "changes": found["changes"], "models_known": found["models"], "stored": stored}

    def _stored(self, row: Mapping[str, Any]) -> str | None:
        """The model that an alias names on storage; None: it is not there, or cannot be read."""
        try:
            uri = join(absolute(self.releases_at), str(row["line"]), "aliases", f"{row['name']}.json")
            found = json.loads(read_bytes(uri)) if exists(uri) else None
        except (UnlearnError, ValueError):
            return None
        return str(found["weights"]) if isinstance(found, dict) and "weights" in found else None

    def trace(self, asked: str) -> Context:
        """What shaped a model, or came after a request."""
        with self.ledger.read() as tx:
            found = trace(tx, asked)
        return {"found": found, "asked": asked, "runs": self.folders() if found["kind"] == "model" else {}}

    def cost(self, link: Link, *, page: int = 1) -> Context:
        """What the runs of one page cost, beside retraining."""
        rows, found = self._some_runs(page, RUNS_PAGE)
        shares = [row["cost"]["share"] for row in rows if row["cost"]["share"] is not None]
        middle = statistics.median(shares) if shares else None
        return {"rows": rows, "middle": middle, "known": len(shares), **_paged(found, lambda n: link("cost", page=n))}

    def history(self, link: Link, *, before: int = 0) -> Context:
        """One page of the history, and whether its chain holds."""
        with self.ledger.read() as tx:
            found = views.past(tx, before=before)
        chain = views.check_chain(self.ledger, found["seq"])
        older = link("history", before=found["older"]) if found["older"] else ""
        newer = link("history") if before else ""
        facts = {name: found[name] for name in ("rows", "seq", "hash")}
        return {**facts, "chain": chain, "older_address": older, "newer": newer}


def _paged(found: Mapping[str, Any], address: Address) -> dict[str, Any]:
    return {"page_number": found["page"], "page_count": found["pages"], "address": address}


def _grid_title(name: str) -> str:
    number = name.removeprefix("grid_").removesuffix(".png")
    return "Kept" if number == "retain" else f"Forgotten, group {int(number) + 1}"
