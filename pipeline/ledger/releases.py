"""Models, aliases and what became of them, in a ledger: written beside the releases on storage, never instead of them.

Every function may be repeated: what stands there already is not written twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from pipeline.ledger import batches, history
from pipeline.ledger.schema import ALIAS, BATCH, HEAD, MODEL, MODEL_OBJECT
from pipeline.ledger.store import Transaction
from pipeline.records import ShardRef, record

__all__ = [
    "Model",
    "batch_of",
    "known_model",
    "line_of",
    "record_alias",
    "record_destroyed",
    "record_kept",
    "record_model",
    "record_new_secret",
    "record_retired",
    "release_batch",
    "released_batches",
    "take_back",
]


@record
class Model:
    """A released model. `model_id` is the sha256 of its weights, `batch` the digest of its batch, `parent` another's model_id or
    None; `trained` and `forgotten` are the shards that it saw, by absolute address."""

    model_id: str
    line: str
    version: str
    batch: str
    folder: str
    uri: str
    verdict: str
    parent: str | None
    digests: Mapping[str, str]
    trained: tuple[ShardRef, ...] = ()
    forgotten: tuple[ShardRef, ...] = ()


def batch_of(tx: Transaction, batch_digest: str) -> dict[str, Any] | None:
    """The newest batch with this digest of requests; None where the ledger has none."""
    query = sa.select(BATCH).where(BATCH.c.requests_digest == batch_digest).order_by(BATCH.c.batch_id.desc()).limit(1)
    row = tx.execute(query).mappings().first()
    return dict(row) if row else None


def line_of(tx: Transaction, model_id: str, otherwise: str, *, batch_digest: str = "") -> str:
    """The line that the ledger keeps a model under; of an unknown one its batch's, or `otherwise`."""
    known = tx.execute(sa.select(MODEL.c.line).where(MODEL.c.model_id == model_id)).scalar()
    batch = batch_of(tx, batch_digest) if not known and batch_digest else None
    return str(known or (batch["line"] if batch else otherwise))


def released_batches(tx: Transaction, line: str) -> set[str]:
    """Digests of the batches of a line that count as unlearned: released, and not rolled back since."""
    query = sa.select(BATCH.c.requests_digest).where(BATCH.c.line == line, BATCH.c.state == "released")
    return set(tx.execute(query).scalars())


def record_model(tx: Transaction, model: Model) -> str:
    """Write down a published model and what it saw.

    Args:
        tx: a transaction that writes.
        model: which.

    Returns:
        The name of its batch; empty where the ledger does not know the batch.
    """
    batch = batch_of(tx, model.batch)
    known = tx.execute(sa.select(MODEL).where(MODEL.c.model_id == model.model_id)).mappings().first()
    parent = model.parent if model.parent and known_model(tx, model.parent) else None
    if known is None:
        line, made = batch["line"] if batch else model.line, {"made_at": tx.now, "parent": parent, "removed_at": None}
        row = {"model_id": model.model_id, "line": line, "batch_id": batch["batch_id"] if batch else None, **made}
        row |= {"folder": model.folder, "uri": model.uri, "verdict": model.verdict, "kept_until": None}
        tx.execute(sa.insert(MODEL).values(**row, digests=dict(model.digests)))
        _record_objects(tx, model)
    if known is None or known["uri"] != model.uri:
        if known is not None:
            # What the run that made it wrote down stays beside what the release adds.
            digests = {**(known["digests"] or {}), **model.digests}
            changed = {"uri": model.uri, "verdict": model.verdict, "digests": digests}
            tx.execute(sa.update(MODEL).where(MODEL.c.model_id == model.model_id).values(changed))
        detail = {"model": model.model_id, "batch": model.batch, "verdict": model.verdict, "parent": parent}
        history.append(tx, "release", f"{model.line}/{model.version}", "released", detail)
    return str(batch["batch_id"]) if batch else ""


def release_batch(tx: Transaction, batch_digest: str, *, version: str, model_id: str) -> None:
    """Let a batch whose run was evaluated count as released; nothing happens to one that is further, or unknown."""
    batch = batch_of(tx, batch_digest)
    if batch and batch["state"] == "evaluated":
        batches.move(tx, batch["batch_id"], "released", detail={"release": version, "model": model_id})


def known_model(tx: Transaction, model_id: str) -> bool:
    """Whether a model is in the ledger."""
    return tx.execute(sa.select(MODEL.c.model_id).where(MODEL.c.model_id == model_id)).first() is not None


def _record_objects(tx: Transaction, model: Model) -> None:
    roles: Iterable[tuple[str, tuple[ShardRef, ...]]] = (("trained", model.trained), ("forgotten", model.forgotten))
    # A manifest names contents, not the store's versions: the sha256 says which version it was.
    rows = {
        (ref.uri, role): {"model_id": model.model_id, "uri": ref.uri, "version": "", "role": role, "sha256": ref.sha256}
        for role, refs in roles
        for ref in refs
    }
    if rows:
        tx.execute(sa.insert(MODEL_OBJECT), list(rows.values()))


def record_alias(
    tx: Transaction,
    line: str,
    name: str,
    *,
    number: int,
    model_id: str,
    version: str,
    act: str,
    by: str,
    reason: str,
    approved: bool,
) -> None:
    """Write down that an alias names another release; `number` counts its changes, as on storage.

    The model must be in the ledger. `act` is `promoted` or `rolled back`.
    """
    kept = line_of(tx, model_id, line)
    where = (ALIAS.c.line == kept, ALIAS.c.name == name, ALIAS.c.version == number)
    if tx.execute(sa.select(ALIAS.c.version).where(*where)).first() is not None:
        return
    row = {"line": kept, "name": name, "version": number, "model_id": model_id, "changed_at": tx.now, "by": by, "reason": reason}
    tx.execute(sa.insert(ALIAS).values(row))
    detail = {"number": number, "model": model_id, "version": version, "by": by, "reason": reason, "approved": approved}
    history.append(tx, "release", f"{line}/{name}", act, detail)


def take_back(tx: Transaction, digests: Collection[str], *, reason: str) -> list[str]:
    """Send released batches back to the queue: the model in force holds their images again.

    Returns:
        The names of the batches.
    """
    query = sa.select(BATCH.c.batch_id).where(BATCH.c.requests_digest.in_(sorted(digests)), BATCH.c.state == "released")
    found = sorted(tx.execute(query).scalars())
    for name in found:
        batches.move(tx, name, "rolled_back", detail={"reason": reason})
    return found


def record_kept(tx: Transaction, line: str, version: str, *, model_id: str, kept_until: str) -> None:
    """Write down the date until which the checkpoints that a model came from are kept; the first date stands."""
    undated = sa.update(MODEL).where(MODEL.c.model_id == model_id, MODEL.c.kept_until.is_(None))
    if tx.execute(undated.values(kept_until=kept_until)).rowcount:
        history.append(tx, "release", f"{line}/{version}", "kept", {"model": model_id, "until": kept_until})


def record_retired(tx: Transaction, line: str, version: str, *, model_id: str, files: int, weights: bool) -> None:
    """Write down that files which held deleted data are gone; `weights`: the model's own among them."""
    if weights:
        gone = sa.update(MODEL).where(MODEL.c.model_id == model_id, MODEL.c.removed_at.is_(None))
        tx.execute(gone.values(removed_at=tx.now))
    history.append(tx, "release", f"{line}/{version}", "retired", {"model": model_id, "files": files, "weights": weights})


def record_destroyed(tx: Transaction, key_id: str) -> None:
    """Write down that a secret of keyed digests was destroyed."""
    history.append(tx, "ledger", "pseudonym key", "destroyed", {"destroyed": key_id})


def record_new_secret(tx: Transaction, key_id: str) -> None:
    """From now on the ledger is kept with another pseudonym key; names made with an earlier one stay as they are."""
    tx.execute(sa.update(HEAD).where(HEAD.c.id == 1).values(key_id=key_id))
    history.append(tx, "ledger", "pseudonym key", "changed", {"key_id": key_id})
