"""The commands of the schedule: tick, serve, status, install. What they need is imported inside them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.answering import AsJson, KeyFile, LedgerUrl, answering

if TYPE_CHECKING:
    from launch.ahead import Ahead, Queue
    from launch.desk import Desk
    from launch.signals.emit import Settings

__all__ = ["add_to", "decide", "install", "serve", "status", "tick"]

PolicyName = Annotated[str, typer.Option("--policy", metavar="NAME|FILE", help="A name in configs/schedule, or a YAML file.")]
LogJson = Annotated[
    str,
    typer.Option("--log-json", metavar="FILE|-", help="Add a line of JSON for each event; -: standard error. UNLEARN_LOG_JSON."),
]
Webhook = Annotated[
    str,
    typer.Option("--webhook", metavar="URL", help="POST events there, signed; see UNLEARN_WEBHOOK_SECRET_FILE. UNLEARN_WEBHOOK."),
]
OpenLineage = Annotated[
    str, typer.Option("--openlineage", metavar="FILE|URL", help="OpenLineage events of runs. UNLEARN_OPENLINEAGE.")
]
COLUMNS = ("batch", "line", "state", "requests", "due", "attempts", "failure", "worked on by", "until", "folder")
SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Give the application these commands."""
    group = typer.Typer(no_args_is_help=True, help="Close batches when it is time, run them, and look after them.")
    group.command()(tick)
    group.command()(serve)
    group.command()(status)
    group.command()(decide)
    group.command()(install)
    app.add_typer(group, name="schedule")


@contextlib.contextmanager
def _desk(policy: str, ledger: str, pseudonym_key: str, *, to_stderr: bool, signals: Settings | None = None) -> Iterator[Desk]:
    from launch.desk import Desk
    from launch.policy import read_policy
    from pipeline.claim import this_process
    from pipeline.ledger.store import open_ledger

    speech = sys.stderr if to_stderr else sys.stdout
    with open_ledger(ledger, create=False, key_file=pseudonym_key) as opened:
        yield Desk(
            opened,
            read_policy(policy),
            owner=this_process(),
            say=lambda line: print(line, file=speech, flush=True),
            to_stderr=to_stderr,
            signals=signals,
        )


def _settings(log_json: str, webhook: str, openlineage: str) -> Settings:
    """Where signals go; what is empty, the environment says."""
    from launch.signals.emit import Settings

    return Settings(log_json=log_json, webhook=webhook, openlineage=openlineage)


def tick(
    policy: PolicyName = "standard",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be closed and worked on; change nothing.")] = False,
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    log_json: LogJson = "",
    webhook: Webhook = "",
    openlineage: OpenLineage = "",
    as_json: AsJson = False,
) -> None:
    """Do once what is due: close batches, run or send them, record their ends. Safe from cron, and on many hosts at once."""
    signals = _settings(log_json, webhook, openlineage)
    with answering(), _desk(policy, ledger, pseudonym_key, to_stderr=as_json, signals=signals) as desk:
        from launch.schedule import free_batches
        from launch.schedule import tick as do_tick
        from launch.serve_schedule import tick_line
        from launch.show import print_json

        if dry_run:
            ahead, now = _look_ahead(desk)
            due = [queue for queue in ahead.queues if queue.closes_at and queue.closes_at <= now]
            free = free_batches(desk)
            if as_json:
                print_json({"would_close": due, "would_work_on": free, "dangers": ahead.dangers})
                return
            print("\n".join(f"{queue.line}: {queue.waiting} requests: would be closed ({queue.closes_by})" for queue in due))
            print("\n".join(f"{name}: would be worked on" for name in free) or "no batch would be worked on")
            return
        done = do_tick(desk)
        if as_json:
            print_json(done)
        elif not done.closed and not done.steps:
            print(tick_line(done))


def serve(
    policy: PolicyName = "standard",
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    log_json: LogJson = "",
    webhook: Webhook = "",
    openlineage: OpenLineage = "",
) -> None:
    """Tick again and again, one line a tick, until told to leave: for machines without cron."""
    signals = _settings(log_json, webhook, openlineage)
    with answering(), _desk(policy, ledger, pseudonym_key, to_stderr=False, signals=signals) as desk:
        from launch.serve_schedule import serve_schedule

        serve_schedule(desk)


def _look_ahead(desk: Desk) -> tuple[Ahead, str]:
    from launch.ahead import look_ahead

    with desk.ledger.read() as tx:
        return look_ahead(tx, desk.policy), tx.now


def status(policy: PolicyName = "standard", ledger: LedgerUrl = "", pseudonym_key: KeyFile = "", as_json: AsJson = False) -> None:
    """Say what waits, when it is closed, how the batches are, and which due dates are in danger."""
    with answering(), _desk(policy, ledger, pseudonym_key, to_stderr=as_json) as desk:
        from launch.ahead import danger_line
        from launch.show import print_json, print_table
        from pipeline.ledger import batches

        ahead, _ = _look_ahead(desk)
        with desk.ledger.read() as tx:
            rows = batches.listing(tx, limit=SHOWN)
        if as_json:
            print_json({"queues": ahead.queues, "batches": rows, "dangers": ahead.dangers})
            return
        lines = [[*_queue_cells(queue), _span(queue.seconds)] for queue in ahead.queues]
        print_table(["line", "waiting", "nearest due", "closes", "by", "a batch takes"], lines)
        print()
        print_table(list(COLUMNS), [_cells(row) for row in rows])
        for danger in ahead.dangers:
            print(f"in danger: {danger_line(danger)}")


def _queue_cells(queue: Queue) -> list[str]:
    return [queue.line, str(queue.waiting), queue.nearest_due[:16] or "-", queue.closes_at[:16] or "-", queue.closes_by]


def _span(seconds: float | None) -> str:
    return "not computed" if seconds is None else f"{seconds:.0f} s"


def _cells(row: dict[str, Any]) -> list[str]:
    owner = (row["lease_owner"] or "").split("/")[0]
    times = [row["due_at"][:16], str(row["attempts"]), row["failure"], owner, (row["lease_until"] or "")[:16]]
    return [row["batch_id"], row["line"], row["state"], str(row["requests_count"]), *times, row["folder"]]


def decide(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="A batch that is held, as `unlearn schedule status` shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Goes into the history as it is: no personal data.")],
    apart: Annotated[bool, typer.Option("--apart", help="Give the batch up; its requests go back to the queue.")] = False,
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Let a batch that is held for a person be tried again, or take it apart."""
    with answering():
        from launch.batch_steps import decide as settle
        from launch.show import print_json
        from pipeline.ledger.store import open_ledger

        with open_ledger(ledger, create=False, key_file=pseudonym_key) as opened:
            state = settle(opened, batch, apart=apart, reason=reason)
        if as_json:
            print_json({"batch": batch, "state": state})
            return
        print(f"{batch}: {'its requests wait for another batch' if apart else 'the next tick tries it again'}")


def install(
    kind: Annotated[str, typer.Option("--print", metavar="cron|systemd|slurm|kubernetes", help="What the text is for.")],
    policy: PolicyName = "standard",
    minutes: Annotated[int, typer.Option("--minutes", help="Between two ticks.")] = 5,
    folder: Annotated[str, typer.Option("--folder", help="Where ticks run; by default here.")] = "",
    log: Annotated[str, typer.Option("--log", help="File of what ticks say; by default schedule.log there.")] = "",
    image: Annotated[str, typer.Option("--image", help="For kubernetes: the container image.")] = "unlearn:latest",
    ledger: LedgerUrl = "",
    pseudonym_key: KeyFile = "",
) -> None:
    """Print what lets a machine tick by itself; nothing is installed."""
    with answering():
        from launch.policy import read_policy
        from launch.schedule_install import Filling, install_text
        from pipeline.storage import absolute

        read_policy(policy)
        here = absolute(folder or os.getcwd())
        filling = Filling(
            ledger=ledger or f"sqlite:///{here}/unlearn-ledger.sqlite",
            pseudonym_key=absolute(pseudonym_key or f"{here}/unlearn-ledger.key"),
            policy=absolute(policy) if policy.endswith((".yaml", ".yml")) else policy,
            folder=here,
            program=shutil.which("unlearn") or "unlearn",
            log=absolute(log or f"{here}/schedule.log"),
            image=image,
            minutes=minutes,
        )
        print(install_text(kind, filling), end="")
