"""Ledgers to work on, with a clock that tests move."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest

from pipeline.ledger.store import Ledger, open_ledger

START = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)


class Clock:
    """Says the time that it was set to."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime.datetime:
        return self.time

    def move(self, **span: float) -> None:
        """Move by days, hours, minutes or seconds, back as well."""
        self.time += datetime.timedelta(**span)


@pytest.fixture
def clock() -> Clock:
    """The clock of `ledger`; it stands still."""
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    """A new ledger on each kind of database."""
    with open_ledger(ledger_url, actor="tester", clock=clock) as opened:
        yield opened


@pytest.fixture
def sqlite_ledger(tmp_path: object, clock: Clock) -> Iterator[Ledger]:
    """A new ledger in a file."""
    with open_ledger(f"sqlite:///{tmp_path}/own.sqlite", actor="tester", clock=clock) as opened:
        yield opened
