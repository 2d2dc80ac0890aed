"""Events that wait to be sent, in a file of SQLite: each once, and none lost when a host dies or a receiver is away."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.records import record

__all__ = ["Item", "Outbox", "Undelivered", "read_mark"]

TABLES = """
CREATE TABLE IF NOT EXISTS item (
    target TEXT, event_id TEXT, event TEXT NOT NULL, body TEXT NOT NULL, made_at REAL NOT NULL, attempts INTEGER NOT NULL,
    next_try REAL NOT NULL, sent_at REAL, PRIMARY KEY (target, event_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS item_waiting ON item (next_try) WHERE sent_at IS NULL;
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
BUSY_SECONDS = 30
HELD_SECONDS = 60.0
"""A sender that has taken an item is left alone with it for so long."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 3600.0
KEPT_SECONDS = 400 * 86400.0
"""Sent items are remembered for so long, so that none is sent again."""


class Undelivered(Exception):
    """A receiver did not take an item; the words say why, without what it answered."""


@record
class Item:
    """One event for one target. `body` is what is sent."""

    target: str
    event_id: str
    event: str
    body: str
    attempts: int


class Outbox:
    """An open outbox; close it at the end.

    Args:
        path: its file; made if it is not there, for its owner alone.
        clock: seconds since 1970.

    Raises:
        StorageError: the file cannot be made or opened.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.executescript(TABLES)
        except (OSError, sqlite3.Error) as fault:
            raise StorageError(f"{path}: no outbox ({type(fault).__name__})", "name another file: UNLEARN_OUTBOX") from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def put(self, target: str, event_id: str, event: str, body: str) -> bool:
        """Add an event for a target; False where it was added before."""
        row = (target, event_id, event, body, self._clock(), self._clock())
        done = self._connection.execute("INSERT OR IGNORE INTO item VALUES (?, ?, ?, ?, ?, 0, ?, NULL)", row)
        return done.rowcount == 1

    def note(self, target: str, event_id: str, event: str) -> bool:
        """Remember an event as told to a target at once; False where it was told before."""
        row = (target, event_id, event, self._clock(), self._clock(), self._clock())
        done = self._connection.execute("INSERT OR IGNORE INTO item VALUES (?, ?, ?, '', ?, 0, ?, ?)", row)
        return done.rowcount == 1

    def take(self) -> Item | None:
        """The oldest item that is due, held for this sender; None: there is none."""
        with self._alone() as connection:
            columns = "target, event_id, event, body, attempts"
            query = f"SELECT {columns} FROM item WHERE sent_at IS NULL AND next_try <= ? ORDER BY made_at, event_id LIMIT 1"  # noqa: S608
            row = connection.execute(query, (self._clock(),)).fetchone()
            if row is None:
                return None
            held = (self._clock() + HELD_SECONDS, row[0], row[1])
            connection.execute("UPDATE item SET next_try = ? WHERE target = ? AND event_id = ?", held)
        return Item(target=row[0], event_id=row[1], event=row[2], body=row[3], attempts=row[4])

    def sent(self, item: Item) -> None:
        """Note that a receiver took the item; what was sent long ago is forgotten."""
        now = self._clock()
        with self._alone() as connection:
            mine = (now, item.target, item.event_id)
            connection.execute("UPDATE item SET sent_at = ? WHERE target = ? AND event_id = ?", mine)
            connection.execute("DELETE FROM item WHERE sent_at < ?", (now - KEPT_SECONDS,))

    def failed(self, item: Item) -> float:
        """Note that it did not; returns the seconds until the next try, longer each time."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**item.attempts) * random.uniform(0.75, 1.25)  # noqa: S311
        row = (self._clock() + wait, item.target, item.event_id)
        self._connection.execute("UPDATE item SET attempts = attempts + 1, next_try = ? WHERE target = ? AND event_id = ?", row)
        return wait

    def deliver(self, send: Callable[[Item], None], *, seconds: float) -> tuple[int, int]:
        """Send what is due, oldest first.

        Args:
            send: hands an item over, or raises Undelivered.
            seconds: begin nothing new after so long.

        Returns:
            How many were sent, and how many failed.
        """
        until, sent, failed = time.monotonic() + seconds, 0, 0
        while time.monotonic() < until and (item := self.take()) is not None:
            try:
                send(item)
            except Undelivered:
                self.failed(item)
                failed += 1
            else:
                self.sent(item)
                sent += 1
        return sent, failed

    def waiting(self) -> int:
        """How many items are not sent yet."""
        return int(self._connection.execute("SELECT count(*) FROM item WHERE sent_at IS NULL").fetchone()[0])

    def mark(self, name: str, value: str | None = None) -> str:
        """The value kept under a name, empty where there is none; `value` replaces it."""
        if value is not None:
            self._connection.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (name, value))
        row = self._connection.execute("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""


def read_mark(path: str, name: str) -> str:
    """A mark of an outbox that is only read; empty where there is no such file or mark."""
    if not Path(path).is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error:
        return ""
    return str(row[0]) if row else ""
