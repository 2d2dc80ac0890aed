"""Lines that say how far a long act is."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Progress", "in_lines"]

LINE_SECONDS = 2.0

Progress = Callable[[str, int], None]
"""Called with what is being done and how many samples are done so far."""


def in_lines(say: Callable[[str], None]) -> Progress:
    """Lines with the rate of the present act, at most one in two seconds.

    Args:
        say: takes a line.
    """
    started: dict[str, float] = {}
    last = 0.0

    def tell(act: str, done: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun = started.setdefault(act, now)
        if now - last >= LINE_SECONDS and now > begun:
            say(f"{act}: {done} images, {done / (now - begun):.0f} images/s")
            last = now

    return tell
