"""The search from a model to the requests that shaped it, and from a request to the models that come after it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from launch.web.views import in_force, model_view
from pipeline.ledger import lineage
from pipeline.ledger.requests import find
from pipeline.ledger.schema import BATCH_REQUEST, MODEL
from pipeline.ledger.store import Transaction

__all__ = ["SHOWN", "family", "trace"]

SHOWN = 200


def trace(tx: Transaction, text: str) -> dict[str, Any]:
    """What the ledger knows of a model or request.

    Args:
        tx: any transaction.
        text: a request's name, or a model's sha256 or at least 8 digits of it.

    Returns:
        `kind`: request, model, several, nothing, or empty where nothing was asked; and what belongs to it.
    """
    text = text.strip()
    if not text:
        return {"kind": ""}
    if find(tx, text) is not None:
        return _of_request(tx, text)
    models = lineage.model_named(tx, text.lower())
    if len(models) == 1:
        return _of_model(tx, models[0])
    return {"kind": "several", "models": models[:SHOWN]} if models else {"kind": "nothing"}


def _of_request(tx: Transaction, name: str) -> dict[str, Any]:
    batches = lineage.batches_of_requests(tx, [name])
    # A batch that failed made no model that forgot; one whose release was rolled back did.
    made = lineage.models_of_batches(tx, [row["batch_id"] for row in batches])
    after = lineage.descendants(tx, [row["model_id"] for row in made])
    rows = [*made, *(row for model in after for row in lineage.ancestry(tx, model)[:1])]
    return {"kind": "request", "request_id": name, "batches": batches, "models": _named(tx, rows)}


def _of_model(tx: Transaction, model: dict[str, Any]) -> dict[str, Any]:
    line = lineage.ancestry(tx, model["model_id"])
    batches = [row["batch_id"] for row in line if row["batch_id"]]
    requests = lineage.requests_of_batches(tx, batches)
    objects = lineage.objects_of(tx, model["model_id"])
    roles = {role: sum(row["role"] == role for row in objects) for role in ("trained", "forgotten")}
    return {
        "kind": "model",
        "model": _named(tx, [model])[0],
        "ancestry": _named(tx, line[1:]),
        "requests": requests[:SHOWN],
        "requests_count": len(requests),
        "objects": objects[:SHOWN],
        "objects_count": len(objects),
        "roles": roles,
    }


def family(tx: Transaction, most: int) -> dict[str, Any]:
    """All models and which requests were in which batch with which outcome, for a search without a server.

    Args:
        tx: any transaction.
        most: so many pairs of request and batch, the latest first.
    """
    models = [dict(row) for row in tx.execute(sa.select(MODEL).order_by(MODEL.c.made_at, MODEL.c.model_id)).mappings()]
    parents = {row["model_id"]: row["parent"] for row in models}
    columns = (BATCH_REQUEST.c.batch_id, BATCH_REQUEST.c.request_id, BATCH_REQUEST.c.outcome)
    pairs = sa.select(*columns).order_by(BATCH_REQUEST.c.batch_id.desc(), BATCH_REQUEST.c.request_id).limit(most)
    shown = [{**row, "parent": parents[row["model_id"]]} for row in _named(tx, models)]
    return {"models": shown, "members": [list(row) for row in tx.execute(pairs)]}


def _named(tx: Transaction, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    named = in_force(tx)
    return [model_view(row, named) for row in rows]
