"""What will be closed when, and which due dates the queue cannot meet; where nothing tells how long a batch takes, no guess."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.ahead import Ahead, danger_line, look_ahead
from launch.policy import SchedulePolicy
from launch.schedule import tick
from pipeline.ledger import batches, requests
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.schedule import FakeRunner, ask, desk_of, write_line, write_policy

START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


class Clock:
    """Says the time that it was set to."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime.datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", actor="tester", clock=clock) as opened:
        yield opened


def ahead(ledger: Ledger, **fields: Any) -> Ahead:
    with ledger.read() as tx:
        return look_ahead(tx, SchedulePolicy(**fields))


def test_the_next_closing_is_the_first_of_its_conditions(ledger: Ledger) -> None:
    ask(ledger, "line", "k1", due_at="2026-03-20")
    (queue,) = ahead(ledger).queues
    assert (queue.waiting, queue.closes_at[:10], queue.closes_by, queue.seconds) == (1, "2026-03-08", "time", None)
    assert ahead(ledger, before_due="15d").queues[0].closes_by == "due"
    assert ahead(ledger, count=1).queues[0].closes_by == "count"
    assert ahead(ledger, count=2).queues[0].closes_by == "time"
    assert ahead(ledger, lines={"other": {}}).queues == ()


def test_without_earlier_batches_only_what_has_passed_is_known(ledger: Ledger, clock: Clock) -> None:
    ask(ledger, "line", "k1", due_at="2026-03-01T00:10")
    assert ahead(ledger).dangers == ()
    clock.time += datetime.timedelta(hours=1)
    (danger,) = ahead(ledger).dangers
    assert (danger.what, danger.why, danger.done_at) == ("waiting", "overdue", "")


def test_earlier_batches_tell_when_the_queue_is_done(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    line = write_line(tmp_path)
    ask(ledger, line, "k1")
    tick(desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal")))  # two stages of an hour each
    for number in range(3):
        ask(ledger, line, f"late{number}", due_at=f"2026-03-01T0{3 + number}:00")
        with ledger.write() as tx:
            batches.close(tx, line)
    found = ahead(ledger)
    assert found.queues[0].seconds == 7200
    # Done at 2:00, 4:00 and 6:00; due at 3:00, 4:00 and 5:00.
    (danger,) = found.dangers
    assert (danger.what, danger.why, danger.done_at[:16]) == ("b-000004", "late", "2026-03-01T06:00")
    assert "1 requests due 2026-03-01T05:00Z: late; done at 2026-03-01T06:00Z" in danger_line(danger)


def test_waiting_requests_are_closed_first_and_run_then(ledger: Ledger, tmp_path: Path) -> None:
    line = write_line(tmp_path)
    ask(ledger, line, "k1")
    tick(desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal")))
    ask(ledger, line, "k2", due_at="2026-03-08T01:00")
    (danger,) = ahead(ledger, before_due="0").dangers
    assert (danger.what, danger.why, danger.done_at[:16]) == ("waiting", "late", "2026-03-08T02:00")
    assert ahead(ledger, before_due="3h").dangers == ()


def test_held_requests_are_in_danger(ledger: Ledger) -> None:
    name = ask(ledger, "line", "k1", due_at="2026-03-20")
    with ledger.write() as tx:
        requests.move(tx, [name], "held")
    (danger,) = ahead(ledger).dangers
    assert (danger.what, danger.why, danger.requests) == ("held", "held", 1)
