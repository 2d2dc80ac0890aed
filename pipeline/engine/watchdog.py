"""A rank that hangs writes down where, and ends itself: no collective, no lock, no Python is needed for that.

`faulthandler` does it in a thread of C, so it works even while other code holds the interpreter. A rank that waits for one
that hangs has no sign of life either, and writes its stacks as well: in the stage's log, the rank that is not in a
collective is the one that hung.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from collections.abc import Iterator

__all__ = ["SHARE", "beat", "watching"]

SHARE = 0.9
"""Of the collectives' time limit: the stacks must be written before a rank that waits gives up and all are ended."""

_seconds = 0.0


@contextlib.contextmanager
def watching(timeout_seconds: float) -> Iterator[None]:
    """While the body runs, this process ends with code 1 when there is no `beat` for nine tenths of `timeout_seconds`."""
    global _seconds
    _seconds = SHARE * timeout_seconds
    beat()
    try:
        yield
    finally:
        _seconds = 0.0
        faulthandler.cancel_dump_traceback_later()


def beat() -> None:
    """A sign of life; does nothing while nobody watches."""
    if _seconds:
        faulthandler.dump_traceback_later(_seconds, exit=True, file=sys.__stderr__ or 2)
