"""One call a signal, and where it goes: log lines, webhooks, OpenLineage.

What is sent waits in an outbox first. Whatever the ledger's history tells is told by `follow` as well, under the same names: a
host that dies between a commit and its signal loses none, and one host may tell of the work of all.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from launch.signals import openlineage
from launch.signals.fields import EVENTS, checked, event_id
from launch.signals.outbox import Item, Outbox, Undelivered
from launch.signals.webhooks import check_url, deliver_to, environment_secret, read_secret
from pipeline.errors import ConfigError, UnlearnError
from pipeline.ledger.deadlines import time_text
from pipeline.records import record

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["DEFAULT_OUTBOX", "LAST_TICK", "Settings", "Signals", "open_signals"]

DEFAULT_OUTBOX = "unlearn-outbox.sqlite"
DEFAULT_EVENTS = "due_soon,overdue,run_failed,released,rolled_back"
LAST_TICK = "last_tick"
FOLLOWED = {
    "closed": "batch_closed",
    "running": "run_started",
    "failed": "run_failed",
    "evaluated": "evaluated",
    "released": "released",
    "rolled_back": "rolled_back",
}
"""Events of batches in the history, and the signals that they are."""


@record
class Settings:
    """Where signals go; an empty one is taken from the environment, and is off where that is empty, too."""

    log_json: str = ""
    """UNLEARN_LOG_JSON: a file, or `-` for standard error."""
    webhook: str = ""
    """UNLEARN_WEBHOOK: an https address."""
    webhook_secret_file: str = ""
    """UNLEARN_WEBHOOK_SECRET_FILE; or the secret itself in UNLEARN_WEBHOOK_SECRET."""
    webhook_events: str = ""
    """UNLEARN_WEBHOOK_EVENTS: names, with commas between them."""
    openlineage: str = ""
    """UNLEARN_OPENLINEAGE: a file, or an https address."""
    outbox: str = ""
    """UNLEARN_OUTBOX: the file in which events wait; one for each host."""


class Signals:
    """Where signals go; `open_signals` makes it. Use it as a context, or close it."""

    def __init__(
        self, *, log_json: str, webhook: str, secret: bytes, events: frozenset[str], lineage: str, outbox: Outbox | None,
        ledger: Ledger | None, clock: Callable[[], datetime.datetime],
    ) -> None:  # fmt: skip
        self._log, self._webhook, self._secret, self._events = log_json, webhook, secret, events
        self._lineage, self._outbox, self._ledger, self._clock = lineage, outbox, ledger, clock
        self._scope, self._complained = "", False
        if ledger is not None and outbox is not None:
            with ledger.read() as tx:
                self._scope, end = _first_hash(tx), tx.seq
            if not outbox.mark(self._place):
                outbox.mark(self._place, str(end))  # what happened before there was an outbox is not told

    @property
    def _place(self) -> str:
        return f"followed {self._scope}"

    @property
    def idle(self) -> bool:
        """Whether nothing is set up: then signals go nowhere."""
        return self._outbox is None

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the outbox."""
        if self._outbox is not None:
            self._outbox.close()

    def signal(self, event: str, **facts: Any) -> None:
        """Tell an event: a line in the log, and what is to be sent into the outbox.

        Call it after the commit. It does no network, and a log or outbox that cannot be written ends nothing.

        Args:
            event: one of `fields.EVENTS`.
            facts: by names in `fields.FIELDS`.

        Raises:
            ValueError: an unknown event or fact: a fault of the program.
        """
        at = time_text(self._clock())
        told = checked(event, {"at": at, **facts} if event == "tick" else facts)
        try:
            self._tell(event, told, at)
            if event == "tick" and self._outbox is not None:
                self._outbox.mark(LAST_TICK, at)
        except (OSError, sqlite3.Error) as fault:
            self._complain(f"a signal could not be written ({type(fault).__name__})")

    def _tell(self, event: str, told: Mapping[str, Any], at: str) -> None:
        if self._outbox is None:
            return
        name = event_id(event, told, self._scope)
        if self._log and self._outbox.note("log", name, event):
            self._write_log({"time": at, "event": event, "event_id": name, **told})
        self._post(self._outbox, event, name, told, at)

    def _write_log(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line) + "\n"
        if self._log == "-":
            sys.stderr.write(text)
            sys.stderr.flush()
        elif self._log:
            # One write of a short line: lines of several processes do not mix.
            with open(os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as stream:
                stream.write(text)

    def _post(self, outbox: Outbox, event: str, name: str, told: Mapping[str, Any], at: str) -> None:
        if self._webhook and event in self._events:
            body = {"type": f"unlearn.{event}", "timestamp": at, "data": told}
            outbox.put("webhook", name, event, json.dumps(body))
        lineage = openlineage.run_event(event, told, scope=self._scope, at=at) if self._lineage else None
        if lineage is not None:
            outbox.put("openlineage", name, event, json.dumps({"run": told.get("run", ""), "event": lineage}))

    def _complain(self, words: str) -> None:
        if not self._complained:
            print(f"signals: {words}; the work goes on", file=sys.stderr, flush=True)
        self._complained = True

    def follow(self) -> None:
        """Tell what the ledger's history tells since the last time, by whatever host, and no signal told."""
        if self._ledger is None or self._outbox is None:
            return
        from pipeline.ledger import batches, history

        try:
            after = int(self._outbox.mark(self._place) or 0)
            with self._ledger.read() as tx:
                while page := history.entries(tx, after=after):
                    for entry in page:
                        event, facts = _followed(entry)
                        if "batch_id" in facts:
                            row = batches.find(tx, entry["name"])
                            facts = {"line": row["line"], "run": row["folder"], **facts}
                        if event:
                            self._tell(event, checked(event, facts), entry["at"])
                        after = int(entry["seq"])
            self._outbox.mark(self._place, str(after))
        except (OSError, sqlite3.Error, UnlearnError) as fault:
            self._complain(f"the history could not be followed ({type(fault).__name__})")

    def deliver(self, seconds: float = 20.0) -> tuple[int, int]:
        """Send what waits in the outbox; what is not taken waits for the next time.

        Args:
            seconds: begin nothing new after so long.

        Returns:
            How many events were sent, and how many failed.
        """
        if self._outbox is None:
            return 0, 0
        try:
            sent, failed = self._outbox.deliver(self._send, seconds=seconds)
        except sqlite3.Error as fault:
            self._complain(f"the outbox could not be read ({type(fault).__name__})")
            return 0, 0
        if failed:
            self._complain(f"{failed} events were not taken by their receiver and wait in the outbox")
        return sent, failed

    def _send(self, item: Item) -> None:
        if item.target == "webhook":
            if not self._webhook:
                raise Undelivered("no webhook is set now")
            deliver_to(self._webhook, self._secret, item)
            return
        kept = json.loads(item.body)
        sources = openlineage.source_of(kept["run"]) if kept["run"] and self._lineage else []
        item = dataclasses.replace(item, body=json.dumps({**kept["event"], "inputs": sources}))
        if self._lineage.startswith(("https://", "http://")):
            deliver_to(self._lineage, None, item)
        elif self._lineage:
            try:
                with open(self._lineage, "a", encoding="utf-8") as stream:
                    stream.write(f"{item.body}\n")
            except OSError as fault:
                raise Undelivered(type(fault).__name__) from None
        else:
            raise Undelivered("no place for OpenLineage is set now")


def _first_hash(tx: Any) -> str:
    from pipeline.ledger import history

    first = history.entries(tx, limit=1)
    return str(first[0]["hash"])[:16] if first else ""


def _followed(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The signal that an entry is, and its facts; an empty name: it is none."""
    detail, event = json.loads(entry["detail"]), FOLLOWED.get(entry["event"], "")
    if entry["what"] == "release" and entry["event"] == "rolled back":
        line, _, alias = str(entry["name"]).rpartition("/")
        return "rolled_back", {"line": line, "alias": alias, "number": detail.get("number"), "model_id": detail.get("model")}
    if entry["what"] != "batch" or not event or (event == "batch_closed" and "was" in detail):  # closed to be tried again
        return "", {}
    told = {"batch_id": entry["name"]}
    if event == "batch_closed":
        return event, {**told, "requests": detail["requests_count"], "reason": detail["reason"], "due_at": detail["due_at"]}
    return event, {**told, "attempt": detail.get("attempts"), "failure": detail.get("failure"), "model_id": detail.get("model")}


def _utc() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def open_signals(
    settings: Settings | None = None, ledger: Ledger | None = None, *, clock: Callable[[], datetime.datetime] = _utc
) -> Signals:
    """Make ready what signals need.

    Args:
        settings: where they go; the environment fills what is empty.
        ledger: names the events, and its history is followed.
        clock: the time that signals bear.

    Raises:
        ConfigError: a receiver without secret or of another scheme, or an unknown event.
        StorageError: the outbox cannot be opened.
    """
    given = settings or Settings()

    def wish(name: str, otherwise: str = "") -> str:
        return str(getattr(given, name)) or os.environ.get(f"UNLEARN_{name.upper()}", "") or otherwise

    webhook, lineage, secret = wish("webhook"), wish("openlineage"), b""
    if webhook:
        check_url(webhook, "UNLEARN_WEBHOOK")
        file, text = environment_secret()
        secret = read_secret(given.webhook_secret_file or file, text)
    if "://" in lineage:
        check_url(lineage, "UNLEARN_OPENLINEAGE")
    events = frozenset(word.strip() for word in wish("webhook_events", DEFAULT_EVENTS).split(",") if word.strip())
    if unknown := sorted(events - set(EVENTS)):
        raise ConfigError(f"UNLEARN_WEBHOOK_EVENTS: {unknown[0]}: no such event", f"choose from {', '.join(EVENTS)}")
    path = wish("outbox")
    where = {"log_json": wish("log_json"), "webhook": webhook, "lineage": lineage}
    outbox = Outbox(path or DEFAULT_OUTBOX) if any(where.values()) or path else None
    return Signals(**where, secret=secret, events=events, outbox=outbox, ledger=ledger, clock=clock)
