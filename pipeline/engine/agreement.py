"""One verdict for all ranks: what fails on one of them is raised on every one, so that none waits for the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from pipeline.errors import UnlearnError

__all__ = ["BEAT_SECONDS", "Act", "Group", "agreed"]

T = TypeVar("T")


BEAT_SECONDS = 10.0
"""At least so often a process that waits for its own thread shows that it lives."""


class Group(Protocol):
    """The part of `pipeline.engine.distributed.ProcessGroup` that checkpoints need."""

    rank: int
    world_size: int

    def gather(self, item: Any) -> list[Any]: ...
    def barrier(self) -> None: ...


def agreed(group: Group, act: Callable[[], T], *, patient: bool = False) -> list[T]:
    """Every rank's answer to `act`, in rank order, on every rank; all must call, and `act` must not wait for other ranks.

    Args:
        patient: one rank may take longer than the group's time limit; the ranks then meet every few seconds.

    Raises:
        UnlearnError: that of the lowest rank that raised one, the same on all ranks.
        Exception: what is not an UnlearnError is a bug; the rank that hit it raises it, the others name that rank.
    """
    mine = Act(act)
    if patient and group.world_size > 1:
        thread = threading.Thread(target=mine, daemon=True)
        thread.start()
        while True:
            thread.join(BEAT_SECONDS)
            if not any(group.gather(thread.is_alive())):
                break
    else:
        mine()
    told = mine.fault if mine.fault is None or isinstance(mine.fault, UnlearnError) else repr(mine.fault)
    ranks = group.gather((mine.answer, told)) if group.world_size > 1 else [(mine.answer, told)]
    if mine.fault is not None and not isinstance(mine.fault, UnlearnError):
        raise mine.fault
    for rank, (_, fault) in enumerate(ranks):
        if fault is not None:
            raise fault if isinstance(fault, UnlearnError) else RuntimeError(f"rank {rank} failed: {fault}")
    return [cast(T, answer) for answer, _ in ranks]


class Act(Generic[T]):
    """A call whose answer or fault is kept, so that a thread can make it."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self.answer: T | None = None
        self.fault: Exception | None = None

    def __call__(self) -> None:
        """Make the call."""
        try:
            self.answer = self._act()
        except Exception as fault:
            self.fault = fault

    def result(self) -> T:
        """The answer. Raises the fault instead, if there was one."""
        if self.fault is not None:
            raise self.fault
        return cast(T, self.answer)
