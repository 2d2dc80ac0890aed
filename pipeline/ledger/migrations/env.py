"""What Alembic runs: all missing versions in the one transaction that `pipeline.ledger.store` began."""

from __future__ import annotations

from alembic import context

from pipeline.ledger.schema import METADATA

# SQLite changes a table by copying it; Alembic calls that a batch.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=False,
    render_as_batch=True,
)
context.run_migrations()
