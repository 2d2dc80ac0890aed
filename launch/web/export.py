"""The pages as files beside each other, for a share or an archive: rendered by the templates of the server, read without one."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.web.pages import HERE, file_link, file_name, render
from launch.web.queue import Found, Search, figures, rows_of
from launch.web.site import Site
from launch.web.trace import family
from pipeline.addresses import join
from pipeline.errors import ConfigError, StorageError
from pipeline.ledger.requests import KINDS
from pipeline.ledger.states import REQUEST_MOVES
from pipeline.ledger.store import Transaction
from pipeline.storage import read_bytes

__all__ = ["INDEXED", "LIST", "SHARD", "export"]

SHARD = 200
"""Requests of one file of the list."""
INDEXED = 100_000
"""So many requests, open ones first, are searched in a browser; more would keep it waiting."""
LIST = "pages.json"
"""Names the files of an export, so that the next one removes what it has no more."""
INDEX_COLUMNS = ("request_id", "line", "kind", "values_count", "received_at", "due_at", "state", "batch_id", "due")


class _Folder:
    """Where the files go; notes their names."""

    def __init__(self, out: str) -> None:
        self.path = Path(out)
        self.names: list[str] = []
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            old = json.loads((self.path / LIST).read_text()) if (self.path / LIST).exists() else None
            if old is None and any(self.path.iterdir()):
                raise ConfigError(f"{out}: a folder with other files", "name an empty folder, or one that pages were written to")
        except (OSError, ValueError) as fault:
            raise StorageError(f"{out}: no folder to write to ({type(fault).__name__})", "name another folder") from None
        self._old = [str(name) for name in old or () if "/" not in str(name)]

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file whole: a reader meanwhile sees the old one."""
        data = content.encode() if isinstance(content, str) else content
        part = self.path / f".{name}.part"
        try:
            part.write_bytes(data)
            os.replace(part, self.path / name)
        except OSError as fault:
            raise StorageError(f"{self.path / name}: {fault.strerror}", "free space, or name another folder") from None
        self.names.append(name)

    def close(self) -> None:
        """Remove what an earlier export left and this one has not; note the names of all files."""
        for name in set(self._old) - set(self.names) - {LIST}:
            (self.path / name).unlink(missing_ok=True)
        self.write(LIST, json.dumps(sorted(self.names)) + "\n")


def export(site: Site, out: str, *, pictures: bool = True) -> int:
    """Write all pages into a folder.

    Args:
        site: what is shown.
        out: folder; made for its owner alone.
        pictures: reports and picture grids, too: they hold images that someone asked to have forgotten.

    Returns:
        How many files were written.

    Raises:
        ConfigError: the folder holds other files.
        StorageError: it cannot be written to, or a run folder not be read.
    """
    folder, now = _Folder(out), site.now()
    link = functools.partial(file_link, pictures=pictures)

    def put(template: str, context: Mapping[str, Any], name: str) -> None:
        folder.write(name, render(template, context, link=link, static=True, now=now))

    with site.ledger.read() as tx:
        _put_queue(tx, put, folder)
    for context in _paged(functools.partial(site.batches, link)):
        put("batches", context, file_name("batches", number=context["page_number"]))
    for name in _batches(site):
        for context in _paged(functools.partial(site.batch, name, link)):
            put("batch", context, file_name("batches", name, context["page_number"]))
    for context in _paged(functools.partial(site.runs, link)):
        put("runs", context, file_name("runs", number=context["page_number"]))
    for context in _paged(functools.partial(site.cost, link)):
        put("cost", context, file_name("cost", number=context["page_number"]))
    for name in site.folders():
        context = site.run(name, link)
        put("run", context, file_name("runs", name))
        if pictures and context["run"]["page"]:
            folder.write(file_name("report", name), read_bytes(join(context["run"]["folder"], "report.html")))
        for grid in context["run"]["grids"] if pictures else ():
            target = f"{file_name('grid', name).removesuffix('.html')}-{grid}"
            folder.write(target, read_bytes(join(context["run"]["folder"], "evaluation", grid)))
    put("releases", site.releases(), file_name("releases"))
    put("trace", site.trace(""), file_name("trace"))
    with site.ledger.read() as tx:
        folder.write("lineage.js", f"globalThis.unlearnLineage = {json.dumps(family(tx, INDEXED))};\n")
    put("history", site.history(link), file_name("history"))
    for asset in ("page.css", "parts.js", "files.js", "trace.js"):
        folder.write(asset, (HERE / "static" / asset).read_bytes())
    folder.close()
    return len(folder.names)


def _paged(make: Any) -> Iterator[Mapping[str, Any]]:
    """The contexts of all pages of a list."""
    number, pages = 1, 1
    while number <= pages:
        context = make(page=number)
        pages = context["page_count"]
        yield context
        number += 1


def _batches(site: Site) -> list[str]:
    names: list[str] = []
    for context in _paged(functools.partial(site.batches, file_link)):
        names += [row["batch_id"] for row in context["rows"]]
    return names


def _all(tx: Transaction) -> Iterator[dict[str, Any]]:
    """All requests, open ones first, each kind by due date."""
    for is_open in (True, False):
        after = ("", "")
        while rows := rows_of(tx, is_open=is_open, after=after):
            yield from rows
            after = (rows[-1]["due_at"], rows[-1]["request_id"])


def _put_queue(tx: Transaction, put: Any, folder: _Folder) -> None:
    """The list of requests, in files of `SHARD`, and the index that a script searches."""
    head, indexed, shard, number = figures(tx), list[list[Any]](), list[dict[str, Any]](), 1
    pages = max(1, -(-head["total"] // SHARD))
    common = {
        "figures": head, "states": list(REQUEST_MOVES), "kinds": KINDS, "order": "open ones by due date, then the others",
        "address": lambda page: file_link("queue", page=page),
    }  # fmt: skip

    def flush() -> None:
        asked = Search(state="all", page=number)
        found = Found(search=asked, rows=tuple(shard), total=head["total"], pages=pages, size=SHARD)
        put("queue", {**common, "found": found}, file_name("queue", number=number))

    for row in _all(tx):
        if len(shard) == SHARD:
            flush()
            number, shard = number + 1, []
        shard.append(row)
        if len(indexed) < INDEXED:
            indexed.append([row[name] for name in INDEX_COLUMNS])
    flush()
    batches = sorted({row[INDEX_COLUMNS.index("batch_id")] for row in indexed} - {None})
    addresses = {name: file_link("batches", name) for name in batches}
    index = {"columns": INDEX_COLUMNS, "rows": indexed, "batches": addresses, "total": head["total"]}
    folder.write("index.js", f"globalThis.unlearnRequests = {json.dumps(index)};\n")
