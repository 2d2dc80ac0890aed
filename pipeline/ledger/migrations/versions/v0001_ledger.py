"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CLOSED = sa.text("state IN ('released', 'withdrawn', 'refused')")
BATCHED = sa.text("batch_id IS NOT NULL")
OPEN = sa.text("state NOT IN ('released', 'withdrawn', 'refused')")
REFUSAL = "rows of this table are never changed or removed"
APPEND_ONLY = ("history", "alias")


def upgrade() -> None:
    """Make the tables, and let no program change what is append-only."""
    _tables()
    if op.get_bind().dialect.name == "sqlite":
        for table in APPEND_ONLY:
            for act in ("UPDATE", "DELETE"):
                body = f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
                op.execute(f"CREATE TRIGGER {table}_no_{act.lower()} BEFORE {act} ON {table} {body}")
        return
    body = f"BEGIN RAISE EXCEPTION '{REFUSAL}'; END"
    op.execute(f"CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    for table in APPEND_ONLY:
        acts = "BEFORE UPDATE OR DELETE OR TRUNCATE"
        op.execute(f"CREATE TRIGGER {table}_no_change {acts} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()")


def _tables() -> None:
    op.create_table(
        "batch",
        sa.Column("batch_id", sa.String(length=64), nullable=False),
        sa.Column("line", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("closed_at", sa.String(length=27), nullable=False),
        sa.Column("due_at", sa.String(length=27), nullable=False),
        sa.Column("requests_count", sa.Integer(), nullable=False),
        sa.Column("requests_digest", sa.String(length=64), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_number", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.String(length=27), nullable=True),
        sa.Column("next_try_at", sa.String(length=27), nullable=True),
        sa.Column("jobs", sa.JSON(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batch")),
    )
    op.create_index(op.f("ix_batch_state"), "batch", ["state"], unique=False)
    op.create_table(
        "head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_head")),
    )
    op.create_table(
        "history",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.String(length=27), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_history")),
    )
    op.create_index(op.f("ix_history_what_name"), "history", ["what", "name"], unique=False)
    op.create_table(
        "model",
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("line", sa.String(length=255), nullable=False),
        sa.Column("batch_id", sa.String(length=64), nullable=True),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("made_at", sa.String(length=27), nullable=False),
        sa.Column("kept_until", sa.String(length=27), nullable=True),
        sa.Column("removed_at", sa.String(length=27), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=True),
        sa.Column("digests", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.batch_id"], name=op.f("fk_model_batch_id_batch")),
        sa.ForeignKeyConstraint(["parent"], ["model.model_id"], name=op.f("fk_model_parent_model")),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_model")),
    )
    op.create_index(op.f("ix_model_batch_id"), "model", ["batch_id"], unique=False)
    op.create_index(op.f("ix_model_line"), "model", ["line"], unique=False)
    op.create_table(
        "request",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=32), nullable=False),
        sa.Column("line", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=34), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("values_digest", sa.String(length=64), nullable=False),
        sa.Column("values_count", sa.Integer(), nullable=False),
        sa.Column("copies", sa.String(length=16), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("received_at", sa.String(length=27), nullable=False),
        sa.Column("queued_at", sa.String(length=27), nullable=False),
        sa.Column("due_at", sa.String(length=27), nullable=False),
        sa.Column("extended_from", sa.String(length=27), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.String(length=64), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.batch_id"], name=op.f("fk_request_batch_id_batch")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request")),
    )
    op.create_index("ix_request_batch_id", "request", ["batch_id"], sqlite_where=BATCHED, postgresql_where=BATCHED)
    op.create_index("ix_request_closed", "request", ["fingerprint"], sqlite_where=CLOSED, postgresql_where=CLOSED)
    op.create_index(op.f("ix_request_due_at_request_id"), "request", ["due_at", "request_id"], unique=False)
    op.create_index(op.f("ix_request_line_state_due_at"), "request", ["line", "state", "due_at"], unique=False)
    op.create_index(op.f("ix_request_subject"), "request", ["subject"], unique=False)
    op.create_index("uq_request_open", "request", ["fingerprint"], unique=True, sqlite_where=OPEN, postgresql_where=OPEN)
    op.create_table(
        "alias",
        sa.Column("line", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("changed_at", sa.String(length=27), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_alias_model_id_model")),
        sa.PrimaryKeyConstraint("line", "name", "version", name=op.f("pk_alias")),
    )
    op.create_index(op.f("ix_alias_model_id"), "alias", ["model_id"], unique=False)
    op.create_table(
        "batch_request",
        sa.Column("batch_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.batch_id"], name=op.f("fk_batch_request_batch_id_batch")),
        sa.ForeignKeyConstraint(["request_id"], ["request.request_id"], name=op.f("fk_batch_request_request_id_request")),
        sa.PrimaryKeyConstraint("batch_id", "request_id", name=op.f("pk_batch_request")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_batch_request_request_id"), "batch_request", ["request_id"], unique=False)
    op.create_table(
        "model_object",
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_model_object_model_id_model")),
        sa.PrimaryKeyConstraint("model_id", "uri", "version", "role", name=op.f("pk_model_object")),
    )
    op.create_index(op.f("ix_model_object_uri"), "model_object", ["uri"], unique=False)
    op.create_table(
        "request_value",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["request.request_id"], name=op.f("fk_request_value_request_id_request")),
        sa.PrimaryKeyConstraint("request_id", "value", name=op.f("pk_request_value")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_request_value_value"), "request_value", ["value"], unique=False)
