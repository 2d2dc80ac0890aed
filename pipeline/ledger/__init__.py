"""The ledger: deletion requests, batches that serve them, models that came of them, and a history that cannot be rewritten."""
