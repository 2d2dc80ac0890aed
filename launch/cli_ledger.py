"""The commands for the ledger itself: init and check."""

from __future__ import annotations

import typer

from launch.answering import AsJson, KeyFile, LedgerUrl, answering

__all__ = ["add_to", "check", "init"]


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    group = typer.Typer(no_args_is_help=True, help="Make the ledger of deletion requests, and check its history.")
    group.command()(init)
    group.command()(check)
    app.add_typer(group, name="ledger")


def init(ledger: LedgerUrl = "", pseudonym_key: KeyFile = "", as_json: AsJson = False) -> None:
    """Make a ledger and its pseudonym key, or bring the tables of an older one up to date."""
    with answering():
        from launch.show import print_json
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, key_file=pseudonym_key) as opened, opened.read() as tx:
            facts = {"ledger": opened.name, "pseudonym_key": opened.key_file, "entries": tx.seq}
        if as_json:
            print_json(facts)
            return
        print(f"ledger: {facts['ledger']}, {facts['entries']} entries in its history")
        print(f"pseudonym key: {facts['pseudonym_key']}; keep a copy apart from the ledger's")


def check(ledger: LedgerUrl = "", as_json: AsJson = False) -> None:
    """Recompute the history's chain of hashes: what was changed, removed, added or moved is named."""
    with answering():
        from launch.show import print_json
        from pipeline.decode import plain
        from pipeline.errors import IntegrityError
        from pipeline.ledger import history
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False) as opened:
            faults = history.check(opened)
            with opened.read() as tx:
                facts = {"ledger": opened.name, "entries": tx.seq, "hash": tx.hash}
        if as_json:
            print_json({**facts, "faults": [plain(fault) for fault in faults]})
        if faults:
            lead = f"{facts['ledger']}: {len(faults)} faults in the history"
            raise IntegrityError("\n  ".join([lead, *(fault.text for fault in faults)]), "restore the ledger from its backup")
        if not as_json:
            print(f"{facts['entries']} entries, each sealed with the hash of the one before; the last is {facts['hash']}")
