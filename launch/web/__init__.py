"""The page for people: what the ledger and the run folders hold, read only, from a server or as files."""
