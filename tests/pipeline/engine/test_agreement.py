"""What fails on one rank is raised on all; a slow rank is waited for. Ranks are threads here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.engine import agreement
from pipeline.engine.agreement import agreed
from pipeline.errors import IntegrityError, Preempted


class Rank:
    """One of several ranks that are threads of this process; gathers like a real one."""

    def __init__(self, rank: int, world: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.world_size, self.gathers = rank, len(world), 0
        self._world, self._meeting = world, meeting

    def gather(self, item: Any) -> list[Any]:
        self.gathers += 1
        self._world[self.rank] = item
        self.barrier()
        found = list(self._world)
        self.barrier()
        return found

    def barrier(self) -> None:
        self._meeting.wait(timeout=60)


def together(count: int, body: Callable[[Rank], Any]) -> list[Any]:
    """What `body` returns or raises on each of `count` ranks; a rank that hangs fails the test by the barrier's time limit."""
    meeting, world = threading.Barrier(count), [None] * count

    def one(rank: int) -> Any:
        try:
            return body(Rank(rank, world, meeting))
        except Exception as fault:
            return fault

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_answers_come_in_rank_order_on_every_rank() -> None:
    assert together(3, lambda group: agreed(group, lambda: group.rank * 2)) == [[0, 2, 4]] * 3


def test_a_named_failure_is_the_same_on_all_ranks() -> None:
    def fail(group: Rank) -> None:
        if group.rank == 1:
            raise Preempted("away", "come back")
        if group.rank == 2:
            raise IntegrityError("wrong bytes")

    found = together(4, lambda group: agreed(group, lambda: fail(group)))
    assert [type(fault) for fault in found] == [Preempted] * 4
    assert {str(fault) for fault in found} == {"away\n  cure: come back"}


def test_a_bug_is_raised_where_it_is_and_named_on_the_others() -> None:
    def fail(group: Rank) -> None:
        if group.rank == 1:
            raise KeyError("bug")

    found = together(2, lambda group: agreed(group, lambda: fail(group)))
    assert isinstance(found[1], KeyError)
    assert isinstance(found[0], RuntimeError) and "rank 1 failed: KeyError('bug')" in str(found[0])


def test_a_slow_rank_is_waited_for_in_short_meetings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "BEAT_SECONDS", 0.02)

    def act(group: Rank) -> tuple[list[int], int]:
        def work() -> int:
            time.sleep(0.2 if group.rank == 0 else 0.0)
            return group.rank

        return agreed(group, work, patient=True), group.gathers

    (zero, meetings), (one, others) = together(2, act)
    assert zero == one == [0, 1]
    assert meetings == others > 4
