"""The tables of a ledger, for SQLite and PostgreSQL alike.

Times are UTC in ISO 8601 with microseconds, as text: they sort as they passed. Raw keys lie in `request_value` only, and raw
subjects nowhere. A ledger is made by the scripts in `migrations`; these tables are what the newest of them leaves.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, String, Table, Text

__all__ = [
    "ALIAS",
    "BATCH",
    "BATCH_REQUEST",
    "CLOSED",
    "HEAD",
    "HISTORY",
    "METADATA",
    "MODEL",
    "MODEL_OBJECT",
    "OPEN",
    "REQUEST",
    "REQUEST_VALUE",
    "VERSION",
]

VERSION = "0001"
"""Name of the newest script in `migrations/versions`."""

METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

TIME, NAME, SHA256 = String(27), String(64), String(64)

HEAD = Table(
    "head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("hash", SHA256, nullable=False),
    Column("version", String(32), nullable=False),
    Column("key_id", String(16), nullable=False),
)
"""One row: where the history ends, so that a cut tail is found, and which pseudonym key the ledger is kept with."""

HISTORY = Table(
    "history",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", TIME, nullable=False),
    Column("actor", Text, nullable=False),
    Column("what", String(16), nullable=False),
    Column("name", Text, nullable=False),
    Column("event", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", SHA256, nullable=False),
    Column("hash", SHA256, nullable=False),
    Index(None, "what", "name"),
)
"""Append-only. `detail` is canonical JSON, kept as text so that its very bytes are in the hash."""

BATCH = Table(
    "batch",
    METADATA,
    Column("batch_id", NAME, primary_key=True),
    Column("line", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("closed_at", TIME, nullable=False),
    Column("due_at", TIME, nullable=False),
    Column("requests_count", Integer, nullable=False),
    Column("requests_digest", SHA256, nullable=False),
    Column("folder", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("lease_number", Integer, nullable=False),
    Column("lease_until", TIME),
    Column("next_try_at", TIME),
    Column("jobs", JSON),
    Column("failure", Text, nullable=False),
    Index(None, "state"),
)

CLOSED = sa.text("state IN ('released', 'withdrawn', 'refused')")
OPEN = sa.text("state NOT IN ('released', 'withdrawn', 'refused')")
"""Requests in a final state and all others. Of the open ones no two are the same; a query that says so in these words finds them
by the index."""
_BATCHED = sa.text("batch_id IS NOT NULL")

REQUEST = Table(
    "request",
    METADATA,
    Column("request_id", NAME, primary_key=True),
    Column("fingerprint", String(32), nullable=False),
    Column("line", String(255), nullable=False),
    Column("subject", String(34), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("values_digest", SHA256, nullable=False),
    Column("values_count", Integer, nullable=False),
    Column("copies", String(16), nullable=False),
    Column("basis", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("received_at", TIME, nullable=False),
    Column("queued_at", TIME, nullable=False),
    Column("due_at", TIME, nullable=False),
    Column("extended_from", TIME),
    Column("state", String(16), nullable=False),
    Column("batch_id", NAME, ForeignKey("batch.batch_id")),
    Column("attempts", Integer, nullable=False),
    Column("repeats", Integer, nullable=False),
    Column("entry", Integer, nullable=False),
    Index("uq_request_open", "fingerprint", unique=True, sqlite_where=OPEN, postgresql_where=OPEN),
    Index("ix_request_closed", "fingerprint", sqlite_where=CLOSED, postgresql_where=CLOSED),
    Index(None, "line", "state", "due_at"),
    Index(None, "due_at", "request_id"),
    Index("ix_request_batch_id", "batch_id", sqlite_where=_BATCHED, postgresql_where=_BATCHED),
    Index(None, "subject"),
)
"""`entry` is the history entry that tells of the request's arrival: its own, or that of a whole import. `received_at` is when the
person asked, `queued_at` since when the request waits for a batch."""

REQUEST_VALUE = Table(
    "request_value",
    METADATA,
    Column("request_id", NAME, ForeignKey("request.request_id"), primary_key=True),
    Column("value", Text, primary_key=True),
    Index(None, "value"),
    sqlite_with_rowid=False,
)

BATCH_REQUEST = Table(
    "batch_request",
    METADATA,
    Column("batch_id", NAME, ForeignKey("batch.batch_id"), primary_key=True),
    Column("request_id", NAME, ForeignKey("request.request_id"), primary_key=True),
    Column("outcome", String(16), nullable=False),
    Index(None, "request_id"),
    sqlite_with_rowid=False,
)

MODEL = Table(
    "model",
    METADATA,
    Column("model_id", SHA256, primary_key=True),
    Column("line", String(255), nullable=False),
    Column("batch_id", NAME, ForeignKey("batch.batch_id")),
    Column("folder", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("made_at", TIME, nullable=False),
    Column("kept_until", TIME),
    Column("removed_at", TIME),
    Column("verdict", String(16), nullable=False),
    Column("parent", SHA256, ForeignKey("model.model_id")),
    Column("digests", JSON),
    Index(None, "batch_id"),
    Index(None, "line"),
)
"""`model_id` is the sha256 of the weights."""

MODEL_OBJECT = Table(
    "model_object",
    METADATA,
    Column("model_id", SHA256, ForeignKey("model.model_id"), primary_key=True),
    Column("uri", Text, primary_key=True),
    Column("version", String(255), primary_key=True),
    Column("role", String(16), primary_key=True),
    Column("sha256", SHA256, nullable=False),
    Index(None, "uri"),
)
"""The versions of shards that a model saw: `trained` on, or `forgotten`."""

ALIAS = Table(
    "alias",
    METADATA,
    Column("line", String(255), primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("model_id", SHA256, ForeignKey("model.model_id"), nullable=False),
    Column("changed_at", TIME, nullable=False),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index(None, "model_id"),
)
"""Rows are only added; the last version of a name is the one in force."""
