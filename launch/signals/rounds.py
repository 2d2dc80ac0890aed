"""What a scheduler tells at the end of each round: what became of batches, which due dates are near or past, that it lives."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import sqlalchemy as sa

from launch.signals.emit import Settings, Signals, open_signals
from launch.signals.measures import SOON_SECONDS
from pipeline.ledger.deadlines import later
from pipeline.ledger.schema import REQUEST
from pipeline.ledger.states import FINAL

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["begin_rounds", "tell_due_dates", "tell_round"]


def tell_due_dates(signals: Signals, ledger: Ledger) -> None:
    """Tell of each line with open requests that are overdue or due within seven days: how many, and the nearest date.

    Said again only when the nearest date is another one.
    """
    with ledger.read() as tx:
        now, found = tx.now, []
        is_open, due = REQUEST.c.state.not_in(FINAL), REQUEST.c.due_at
        for event, when in (("overdue", due < now), ("due_soon", sa.and_(due >= now, due <= later(now, SOON_SECONDS)))):
            query = sa.select(REQUEST.c.line, sa.func.count(), sa.func.min(due)).where(is_open, when).group_by(REQUEST.c.line)
            found += [(event, *map(str, row)) for row in tx.execute(query)]
    for event, line, number, nearest in found:
        signals.signal(event, line=line, requests=int(number), due_at=nearest)


def begin_rounds(ledger: Ledger, settings: Settings | None = None) -> None:
    """Note where the history ends, before the first round: what happens from now on is told. Raises as `tell_round` does."""
    open_signals(settings, ledger).close()


def tell_round(
    ledger: Ledger,
    settings: Settings | None = None,
    *,
    seconds: float,
    closed: float,
    claimed: float,
    failed: float,
    deliver_seconds: float = 20.0,
) -> None:
    """Tell all that one round of a scheduler has to tell; nothing where no signals are set up.

    Call it when all is committed. A receiver that is away keeps it no longer than `deliver_seconds` and one request more.

    Args:
        ledger: whose history is followed.
        settings: None: the environment's.
        seconds: that the round took.
        closed, claimed, failed: batches.
        deliver_seconds: begin to send nothing new after so long.

    Raises:
        ConfigError: bad settings.
        StorageError: the ledger or the outbox cannot be opened.
    """
    with open_signals(settings, ledger) as signals:
        if signals.idle:
            return
        signals.follow()
        tell_due_dates(signals, ledger)
        signals.signal(
            "tick", host=socket.gethostname(), seconds=round(seconds, 3), closed=closed, claimed=claimed, failed=failed
        )
        signals.deliver(deliver_seconds)
