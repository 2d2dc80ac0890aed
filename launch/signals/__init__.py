"""What the ledger and its runs tell other programs: log lines, metrics, webhooks, OpenLineage. None of it holds personal data."""
