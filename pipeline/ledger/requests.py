"""Deletion requests in the ledger: taken in once however often they are sent, extended, withdrawn, listed and shown."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from pipeline.errors import ConfigError
from pipeline.ledger import history
from pipeline.ledger.deadlines import MONTHS, MORE_MONTHS, add_months, moment, time_text
from pipeline.ledger.pseudonyms import keyed_digest, pseudonym
from pipeline.ledger.schema import BATCH, BATCH_REQUEST, CLOSED, OPEN, REQUEST, REQUEST_VALUE
from pipeline.ledger.states import FINAL, REQUEST_MOVES, ForbiddenMove, refuse_move
from pipeline.ledger.store import Transaction
from pipeline.records import record

__all__ = [
    "KINDS",
    "Answer",
    "Submission",
    "check_form",
    "counts",
    "extend",
    "find",
    "known",
    "listing",
    "move",
    "prepare",
    "show",
    "submit",
    "values_of",
    "withdraw",
]

KINDS = ("keys", "label", "prefix", "digest", "likeness")
COPIES = ("stop", "include", "ignore")
HEX = {"digest": 64, "likeness": 16}
LONGEST_VALUE = 2000
"""Bytes of a value; PostgreSQL's index takes no longer ones."""
OWN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@record
class Submission:
    """A request as it comes in. `subject` is turned into a pseudonym and not kept; times are ISO 8601 or empty."""

    kind: str
    values: tuple[str, ...]
    line: str
    subject: str = ""
    copies: str = "stop"
    basis: str = ""
    note: str = ""
    received_at: str = ""
    due_at: str = ""
    request_id: str = ""


@record
class Answer:
    """What became of a submission: the request that stands for it, and whether it is a new one."""

    request_id: str
    new: bool
    state: str
    due_at: str
    repeats: int


def check_form(submission: Submission, *, where: str = "request") -> list[str]:
    """The values of a submission as the ledger keeps them: stripped, each once, in order.

    Args:
        submission: as it came in.
        where: named in messages, which never quote values, subjects or notes.

    Raises:
        ConfigError: empty or malformed.
    """
    if submission.kind not in KINDS:
        raise ConfigError(f"{where}: kind: none of {', '.join(KINDS)}", "name the kind of the values")
    if submission.copies not in COPIES:
        raise ConfigError(f"{where}: copies: none of {', '.join(COPIES)}", "leave it out, or choose one")
    if not submission.line or len(submission.line) > 255 or "\0" in submission.line:
        raise ConfigError(f"{where}: line: empty, or no name of at most 255 characters", "name the run that it is meant for")
    if submission.request_id and (not OWN_ID.fullmatch(submission.request_id) or submission.request_id.startswith("r-")):
        cure = "use 1 to 64 letters, digits, '.', '_' and '-' without personal data; names in r- are the ledger's own"
        raise ConfigError(f"{where}: request_id: not a name", cure)
    for name, text in (("subject", submission.subject), ("basis", submission.basis), ("note", submission.note)):
        if text and ("\0" in text or not _encodable(text)):
            raise ConfigError(f"{where}: {name}: no text", "write it in letters")
    values = sorted({_value(submission.kind, value, where) for value in submission.values})
    if not values:
        raise ConfigError(f"{where}: empty: no value", "name at least one key, label, prefix or digest")
    return values


def prepare(submission: Submission, secret: bytes, now: str, *, where: str = "request") -> tuple[dict[str, Any], list[str]]:
    """The row of a submission, without what depends on the ledger's other rows, and its values, each once and in order.

    Args:
        submission: as it came in.
        secret: the pseudonym key.
        now: when, where it does not say when it was received.
        where: named in messages.

    Raises:
        ConfigError: empty or malformed.
    """
    values = check_form(submission, where=where)
    received = time_text(moment(submission.received_at, where=f"{where}: received_at")) if submission.received_at else now
    if received > now:
        raise ConfigError(f"{where}: received_at: in the future", "write when the request came in")
    due = time_text(moment(submission.due_at, where=f"{where}: due_at")) if submission.due_at else add_months(received, MONTHS)
    if due < received:
        raise ConfigError(f"{where}: due_at: before the request was received", "write a later date, or leave it out")
    subject = pseudonym(secret, submission.subject)
    values_digest = keyed_digest(secret, "values", "\0".join(values))
    identity = "\0".join((submission.line, submission.kind, values_digest, subject))
    row = {
        **{"request_id": submission.request_id, "fingerprint": keyed_digest(secret, "request", identity)[:32]},
        **{"line": submission.line, "subject": subject, "kind": submission.kind, "copies": submission.copies},
        **{"values_digest": values_digest, "values_count": len(values), "basis": submission.basis, "note": submission.note},
        **{"received_at": received, "queued_at": now, "due_at": due, "extended_from": None},
        **{"batch_id": None, "attempts": 0, "repeats": 0},
    }
    return row, values


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _value(kind: str, value: str, where: str) -> str:
    value = value.strip()
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = 0
    if not size or size > LONGEST_VALUE or "\0" in value:
        raise ConfigError(f"{where}: a value is empty, longer than {LONGEST_VALUE} bytes or no text", "correct the value")
    digits = HEX.get(kind)
    if digits is None:
        return value
    value = value.lower()
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise ConfigError(f"{where}: a {kind} is not {digits} hexadecimal digits", "correct the value")
    return value


def submit(tx: Transaction, submission: Submission, *, checked: bool = False, again: bool = False) -> Answer:
    """Take a request in; the same one again (line, kind, values, subject) is counted as a repeat of the first.

    Args:
        tx: a transaction that writes.
        submission: the request.
        checked: its values were looked up, or a person confirmed them.
        again: make a new request where the same one was released, withdrawn or refused before.

    Raises:
        ConfigError: empty or malformed, its name is another request's, or it asks for other `copies` than the open one.
    """
    row, values = prepare(submission, tx.secret, tx.now)
    same = known(tx, [row["fingerprint"]])
    current = same.get(row["fingerprint"])
    if current is not None and not (again and current["state"] in FINAL):
        return _fold(tx, current, row)
    row["request_id"] = row["request_id"] or f"r-{tx.seq + 1:06d}"
    if find(tx, row["request_id"]) is not None:
        raise ConfigError(f"request {row['request_id']}: the ledger has another request of this name", "choose another name")
    row["state"], row["entry"] = "queued" if checked else "received", tx.seq + 1
    tx.execute(sa.insert(REQUEST), row)
    tx.execute(sa.insert(REQUEST_VALUE), [{"request_id": row["request_id"], "value": value} for value in values])
    told = ("line", "kind", "values_count", "copies", "basis", "subject", "received_at", "due_at", "state")
    history.append(tx, "request", row["request_id"], "received", {name: row[name] for name in told})
    return Answer(request_id=row["request_id"], new=True, state=row["state"], due_at=row["due_at"], repeats=0)


def known(tx: Transaction, fingerprints: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows of the requests with these fingerprints: of each the open one, else the last that was closed."""
    found: dict[str, dict[str, Any]] = {}
    for state in (CLOSED, OPEN):
        query = sa.select(REQUEST).where(tx.any_of(REQUEST.c.fingerprint, fingerprints), state).order_by(REQUEST.c.entry)
        found |= {row["fingerprint"]: dict(row) for row in tx.execute(query).mappings()}
    return found


def _fold(tx: Transaction, current: Mapping[str, Any], row: Mapping[str, Any]) -> Answer:
    name, repeats = current["request_id"], current["repeats"] + 1
    if current["copies"] != row["copies"] and current["state"] not in FINAL:
        raise ConfigError(f"request {name}: is open with copies={current['copies']}", "withdraw it first, or ask for the same")
    tx.execute(sa.update(REQUEST).where(REQUEST.c.request_id == name).values(repeats=repeats))
    history.append(tx, "request", name, "repeated", {"repeats": repeats, "state": current["state"]})
    return Answer(request_id=name, new=False, state=current["state"], due_at=current["due_at"], repeats=repeats)


def find(tx: Transaction, request_id: str) -> dict[str, Any] | None:
    """The row of a request, or None."""
    row = tx.execute(sa.select(REQUEST).where(REQUEST.c.request_id == request_id)).mappings().first()
    return None if row is None else dict(row)


def _found(tx: Transaction, request_id: str) -> dict[str, Any]:
    row = find(tx, request_id)
    if row is None:
        raise ConfigError(f"request {request_id}: the ledger has none of this name", "`unlearn requests list` shows the names")
    return row


def values_of(tx: Transaction, request_id: str) -> tuple[str, ...]:
    """What a request asks for, in order: personal data, not to be shown or logged."""
    rows = tx.execute(sa.select(REQUEST_VALUE.c.value).where(REQUEST_VALUE.c.request_id == request_id)).scalars()
    return tuple(sorted(rows))


def withdraw(tx: Transaction, request_id: str, reason: str = "") -> None:
    """Take a request back, before a run has begun with it.

    A batch that was closed but never ran loses the request; one that is left empty is withdrawn, too.

    Args:
        tx: a transaction that writes.
        request_id: which.
        reason: goes into the history as it is.

    Raises:
        ConfigError: no such request.
        ForbiddenMove: it is running, released, or final otherwise; or its batch has run before, or is being started.
    """
    from pipeline.ledger.batches import without

    row = _found(tx, request_id)
    refuse_move("request", request_id, row["state"], "withdrawn")
    if row["batch_id"] is not None:
        without(tx, row["batch_id"], request_id)
    change = {"state": "withdrawn", "batch_id": None}
    tx.execute(sa.update(REQUEST).where(REQUEST.c.request_id == request_id).values(change))
    history.append(tx, "request", request_id, "withdrawn", {"reason": reason, "was": row["state"]})


def extend(tx: Transaction, request_id: str, months: int, reason: str) -> str:
    """Move a due date once, by one or two months.

    Args:
        tx: a transaction that writes.
        request_id: which.
        months: 1 or 2.
        reason: why; the person must be told it, and the history is.

    Returns:
        The new due date.

    Raises:
        ConfigError: no such request, extended already, overdue, closed, no reason, or a number of months out of range.
    """
    row = _found(tx, request_id)
    where = f"request {request_id}"
    if not 1 <= months <= MORE_MONTHS:
        raise ConfigError(f"{where}: {months} months: not 1 to {MORE_MONTHS}", "write --months 1 or 2")
    if not reason.strip():
        raise ConfigError(f"{where}: an extension without reason", "say why with --reason")
    if row["state"] in FINAL:
        raise ConfigError(f"{where}: is {row['state']}", "only open requests have a due date to move")
    if row["extended_from"] is not None:
        raise ConfigError(f"{where}: was extended before, from {row['extended_from'][:10]}", "a due date moves once")
    if row["due_at"] < tx.now:
        raise ConfigError(f"{where}: was due on {row['due_at'][:10]}", "an extension comes before the due date")
    due = add_months(row["due_at"], months)
    change = {"due_at": due, "extended_from": row["due_at"]}
    tx.execute(sa.update(REQUEST).where(REQUEST.c.request_id == request_id).values(change))
    if row["batch_id"] is not None:
        nearest = sa.select(sa.func.min(REQUEST.c.due_at)).where(REQUEST.c.batch_id == row["batch_id"])
        tx.execute(sa.update(BATCH).where(BATCH.c.batch_id == row["batch_id"]).values(due_at=nearest.scalar_subquery()))
    history.append(tx, "request", request_id, "extended", {"due_at": due, "was": row["due_at"], "reason": reason})
    return due


def move(tx: Transaction, request_ids: Collection[str], state: str, *, reason: str = "") -> None:
    """Move requests that no batch moves: to queued, held or refused; each is told to the history.

    Args:
        tx: a transaction that writes; it must not go on where this raises.
        request_ids: which.
        state: what they become.
        reason: goes into the history as it is.

    Raises:
        ConfigError: no such request.
        ForbiddenMove: one's state does not allow it, or its batch is closed or running.
    """
    for name in request_ids:
        row = _found(tx, name)
        refuse_move("request", name, row["state"], state)
        if row["batch_id"] is not None and row["state"] not in ("failed", "held"):
            raise ForbiddenMove(f"request {name}: is in batch {row['batch_id']}", "move the batch")
        change = {"state": state, "queued_at": tx.now, **({"batch_id": None} if state != "held" else {})}
        tx.execute(sa.update(REQUEST).where(REQUEST.c.request_id == name).values(change))
        history.append(tx, "request", name, state, {"reason": reason, "was": row["state"]})


def counts(tx: Transaction, line: str = "") -> dict[str, int]:
    """How many requests are in each state, in the order in which they go through them."""
    query = sa.select(REQUEST.c.state, sa.func.count()).group_by(REQUEST.c.state)
    rows: Any = tx.execute(query.where(REQUEST.c.line == line) if line else query)
    found = {str(state): int(count) for state, count in rows}
    return {state: found[state] for state in REQUEST_MOVES if state in found}


def listing(
    tx: Transaction, *, line: str = "", state: str = "", overdue: bool = False, limit: int = 100, after: str = ""
) -> list[dict[str, Any]]:
    """Requests by due date, without values, subjects and notes.

    Args:
        tx: any transaction.
        line: only of this model line.
        state: only in this state.
        overdue: only open ones whose due date has passed.
        limit: at most so many.
        after: go on after the request of this name.
    """
    shown = [column for column in REQUEST.c if column.name not in ("subject", "note", "fingerprint", "values_digest")]
    query = sa.select(*shown).order_by(REQUEST.c.due_at, REQUEST.c.request_id).limit(limit)
    if line:
        query = query.where(REQUEST.c.line == line)
    if state:
        query = query.where(REQUEST.c.state == state)
    if overdue:
        query = query.where(REQUEST.c.due_at < tx.now, REQUEST.c.state.not_in(FINAL))
    if after:
        last = _found(tx, after)
        query = query.where(sa.tuple_(REQUEST.c.due_at, REQUEST.c.request_id) > (last["due_at"], after))
    return [dict(row) for row in tx.execute(query).mappings()]


def show(tx: Transaction, request_id: str) -> dict[str, Any]:
    """A request with its batches and all that the history tells of it, the import that brought it included.

    Values are left out; subject is the pseudonym. Raises ConfigError for an unknown name.
    """
    row = dict(_found(tx, request_id))
    batches = sa.select(BATCH_REQUEST.c.batch_id, BATCH_REQUEST.c.outcome).where(BATCH_REQUEST.c.request_id == request_id)
    row["batches"] = [dict(found) for found in tx.execute(batches.order_by(BATCH_REQUEST.c.batch_id)).mappings()]
    told = history.entries(tx, "request", request_id)
    if all(entry["seq"] != row["entry"] for entry in told):
        told += history.entries(tx, after=row["entry"] - 1, limit=1)
    for found in row["batches"]:
        told += history.entries(tx, "batch", found["batch_id"])
    row["history"] = sorted(told, key=lambda entry: int(entry["seq"]))
    return row
