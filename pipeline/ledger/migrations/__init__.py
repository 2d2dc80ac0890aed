"""How ledgers of older versions become one of this version, as an Alembic script directory."""
