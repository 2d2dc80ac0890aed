"""A rank that hangs writes down where, and ends itself: no collective, no lock, no Python is needed for that.

`faulthandler` does it in a thread of C, so it works even while other code holds the interpreter. It waits a little longer
than a collective does: ranks that wait for one that hangs give up first, by an error that says so, and the stacks are those
of the rank that hung. They go to a file of this rank beside `UNLEARN_ERROR_FILE`, below a line of JSON that says who and where
it was; the launcher reads it. Without that variable they go to standard error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import socket
import time
from collections.abc import Iterator

__all__ = ["beat", "margin", "rest", "watching"]

HEAD_BYTES = 512


def margin(limit_seconds: float) -> float:
    """How much longer than a collective the watchdog waits: less than the 30 s that an agent, once a rank has given up, leaves
    the others before it kills them."""
    return max(2.0, min(20.0, limit_seconds / 30))


class _Dog:
    """One process's watchdog. Setting it anew starts a thread, so signs of life that follow each other closely count as one."""

    def __init__(self, limit_seconds: float) -> None:
        self._slack = min(1.0, limit_seconds / 10)
        self._seconds, self._set = limit_seconds + margin(limit_seconds) + self._slack, -math.inf
        self._rank, self._host = int(os.environ.get("RANK", "0")), socket.gethostname()
        self._attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._file, errors = 2, os.environ.get("UNLEARN_ERROR_FILE", "")
        # The same rank may be started twice in one attempt, when nodes come and go.
        path = f"{errors}.{self._attempt}.{self._rank}.{os.getpid()}.stacks"
        with contextlib.suppress(OSError):  # a full disk must not end what works
            self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600) if errors else 2
        if self._file != 2:
            os.lseek(self._file, HEAD_BYTES, os.SEEK_SET)

    def place(self, where: str) -> None:
        """Write down where the process is."""
        if self._file == 2:
            return
        with contextlib.suppress(OSError):
            facts = {"rank": self._rank, "host": self._host, "attempt": self._attempt, "seconds": round(self._seconds)}
            line = json.dumps({**facts, "where": where[:200]}).encode()
            os.pwrite(self._file, line.ljust(HEAD_BYTES - 1)[: HEAD_BYTES - 1] + b"\n", 0)

    def feed(self) -> None:
        """Wait anew."""
        now = time.monotonic()
        if now - self._set >= self._slack:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)
            self._set = now

    def rest(self) -> None:
        """Wait for nothing."""
        faulthandler.cancel_dump_traceback_later()
        self._set = -math.inf

    def close(self) -> None:
        """Wait for nothing, for good."""
        self.rest()
        if self._file != 2:
            os.close(self._file)


_dog: _Dog | None = None


@contextlib.contextmanager
def watching(limit_seconds: float, where: str = "start") -> Iterator[None]:
    """While the body runs, this process ends with code 1 when there is no `beat` for a little longer than `limit_seconds`.

    Args:
        limit_seconds: the time limit of collectives.
        where: what the body does first.
    """
    global _dog
    _dog = _Dog(limit_seconds)
    beat(where)
    try:
        yield
    finally:
        dog, _dog = _dog, None
        dog.close()


def beat(where: str = "") -> None:
    """A sign of life; does nothing while nobody watches.

    Args:
        where: what the process does now; without it, what it did before.
    """
    if _dog is not None:
        if where:
            _dog.place(where)
        _dog.feed()


def rest() -> None:
    """What follows may take its time, because no other rank waits for it; the next `beat` ends that."""
    if _dog is not None:
        _dog.rest()
