"""Lines that say how far a long act is, on standard output."""

from __future__ import annotations

import sys
import time

from pipeline.data.index import Progress

__all__ = ["progress"]

LINE_SECONDS = 2.0


def progress() -> Progress:
    """A teller of lines with the rate of the present act, at most one in two seconds."""
    started: dict[str, float] = {}
    last = 0.0

    def tell(act: str, done: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun = started.setdefault(act, now)
        if now - last >= LINE_SECONDS and now > begun:
            print(f"{act}: {done} images, {done / (now - begun):.0f} images/s", file=sys.stdout, flush=True)
            last = now

    return tell
