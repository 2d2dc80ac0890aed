"""Batches, single requests, releases and history for people, without bases, notes, reasons and other free texts of persons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from launch.signals.fields import FIELDS, WITHHELD
from launch.web.queue import COLUMNS, marked
from launch.web.words import clock
from pipeline.ledger import batches, history
from pipeline.ledger.requests import show
from pipeline.ledger.schema import ALIAS, BATCH, BATCH_REQUEST, HISTORY, MODEL, REQUEST
from pipeline.ledger.states import BATCH_MOVES
from pipeline.ledger.store import Transaction

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = [
    "PAGE",
    "TOLD",
    "all_batches",
    "batch_folders",
    "batches_by_run",
    "check_chain",
    "entry_view",
    "in_force",
    "model_view",
    "one_batch",
    "one_request",
    "past",
    "releases",
]

PAGE = 100
ENTRIES_SHOWN = 200
CHECKED_AT_ONCE = 50_000
"""A longer history is recomputed by `unlearn ledger check` only: it would keep the reader waiting."""
TOLD: Mapping[str, str] = {
    "was": "was",
    "line": "line",
    "kind": "kind",
    "requests_count": "requests",
    "values_count": "values",
    "state": "state",
    "due_at": "due",
    "attempts": "attempt",
    "repeats": "repeats",
    "batch": "batch",
    "model": "model",
    "version": "version",
    "number": "number",
    "verdict": "verdict",
    "act": "act",
    "approved": "approved",
    "files": "files",
    "weights": "weights",
    "new": "new",
    "folded": "folded",
    "rows": "rows",
    "requests_digest": "digest",
    "key_id": "pseudonym key",
    "parent": "parent",
    "owner": "worker",
    "until": "until",
}
"""What is shown of an entry's detail; reasons and bases are texts of persons and stay in the ledger."""
BATCH_SHOWN = tuple(column for column in BATCH.c if column.name != "jobs")


def entry_view(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the history as it is shown."""
    try:
        detail = json.loads(entry["detail"])
    except (TypeError, ValueError):
        detail = {}
    detail = detail if isinstance(detail, dict) else {}
    said = [(TOLD[name], detail[name]) for name in TOLD if isinstance(detail.get(name), (str, int, float))]
    facts = [(name, _shown(name, str(value))) for name, value in said if value != ""]
    return {**{name: entry[name] for name in ("seq", "at", "actor", "what", "name", "event", "hash")}, "facts": facts}


def _shown(name: str, text: str) -> str:
    if name in ("due", "until"):
        return clock(text)
    return f"{text[:12]}…" if len(text) == 64 else text


def in_force(tx: Transaction) -> dict[str, list[str]]:
    """Models that aliases name now, and the aliases of each."""
    newest = sa.select(ALIAS.c.line, ALIAS.c.name, sa.func.max(ALIAS.c.version).label("version")).group_by(
        ALIAS.c.line, ALIAS.c.name
    )
    last = newest.subquery()
    same = sa.and_(*(ALIAS.c[key] == last.c[key] for key in ("line", "name", "version")))
    found: dict[str, list[str]] = {}
    rows: Any = tx.execute(sa.select(ALIAS.c.model_id, ALIAS.c.name).join(last, same).order_by(ALIAS.c.name))
    for model_id, name in rows:
        found.setdefault(str(model_id), []).append(str(name))
    return found


def all_batches(tx: Transaction, *, state: str = "", page: int = 1) -> dict[str, Any]:
    """One page of batches, newest first, and how many there are in each state."""
    rows: Any = tx.execute(sa.select(BATCH.c.state, sa.func.count()).group_by(BATCH.c.state))
    found = {str(name): int(number) for name, number in rows}
    by_state = {name: found[name] for name in BATCH_MOVES if name in found}
    total = by_state.get(state, 0) if state in BATCH_MOVES else sum(by_state.values())
    pages = max(1, -(-total // PAGE))
    page = min(max(1, page), pages)
    query = sa.select(*BATCH_SHOWN).order_by(BATCH.c.batch_id.desc()).limit(PAGE).offset((page - 1) * PAGE)
    query = query.where(BATCH.c.state == state) if state in BATCH_MOVES else query
    shown = [_batch(dict(row), tx.now) for row in tx.execute(query).mappings()]
    return {"rows": shown, "total": total, "page": page, "pages": pages, "state": state, "by_state": by_state}


def _batch(row: dict[str, Any], now: str) -> dict[str, Any]:
    """A batch's row with what its lease and due date mean now."""
    over = row["state"] in ("released", "moved_on", "rolled_back", "withdrawn")
    live = bool(row["lease_owner"]) and (row["lease_until"] or "") > now and not over
    lease = "live" if live else "run out" if row["lease_owner"] and row["state"] in ("running", "evaluated") else ""
    failure = row["failure"] if not row["failure"] or FIELDS["failure"](row["failure"]) else WITHHELD
    late = not over and row["due_at"] != "" and row["due_at"] < now
    return {
        **row,
        "failure": failure,
        "lease": lease,
        "due": "overdue" if late else "",
        "run": row["folder"].rstrip("/").rsplit("/", 1)[-1],
    }


def batch_folders(tx: Transaction) -> dict[str, str]:
    """Run folders that batches have: the folder's own name, and where it lies."""
    query = sa.select(BATCH.c.folder).where(BATCH.c.folder != "")
    return {folder.rstrip("/").rsplit("/", 1)[-1]: folder.rstrip("/") for folder in map(str, tx.execute(query).scalars())}


def batches_by_run(tx: Transaction) -> dict[str, str]:
    """Names of run folders that batches have, and the batch of each."""
    rows: Any = tx.execute(sa.select(BATCH.c.folder, BATCH.c.batch_id).where(BATCH.c.folder != "").order_by(BATCH.c.batch_id))
    return {str(folder).rstrip("/").rsplit("/", 1)[-1]: str(batch_id) for folder, batch_id in rows}


def one_batch(tx: Transaction, batch_id: str, *, page: int = 1) -> dict[str, Any]:
    """A batch, one page of its requests with their outcomes, and its history. Raises ConfigError for an unknown name."""
    row = _batch({k: v for k, v in batches.find(tx, batch_id).items() if k != "jobs"}, tx.now)
    members = BATCH_REQUEST.c.batch_id == batch_id
    counted: Any = tx.execute(
        sa.select(BATCH_REQUEST.c.outcome, sa.func.count()).where(members).group_by(BATCH_REQUEST.c.outcome)
    )
    outcomes = {str(outcome): int(number) for outcome, number in counted}
    pages = max(1, -(-sum(outcomes.values()) // PAGE))
    page = min(max(1, page), pages)
    query = sa.select(*COLUMNS, BATCH_REQUEST.c.outcome).join(BATCH_REQUEST, BATCH_REQUEST.c.request_id == REQUEST.c.request_id)
    query = query.where(members).order_by(REQUEST.c.due_at, REQUEST.c.request_id).limit(PAGE).offset((page - 1) * PAGE)
    rows = [marked(dict(found), tx.now) for found in tx.execute(query).mappings()]
    told = [entry_view(entry) for entry in history.entries(tx, "batch", batch_id, limit=ENTRIES_SHOWN)]
    made = sa.select(MODEL).where(MODEL.c.batch_id == batch_id).order_by(MODEL.c.made_at)
    named = in_force(tx)
    models = [model_view(dict(model), named) for model in tx.execute(made).mappings()]
    return {"batch": row, "outcomes": outcomes, "rows": rows, "page": page, "pages": pages, "history": told, "models": models}


def one_request(tx: Transaction, request_id: str) -> dict[str, Any]:
    """A request with its batches and history. Raises ConfigError for an unknown name."""
    found = show(tx, request_id)
    shown = {column.name: found[column.name] for column in COLUMNS}
    pseudonym = str(found["subject"])
    return {
        "request": {**marked(shown, tx.now), "copies": found["copies"], "pseudonym": f"{pseudonym[:10]}…" if pseudonym else ""},
        "batches": found["batches"],
        "history": [entry_view(entry) for entry in found["history"][:ENTRIES_SHOWN]],
    }


def releases(tx: Transaction) -> dict[str, Any]:
    """Aliases with the model that each names now, their changes, and the models, newest first."""
    query = sa.select(ALIAS, MODEL.c.verdict, MODEL.c.batch_id, MODEL.c.removed_at, MODEL.c.folder)
    query = query.join(MODEL, MODEL.c.model_id == ALIAS.c.model_id).order_by(ALIAS.c.line, ALIAS.c.name, ALIAS.c.version)
    changes = [{name: value for name, value in row.items() if name != "reason"} for row in tx.execute(query).mappings()]
    now = {(row["line"], row["name"]): row for row in changes}
    models = tx.execute(sa.select(MODEL).order_by(MODEL.c.made_at.desc(), MODEL.c.model_id).limit(PAGE)).mappings()
    named = in_force(tx)
    shown = [model_view(dict(row), named) for row in models]
    return {"aliases": list(now.values()), "changes": changes[::-1][:PAGE], "models": shown}


def model_view(row: Mapping[str, Any], named: Mapping[str, list[str]]) -> dict[str, Any]:
    """A model's row as it is shown, with the aliases that name it now; `kind` is empty for what was only released.

    Args:
        row: of the table.
        named: as `in_force` has them.
    """
    shown = {name: row[name] for name in ("model_id", "line", "batch_id", "made_at", "verdict", "removed_at")}
    kind = row["digests"].get("kind", "") if isinstance(row["digests"], dict) else ""
    run = str(row["folder"]).rstrip("/").rsplit("/", 1)[-1]
    return {**shown, "kind": str(kind), "run": run, "aliases": named.get(row["model_id"], [])}


def past(tx: Transaction, *, before: int = 0) -> dict[str, Any]:
    """Entries of the history, newest first, a page of them older than the entry `before`; 0: the newest."""
    query = sa.select(HISTORY).order_by(HISTORY.c.seq.desc()).limit(PAGE)
    query = query.where(HISTORY.c.seq < before) if before > 0 else query
    rows = [entry_view(dict(row)) for row in tx.execute(query).mappings()]
    older = rows[-1]["seq"] if rows and rows[-1]["seq"] > 1 else 0
    return {"rows": rows, "older": older, "before": before, "seq": tx.seq, "hash": tx.hash}


def check_chain(ledger: Ledger, entries: int) -> dict[str, Any]:
    """Whether the history's chain of hashes holds: `checked`, and what is wrong with it.

    Args:
        ledger: whose.
        entries: how many there are.
    """
    if entries > CHECKED_AT_ONCE:
        return {"checked": False, "faults": []}
    return {"checked": True, "faults": [fault.text for fault in history.check(ledger)]}
