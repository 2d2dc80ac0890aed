"""A tick closes, claims, runs, records and retries; whatever happens to it, no batch is lost and none is run twice."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from launch.schedule import Tick, free_batches, tick
from pipeline.errors import StorageError
from pipeline.ledger import batches, history, requests
from pipeline.ledger.schema import BATCH, REQUEST
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.schedule import FakeRunner, ask, desk_of, write_line, write_policy


def states(ledger: Ledger) -> dict[str, str]:
    with ledger.read() as tx:
        return {row["batch_id"]: row["state"] for row in reversed(batches.listing(tx))}


def of(done: Tick) -> dict[str, str]:
    return {step.batch_id: step.state for step in done.steps}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def ledger(ledger_url: str, place: Path) -> Any:
    with open_ledger(ledger_url, actor="tester") as opened:
        yield opened


def test_one_tick_closes_runs_and_records(ledger: Ledger, place: Path) -> None:
    line, said = write_line(place), list[str]()
    ask(ledger, line, "train-000001")
    desk = desk_of(ledger, write_policy(place), FakeRunner(place / "journal"), said=said)
    done = tick(desk)
    assert done.closed == ("b-000001",) and of(done) == {"b-000001": "evaluated"} and done.dangers == ()
    with ledger.read() as tx:
        row = batches.find(tx, "b-000001")
        assert requests.counts(tx) == {"evaluated": 1}
        events = [entry["event"] for entry in history.entries(tx, "batch", "b-000001")]
        (made,) = history.entries(tx, "run", row["folder"])
    assert row["lease_until"] is None and Path(row["folder"]).parent == place / "runs" and row["attempts"] == 1
    assert events == ["closed", "claimed", "running", "evaluated"]
    assert made["event"] == "models made"
    assert said == ["b-000001: closed", "b-000001: evaluated"]
    assert tick(desk).steps == ()  # released by hand: nothing is left to do
    assert not history.check(ledger)


def test_a_line_s_batches_run_one_after_the_other_and_lines_beside_each_other(ledger: Ledger, place: Path) -> None:
    first, second = write_line(place, "first"), write_line(place, "second")
    for number in range(2):
        ask(ledger, first, f"train-{number:06d}")
    ask(ledger, second, "train-000009")
    seen: list[list[str]] = []
    runner = FakeRunner(place / "journal", meanwhile=lambda: seen.append(free_batches(other)))
    desk = desk_of(ledger, write_policy(place, most=1), runner)
    other = desk_of(ledger, desk.policy, runner, owner="host-2")
    assert of(tick(desk)) == dict.fromkeys(("b-000001", "b-000002", "b-000003"), "evaluated")
    # While the first line's first batch ran, only the other line's was free.
    assert seen[0] == ["b-000003"] and len(seen) == 3


def test_lines_that_are_not_the_schedule_s_are_left_alone(ledger: Ledger, place: Path) -> None:
    line = write_line(place)
    ask(ledger, line, "train-000001")
    ask(ledger, "someone else's", "train-000001")
    desk = desk_of(ledger, write_policy(place, lines={line: {"overrides": ["seed=3"]}}), FakeRunner(place / "journal"))
    assert list(of(tick(desk)).values()) == ["evaluated"]
    with ledger.read() as tx:
        assert requests.counts(tx, "someone else's") == {"queued": 1}


def test_two_processes_at_once_run_each_batch_once(ledger_url: str, place: Path) -> None:
    lines = [write_line(place, f"line{number}") for number in range(4)]
    with open_ledger(ledger_url) as ledger:
        for line in lines:
            ask(ledger, line, "train-000001")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_tick_once, args=(ledger_url, str(place), name, 0.2)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    runner = FakeRunner(place / "journal")
    assert sorted(runner.told("start")) == sorted(runner.told("work")) == [f"b-{number:06d}" for number in range(1, 5)]
    with open_ledger(ledger_url) as ledger:
        assert set(states(ledger).values()) == {"evaluated"} and not history.check(ledger)


def _tick_once(url: str, place: str, owner: str, pause: float) -> None:
    runner = FakeRunner(Path(place) / "journal", meanwhile=lambda: time.sleep(pause))
    with open_ledger(url) as ledger:
        tick(desk_of(ledger, write_policy(Path(place)), runner, owner=owner))


class Killed(BaseException):
    """Nothing that a `finally` writes after it arrives, as with a killed process."""


def tick_until(ledger: Ledger, desk: Any, statement: int) -> bool:
    """Tick, and die before the n-th statement that reaches the database; False: it came to its end before."""
    count = 0

    def watch(*given: Any) -> None:
        nonlocal count
        count += 1
        if count >= statement:
            raise Killed

    sa.event.listen(ledger.engine, "before_cursor_execute", watch)
    try:
        tick(desk)
    except Killed:
        return True
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", watch)
    return False


def without_waiting_for_the_disk(connection: Any, record: object) -> None:
    """What is killed here is a program, not a machine."""
    connection.execute("PRAGMA synchronous = OFF")


@pytest.mark.parametrize("most", [2, pytest.param(1, marks=pytest.mark.services)])
def test_killed_at_any_statement_no_batch_is_lost_and_none_run_twice(tmp_path: Path, most: int) -> None:
    names = ["b-000001"] if most == 2 else ["b-000001", "b-000002"]
    died, statement = True, 0
    line = write_line(tmp_path)
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        ask(ledger, line, "train-000001", name="r1")
        ask(ledger, line, "train-000002", name="r2")
    while died:
        statement += 1
        place = tmp_path / str(statement)
        place.mkdir()
        for kind in ("sqlite", "key"):
            shutil.copy(tmp_path / f"ledger.{kind}", place)
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        with open_ledger(f"sqlite:///{place}/ledger.sqlite") as ledger:
            sa.event.listen(ledger.engine, "connect", without_waiting_for_the_disk)
            runner, policy = FakeRunner(place / "journal"), write_policy(place, most=most, lease_seconds=600)
            died = tick_until(ledger, desk_of(ledger, policy, runner), statement)
            # Another host, once the dead one's lease has run out.
            with ledger.write() as tx:
                tx.execute(
                    sa.update(BATCH).where(BATCH.c.lease_until.is_not(None)).values(lease_until="2026-01-01T00:00:00.000000Z")
                )
            other = desk_of(ledger, policy, runner, owner="host-2")
            tick(other)
            with ledger.read() as tx:
                found = batches.listing(tx)
                assert [row["state"] for row in found] == ["evaluated"] * len(names), statement
                kept = sorted(tuple(row) for row in tx.execute(sa.select(REQUEST.c.request_id, REQUEST.c.state)))
            assert kept == [("r1", "evaluated"), ("r2", "evaluated")]
            assert sorted(runner.told("work")) == names, statement
            # Each start was written down before: as many as the ledger counts, or one that was never made.
            assert all(row["attempts"] - runner.told("start").count(row["batch_id"]) in (0, 1) for row in found), statement
            assert len(runner.told("start")) <= len(names) + 1
            assert not history.check(ledger)
    assert statement > 60


@pytest.mark.parametrize("after", ["start", "work"])
def test_a_process_that_is_killed_in_its_run_is_followed_by_another(ledger_url: str, place: Path, after: str) -> None:
    line = write_line(place)
    with open_ledger(ledger_url) as ledger:
        ask(ledger, line, "train-000001")
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_killed_in, args=(ledger_url, str(place), after))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    runner = FakeRunner(place / "journal")
    with open_ledger(ledger_url) as ledger:
        policy = write_policy(place)
        desk = desk_of(ledger, policy, runner, owner="host-2")
        assert tick(desk).steps == ()  # the dead worker's lease still counts
        assert states(ledger) == {"b-000001": "running"}
        deadline = time.monotonic() + 10
        while not (done := tick(desk).steps) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [step.state for step in done] == ["evaluated"]
        with ledger.read() as tx:
            told = [(entry["event"], "lost" in entry["detail"]) for entry in history.entries(tx, "batch", "b-000001")]
    assert runner.told("start") == ["b-000001"] * 2 and runner.told("work") == ["b-000001"]
    assert ("failed", True) in told and [event for event, _ in told].count("running") == 2


def _killed_in(url: str, place: str, after: str) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    runner = FakeRunner(Path(place) / "journal", meanwhile=die if after == "start" else lambda: None)
    if after == "work":
        written = runner._write

        def write(what: str, run: Any) -> None:
            written(what, run)
            if what == "work":
                Path(run.folder, "done").write_text("")
                die()

        runner._write = write  # type: ignore[method-assign]
    with open_ledger(url) as ledger:
        tick(desk_of(ledger, write_policy(Path(place), lease_seconds=1.5), runner))


def test_a_worker_whose_lease_was_taken_ends_its_run_and_records_nothing(ledger: Ledger, place: Path) -> None:
    line = write_line(place)
    ask(ledger, line, "train-000001")

    def overslept() -> None:
        """Another host takes the batch; then the heartbeat of this one finds out."""
        with ledger.write() as tx:
            tx.execute(sa.update(BATCH).values(lease_owner="host-2", lease_number=BATCH.c.lease_number + 1))
        time.sleep(5)

    runner = FakeRunner(place / "journal", meanwhile=overslept)
    began = time.monotonic()
    done = tick(desk_of(ledger, write_policy(place, lease_seconds=0.4), runner))
    assert time.monotonic() - began < 4
    assert of(done) == {"b-000001": "taken over"} and states(ledger) == {"b-000001": "running"}
    assert runner.told("work") == []


def test_a_ledger_that_is_away_ends_the_tick_by_name(ledger: Ledger, place: Path) -> None:
    desk = desk_of(ledger, write_policy(place), FakeRunner(place / "journal"))
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE alias"))
        connection.execute(sa.text("ALTER TABLE head RENAME TO elsewhere"))
    with pytest.raises(StorageError, match="the database refused"):
        tick(desk)
