"""The commands for deletion requests: add, import, list, show, withdraw, extend. What they need is imported inside them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from launch.answering import AsJson, LedgerUrl, answering
from launch.cli_intake import add, import_requests
from pipeline.errors import ConfigError

__all__ = ["add_to", "request_rows"]

Line = Annotated[str, typer.Option("--line", metavar="RUN", help="Only of this model line, as the list shows it.")]
Name = Annotated[str, typer.Argument(metavar="REQUEST", help="A request's name, as `unlearn requests list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Goes into the history as it is: no personal data.")]


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    group = typer.Typer(no_args_is_help=True, help="Deletion requests: take them in, list, extend and withdraw them.")
    group.command()(add)
    group.command("import")(import_requests)
    group.command("list")(list_requests)
    group.command()(show)
    group.command()(withdraw)
    group.command()(extend)
    app.add_typer(group, name="requests")


def request_rows(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of requests: counts and states, no values."""
    columns = ["request", "line", "kind", "values", "state", "received", "due", "batch", "sent"]
    rows = []
    for row in found:
        first = [row["request_id"], row["line"], row["kind"], str(row["values_count"]), row["state"]]
        rows.append([*first, row["received_at"][:10], row["due_at"][:10], row["batch_id"] or "-", str(row["repeats"] + 1)])
    return columns, rows


def list_requests(
    line: Line = "",
    state: Annotated[str, typer.Option("--state", help="Only those in this state.")] = "",
    overdue: Annotated[bool, typer.Option("--overdue", help="Only open ones whose due date has passed.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, nearest due dates first.")] = 100,
    ledger: LedgerUrl = "",
    as_json: AsJson = False,
) -> None:
    """List requests by due date, and count their states."""
    with answering():
        from launch.show import print_json, print_table
        from pipeline.decode import closest
        from pipeline.ledger.requests import counts, listing
        from pipeline.ledger.states import REQUEST_MOVES
        from pipeline.ledger.store import open_ledger
        from pipeline.storage import absolute

        line = absolute(line) if line.endswith((".yaml", ".yml")) else line
        if state and state not in REQUEST_MOVES:
            raise ConfigError(f"--state {state}: no such state", closest(state, list(REQUEST_MOVES)))
        with open_ledger(ledger, create=False) as opened, opened.read() as tx:
            found, states = listing(tx, line=line, state=state, overdue=overdue, limit=limit), counts(tx, line)
        if as_json:
            print_json({"states": states, "requests": found})
            return
        if found:
            print_table(*request_rows(found))
        print(", ".join(f"{count} {name}" for name, count in states.items()) or "no request")


def show(
    request: Name,
    values: Annotated[bool, typer.Option("--values", help="Show its values and note as well: personal data.")] = False,
    ledger: LedgerUrl = "",
    as_json: AsJson = False,
) -> None:
    """Show a request, its batches and its history."""
    with answering():
        from launch.show import print_json, print_table
        from pipeline.ledger.requests import show as read
        from pipeline.ledger.requests import values_of
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False) as opened, opened.read() as tx:
            found = read(tx, request)
            wanted = values_of(tx, request) if values else ()
        for name in ("fingerprint", "values_digest", *(() if values else ("note",))):
            del found[name]
        if as_json:
            print_json({**found, **({"values": wanted} if values else {})})
            return
        told = found.pop("history")
        found["batches"] = ", ".join(f"{one['batch_id']} ({one['outcome']})" for one in found["batches"])
        for name, value in found.items():
            if value not in (None, ""):
                print(f"{name + ':':<15}{value}")
        for value in wanted:
            print(f"{'value:':<15}{value}")
        print()
        print_table(
            ["entry", "at", "by", "what", "event"],
            [[str(one["seq"]), one["at"][:19], one["actor"], f"{one['what']} {one['name']}", one["event"]] for one in told],
        )


def withdraw(request: Name, reason: Reason = "", ledger: LedgerUrl = "", as_json: AsJson = False) -> None:
    """Take a request back, before a run has begun with it."""
    with answering():
        from launch.show import print_json
        from pipeline.ledger import requests
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False) as opened, opened.write() as tx:
            requests.withdraw(tx, request, reason)
        print_json({"request": request, "state": "withdrawn"}) if as_json else print(f"request {request}: withdrawn")


def extend(
    request: Name,
    months: Annotated[int, typer.Option("--months", help="1 or 2.")] = 2,
    reason: Reason = "",
    ledger: LedgerUrl = "",
    as_json: AsJson = False,
) -> None:
    """Move a request's due date, once; the person must be told why before it passes."""
    with answering():
        from launch.show import print_json
        from pipeline.ledger import requests
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False) as opened, opened.write() as tx:
            due = requests.extend(tx, request, months, reason)
        print_json({"request": request, "due_at": due}) if as_json else print(f"request {request}: due {due[:10]}")
