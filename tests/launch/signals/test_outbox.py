"""Each event waits once, is held by one sender at a time, and waits longer after each failure."""

from __future__ import annotations

import multiprocessing
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.signals.outbox import FIRST_WAIT, HELD_SECONDS, KEPT_SECONDS, LONGEST_WAIT, Item, Outbox, Undelivered, read_mark
from pipeline.errors import StorageError


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    """It stands still."""
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    """A new one."""
    opened = Outbox(str(tmp_path / "out.sqlite"), clock)
    yield opened
    opened.close()


def test_an_event_is_put_once_for_each_target_even_after_it_was_sent(outbox: Outbox) -> None:
    assert outbox.put("webhook", "e1", "overdue", "{}")
    assert not outbox.put("webhook", "e1", "overdue", "{}")
    assert outbox.put("openlineage", "e1", "overdue", "{}")
    taken: list[Item] = []
    assert outbox.deliver(taken.append, seconds=5) == (2, 0)
    assert {item.target for item in taken} == {"webhook", "openlineage"}
    assert not outbox.put("webhook", "e1", "overdue", "{}") and outbox.waiting() == 0


def test_what_was_told_at_once_is_noted_and_not_sent(outbox: Outbox) -> None:
    assert outbox.note("log", "e1", "overdue") and not outbox.note("log", "e1", "overdue")
    assert outbox.waiting() == 0 and outbox.take() is None


def test_a_failed_event_waits_and_is_tried_again(outbox: Outbox, clock: Clock) -> None:
    outbox.put("webhook", "e1", "overdue", "{}")

    def refuse(item: Item) -> None:
        raise Undelivered("status 500")

    waits = []
    for attempt in range(14):
        assert outbox.deliver(refuse, seconds=5) == (0, 1), attempt
        assert outbox.take() is None and outbox.waiting() == 1
        start = clock.time
        while (item := outbox.take()) is None:
            clock.time += 1.0
        waits.append(clock.time - start)
        clock.time += HELD_SECONDS  # a sender that took it has died
        assert item.attempts == attempt + 1
    assert FIRST_WAIT * 0.7 < waits[0] < FIRST_WAIT * 1.5
    assert all(wait <= LONGEST_WAIT * 1.25 + 1 for wait in waits) and waits[-1] > LONGEST_WAIT * 0.7
    assert outbox.deliver(lambda item: None, seconds=5) == (1, 0)


def test_what_one_sender_holds_another_leaves_until_the_first_must_be_dead(outbox: Outbox, clock: Clock) -> None:
    outbox.put("webhook", "e1", "overdue", "{}")
    assert outbox.take() is not None and outbox.take() is None
    clock.time += HELD_SECONDS + 1
    again = outbox.take()
    assert again is not None and again.event_id == "e1"


def test_the_oldest_goes_first(outbox: Outbox, clock: Clock) -> None:
    for name in ("b", "a", "c"):
        outbox.put("webhook", name, "overdue", name)
        clock.time += 1
    taken: list[Item] = []
    outbox.deliver(taken.append, seconds=5)
    assert [item.event_id for item in taken] == ["b", "a", "c"]


def test_what_was_sent_long_ago_is_forgotten(outbox: Outbox, clock: Clock) -> None:
    outbox.put("webhook", "old", "overdue", "{}")
    outbox.deliver(lambda item: None, seconds=5)
    clock.time += KEPT_SECONDS + 1
    outbox.put("webhook", "new", "overdue", "{}")
    outbox.deliver(lambda item: None, seconds=5)
    assert outbox.put("webhook", "old", "overdue", "{}") and not outbox.put("webhook", "new", "overdue", "{}")


def test_marks_are_kept_and_read_without_opening(outbox: Outbox, tmp_path: Path) -> None:
    assert outbox.mark("m") == "" and outbox.mark("m", "1") == "1" and outbox.mark("m", "2") == "2"
    assert read_mark(outbox.path, "m") == "2" and read_mark(outbox.path, "other") == ""
    assert read_mark(str(tmp_path / "nowhere"), "m") == "" and not (tmp_path / "nowhere").exists()
    (tmp_path / "text").write_text("no database")
    assert read_mark(str(tmp_path / "text"), "m") == ""


def test_the_file_is_for_its_owner_alone(outbox: Outbox) -> None:
    assert stat.S_IMODE(Path(outbox.path).stat().st_mode) == 0o600


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no outbox"):
        Outbox(str(tmp_path / "nowhere" / "out.sqlite"))
    (tmp_path / "text").write_text("no database, but long enough to be looked at by the library that opens it")
    with pytest.raises(StorageError, match="no outbox"):
        Outbox(str(tmp_path / "text"))


def _put_and_take(path: str, queue: multiprocessing.Queue[list[str]]) -> None:
    outbox, taken = Outbox(path), list[str]()
    for number in range(30):
        outbox.put("webhook", f"e{number}", "overdue", "{}")
    outbox.deliver(lambda item: taken.append(item.event_id), seconds=20)
    outbox.close()
    queue.put(taken)


def test_four_processes_put_the_same_events_and_each_is_sent_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[str]] = context.Queue()
    workers = [context.Process(target=_put_and_take, args=(str(tmp_path / "out.sqlite"), queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    taken = [name for _ in workers for name in queue.get(timeout=60)]
    for worker in workers:
        worker.join(60)
    assert sorted(taken) == sorted(f"e{number}" for number in range(30))
