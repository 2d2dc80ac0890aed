"""The history of a ledger: entries that are only ever added, each sealed with the hash of the one before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.decode import canonical, digest
from pipeline.ledger.schema import HEAD, HISTORY, VERSION

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger, Transaction

__all__ = ["ABOUT", "FIRST", "Fault", "append", "check", "entries"]

FIRST = "0" * 64
"""What stands as the previous hash in the first entry."""
ABOUT = ("ledger", "request", "batch", "run", "release")
FIELDS = ("seq", "at", "actor", "what", "name", "event", "detail", "previous")
PAGE = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with the history: the entry's number (0: the head), and what is wrong."""

    seq: int
    text: str


def append(tx: Transaction, what: str, name: str, event: str, detail: Mapping[str, Any] | None = None) -> int:
    """Add an entry to the history.

    Args:
        tx: a transaction that writes.
        what: one of `ABOUT`.
        name: of the request, batch, run folder or alias; never a key or a subject.
        event: one or two words.
        detail: plain data without keys, subjects and notes.

    Returns:
        The entry's number.
    """
    if what not in ABOUT:
        raise ValueError(f"{what}: not one of {', '.join(ABOUT)}")
    text = canonical(detail or {}).decode().rstrip("\n")
    entry = {
        **{"seq": tx.seq + 1, "at": tx.now, "actor": tx.ledger.actor, "what": what, "name": name, "event": event},
        **{"detail": text, "previous": tx.hash},
    }
    entry["hash"] = digest(entry)
    tx.execute(sa.insert(HISTORY).values(entry))
    tx.execute(sa.update(HEAD).where(HEAD.c.id == 1).values(seq=entry["seq"], hash=entry["hash"]))
    tx.seq, tx.hash = tx.seq + 1, str(entry["hash"])
    return tx.seq


def entries(tx: Transaction, what: str = "", name: str = "", *, after: int = 0, limit: int = PAGE) -> list[Mapping[str, Any]]:
    """Entries in order, as mappings of the table's columns with `detail` as its JSON text.

    Args:
        tx: any transaction.
        what: only of this kind; empty: all.
        name: only with this name; empty: all.
        after: only those with a higher number.
        limit: at most so many.
    """
    query = sa.select(HISTORY).where(HISTORY.c.seq > after).order_by(HISTORY.c.seq).limit(limit)
    if what:
        query = query.where(HISTORY.c.what == what)
    if name:
        query = query.where(HISTORY.c.name == name)
    return [dict(row) for row in tx.execute(query).mappings()]


def check(ledger: Ledger) -> list[Fault]:
    """Every entry that was changed, removed, added or moved since it was written, and a head that does not fit; empty: none.

    The chain is recomputed from the first entry on. Whoever rewrites all entries and the head alike is only found by comparing
    the head's hash with one that was noted elsewhere, such as in a signed report.
    """
    with ledger.read() as tx:
        return list(_faults(tx))


def _faults(tx: Transaction) -> Iterator[Fault]:
    previous, last, at, key = FIRST, 0, "", ""
    while page := entries(tx, after=last):
        for entry in page:
            seq = entry["seq"]
            if seq != last + 1:
                missing = str(last + 1) if seq == last + 2 else f"{last + 1} to {seq - 1}"
                yield Fault(seq=last + 1, text=f"entry {missing}: removed")
            elif entry["previous"] != previous:
                yield Fault(seq=seq, text=f"entry {seq}: does not follow entry {last}")
            if not _sealed(entry):
                yield Fault(seq=seq, text=f"entry {seq}: changed after it was written")
            elif entry["at"] < at:
                yield Fault(seq=seq, text=f"entry {seq}: older than entry {last}")
            else:
                at = entry["at"]
            if entry["what"] == "ledger":
                key = _detail(entry).get("key_id", key)
            previous, last = entry["hash"], seq
    head = tx.execute(sa.select(HEAD)).mappings().all()
    if len(head) != 1:
        yield Fault(seq=0, text=f"head: {len(head)} rows, and there must be one")
        return
    if head[0]["seq"] != last:
        yield Fault(seq=0, text=f"head: says entry {head[0]['seq']} is the last, and it is entry {last}")
    elif head[0]["hash"] != previous:
        yield Fault(seq=0, text=f"head: has another hash than entry {last}")
    if head[0]["version"] != VERSION:
        yield Fault(seq=0, text="head: names another version of the tables")
    if head[0]["key_id"] != key:
        yield Fault(seq=0, text="head: names another pseudonym key than the history")


def _sealed(entry: Mapping[str, Any]) -> bool:
    try:
        return bool(digest({name: entry[name] for name in FIELDS}) == entry["hash"])
    except (TypeError, ValueError):  # bytes where there was text
        return False


def _detail(entry: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(entry["detail"])
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
