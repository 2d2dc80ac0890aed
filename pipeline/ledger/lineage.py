"""From a request to the models that saw its images, and back: what runs leave in the ledger, and the questions asked of it.

Nothing here reads an image or an index. Which images a request means, only a run's own index says; see `pipeline.acts.trace`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa

from pipeline.ledger import history
from pipeline.ledger.deadlines import moment, time_text
from pipeline.ledger.schema import ALIAS, BATCH, BATCH_REQUEST, HISTORY, MODEL, MODEL_OBJECT, REQUEST, REQUEST_VALUE
from pipeline.ledger.store import Transaction
from pipeline.records import record

__all__ = [
    "SKIPPED",
    "Made",
    "Seen",
    "alias_history",
    "alias_lines",
    "aliases_of",
    "ancestry",
    "batches_of_requests",
    "descendants",
    "model_named",
    "models_of_batches",
    "models_that_saw",
    "objects_of",
    "record_made",
    "requests_naming",
    "requests_of_batches",
    "requests_of_subject",
    "runs",
    "skipped_before",
]

SKIPPED = "images skipped"
"""The event that a batch's tombstones are set."""
PIECE = 500
"""Values of one query; databases take some thousands at most."""


@record
class Seen:
    """A version of a shard that a model was `trained` on, or that it was made to forget. `version` is the store's own name for
    it, empty where it keeps none; `sha256` names the content."""

    uri: str
    version: str
    sha256: str
    role: Literal["trained", "forgotten"]


@record
class Made:
    """A model that a run made, or began with. `kind`: original, given, retrained, forgotten, certified or unlearned. `parent`:
    the model that it began as, None where it began from nothing."""

    model_id: str
    kind: str
    uri: str
    made_at: str
    verdict: str
    parent: str | None
    seen: tuple[Seen, ...]


def record_made(tx: Transaction, made: Sequence[Made], *, line: str, batch_id: str | None, folder: str) -> list[str]:
    """Write down the models that a run made, parents before children, and the shards that each saw. May be repeated.

    Args:
        tx: a transaction that writes.
        made: the models.
        line: their model line.
        batch_id: the batch that the run served; None: one that the ledger does not know.
        folder: the run folder.

    Returns:
        The models that were not known before.
    """
    known = _known(tx, [model_id for model in made for model_id in (model.model_id, model.parent) if model_id])
    new = []
    for model in made:
        if model.model_id in known:
            continue
        row: dict[str, Any] = {"model_id": model.model_id, "line": line, "batch_id": batch_id, "folder": folder, "uri": model.uri}
        made_at = time_text(moment(model.made_at, where="made_at")) if model.made_at else tx.now
        row |= {"made_at": made_at, "kept_until": None, "removed_at": None, "verdict": model.verdict}
        # A parent that was made elsewhere is no row that could be pointed at.
        row |= {"parent": model.parent if model.parent in known else None, "digests": {"kind": model.kind}}
        tx.execute(sa.insert(MODEL).values(row))
        seen = {(item.uri, item.version, item.role): item for item in model.seen}
        rows = [
            {"model_id": model.model_id, "uri": uri, "version": version, "role": role, "sha256": item.sha256}
            for (uri, version, role), item in seen.items()
        ]
        if rows:
            tx.execute(sa.insert(MODEL_OBJECT), rows)
        known.add(model.model_id)
        new.append(model.model_id)
    if new:
        told = {model.kind: model.model_id for model in made if model.model_id in new}
        history.append(tx, "run", folder, "models made", {"batch": batch_id, "models": told})
    return new


def _known(tx: Transaction, model_ids: Sequence[str]) -> set[str]:
    return set(tx.execute(sa.select(MODEL.c.model_id).where(tx.any_of(MODEL.c.model_id, model_ids))).scalars())


def requests_of_subject(tx: Transaction, subject: str) -> list[str]:
    """Names of the requests of a pseudonym, in order."""
    query = sa.select(REQUEST.c.request_id).where(REQUEST.c.subject == subject).order_by(REQUEST.c.request_id)
    return list(tx.execute(query).scalars())


def requests_naming(tx: Transaction, key: str) -> list[str]:
    """Names of the requests that name an image's key, or a beginning of it; what labels and digests mean, only an index says."""
    value, kind = REQUEST_VALUE.c.value, REQUEST.c.kind
    beginnings = [key[:length] for length in range(1, len(key) + 1)]
    named = sa.or_(sa.and_(kind == "keys", value == key), sa.and_(kind == "prefix", tx.any_of(value, beginnings)))
    query = sa.select(REQUEST.c.request_id).join(REQUEST_VALUE, REQUEST_VALUE.c.request_id == REQUEST.c.request_id)
    return sorted(set(tx.execute(query.where(named)).scalars()))


def batches_of_requests(tx: Transaction, requests: Collection[str]) -> list[dict[str, Any]]:
    """Request, outcome there, and the batch's row, for each batch that one of the requests was in, oldest first."""
    query = sa.select(BATCH_REQUEST.c.request_id, BATCH_REQUEST.c.outcome, BATCH).join(
        BATCH, BATCH.c.batch_id == BATCH_REQUEST.c.batch_id
    )
    query = query.where(tx.any_of(BATCH_REQUEST.c.request_id, requests))
    return _rows(tx, query.order_by(BATCH.c.batch_id, BATCH_REQUEST.c.request_id))


def requests_of_batches(tx: Transaction, batches: Collection[str]) -> list[dict[str, Any]]:
    """Batch, outcome there, and name, state and due date of each request of the batches, oldest batch first."""
    query = sa.select(BATCH_REQUEST.c.batch_id, BATCH_REQUEST.c.outcome, REQUEST.c.request_id, REQUEST.c.state, REQUEST.c.due_at)
    query = query.join(REQUEST, REQUEST.c.request_id == BATCH_REQUEST.c.request_id)
    query = query.where(tx.any_of(BATCH_REQUEST.c.batch_id, batches))
    return _rows(tx, query.order_by(BATCH_REQUEST.c.batch_id, REQUEST.c.request_id))


def runs(tx: Transaction, *, line: str = "", batches: Collection[str] | None = None) -> list[tuple[str, str]]:
    """Batch and run folder of all that have one, oldest first; of one line, or of some batches only."""
    query = sa.select(BATCH.c.batch_id, BATCH.c.folder).where(BATCH.c.folder != "").order_by(BATCH.c.batch_id)
    query = query.where(BATCH.c.line == line) if line else query
    query = query if batches is None else query.where(tx.any_of(BATCH.c.batch_id, batches))
    return [(row["batch_id"], row["folder"]) for row in _rows(tx, query)]


def skipped_before(tx: Transaction) -> dict[str, tuple[str, ...]]:
    """Run folder -> digests of the batches whose tombstones were set before that run first began."""
    first = sa.select(HISTORY.c.name, HISTORY.c.event, sa.func.min(HISTORY.c.seq).label("seq"))
    first = first.where(HISTORY.c.what == "batch", HISTORY.c.event.in_(("running", SKIPPED)))
    rows = _rows(tx, sa.select(BATCH.c.batch_id, BATCH.c.folder, BATCH.c.requests_digest).where(BATCH.c.folder != ""))
    known = {row["batch_id"]: row for row in rows}
    began, skipped = dict[str, int](), dict[str, int]()
    for row in _rows(tx, first.group_by(HISTORY.c.name, HISTORY.c.event)):
        (began if row["event"] == "running" else skipped)[row["name"]] = row["seq"]
    found = {}
    for name in began.keys() & known.keys():
        before = {known[other]["requests_digest"] for other, seq in skipped.items() if seq < began[name] and other != name}
        found[known[name]["folder"]] = tuple(sorted(before))
    return found


def models_of_batches(tx: Transaction, batches: Collection[str]) -> list[dict[str, Any]]:
    """The rows of the models that were made for the batches, oldest first."""
    query = sa.select(MODEL).where(tx.any_of(MODEL.c.batch_id, batches))
    return _rows(tx, query.order_by(MODEL.c.batch_id, MODEL.c.made_at, MODEL.c.model_id))


def model_named(tx: Transaction, text: str) -> list[dict[str, Any]]:
    """The models that a text means: a sha256 or at least 8 first digits of it, weights' URI, or a run or release folder."""
    short = len(text) >= 8 and all(digit in "0123456789abcdef" for digit in text)
    meant = MODEL.c.model_id.startswith(text) if short else sa.or_(MODEL.c.uri == text, MODEL.c.folder == text)
    return _rows(tx, sa.select(MODEL).where(meant).order_by(MODEL.c.made_at, MODEL.c.model_id))


def ancestry(tx: Transaction, model_id: str) -> list[dict[str, Any]]:
    """A model and those that it came from, itself first."""
    found: list[dict[str, Any]] = []
    following: str | None = model_id
    while following and following not in {row["model_id"] for row in found}:
        rows = _rows(tx, sa.select(MODEL).where(MODEL.c.model_id == following))
        found += rows
        following = rows[0]["parent"] if rows else None
    return found


def descendants(tx: Transaction, model_ids: Collection[str]) -> list[str]:
    """The models that came from one of these, without them."""
    known, newest = set(model_ids), list(model_ids)
    found: list[str] = []
    while newest:
        query = sa.select(MODEL.c.model_id).where(tx.any_of(MODEL.c.parent, newest)).order_by(MODEL.c.model_id)
        newest = [name for name in tx.execute(query).scalars() if name not in known]
        known.update(newest)
        found += newest
    return found


def objects_of(tx: Transaction, model_id: str) -> list[dict[str, Any]]:
    """The shards that a model saw: uri, version, sha256 and role, in order of their addresses."""
    query = sa.select(MODEL_OBJECT).where(MODEL_OBJECT.c.model_id == model_id)
    return _rows(tx, query.order_by(MODEL_OBJECT.c.uri, MODEL_OBJECT.c.version, MODEL_OBJECT.c.role))


def models_that_saw(tx: Transaction, shards: Iterable[tuple[str, str]], *, folder: str = "") -> list[dict[str, Any]]:
    """Model rows with the role in which each saw one of the shards, given as (uri, sha256); each model and role once.

    Args:
        tx: any transaction.
        shards: contents, wherever they were read.
        folder: only models that the run there made.
    """
    wanted = sorted(set(shards))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for start in range(0, len(wanted), PIECE):
        piece = wanted[start : start + PIECE]
        of = dict[str, set[str]]()
        for uri, sha256 in piece:
            of.setdefault(uri, set()).add(sha256)
        query = sa.select(MODEL_OBJECT.c.role, MODEL_OBJECT.c.uri.label("shard"), MODEL_OBJECT.c.sha256, MODEL)
        query = query.join(MODEL, MODEL.c.model_id == MODEL_OBJECT.c.model_id).where(tx.any_of(MODEL_OBJECT.c.uri, list(of)))
        query = query.where(MODEL.c.folder == folder) if folder else query
        for row in _rows(tx, query):
            if row["sha256"] in of[row.pop("shard")]:
                found.setdefault((row["model_id"], row["role"]), row)
    return sorted(found.values(), key=lambda row: (row["made_at"], row["model_id"], row["role"]))


def aliases_of(tx: Transaction, model_ids: Collection[str]) -> list[dict[str, Any]]:
    """Line, name and version of the aliases that name or named one of the models; `in_force` where it is the last version."""
    newest = sa.select(ALIAS.c.line, ALIAS.c.name, sa.func.max(ALIAS.c.version).label("newest"))
    last = newest.group_by(ALIAS.c.line, ALIAS.c.name).subquery()
    query = sa.select(ALIAS, last.c.newest).join(last, sa.and_(last.c.line == ALIAS.c.line, last.c.name == ALIAS.c.name))
    query = query.where(tx.any_of(ALIAS.c.model_id, model_ids)).order_by(ALIAS.c.line, ALIAS.c.name, ALIAS.c.version)
    return [{**row, "in_force": row.pop("newest") == row["version"]} for row in _rows(tx, query)]


def alias_history(tx: Transaction, line: str, name: str) -> list[Mapping[str, Any]]:
    """All versions of an alias, the one in force last; empty where there is none of this name."""
    query = sa.select(ALIAS).where(ALIAS.c.line == line, ALIAS.c.name == name)
    return list(_rows(tx, query.order_by(ALIAS.c.version)))


def alias_lines(tx: Transaction, name: str) -> list[str]:
    """The model lines that have an alias of this name."""
    query = sa.select(ALIAS.c.line).where(ALIAS.c.name == name).distinct().order_by(ALIAS.c.line)
    return list(tx.execute(query).scalars())


def _rows(tx: Transaction, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in tx.execute(query).mappings()]
