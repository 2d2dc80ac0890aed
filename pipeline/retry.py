"""Trying again: full-jitter back-off until a deadline, for faults that may pass; others are raised at once.

Back-off: Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), the variant with full jitter.
"""

from __future__ import annotations

import errno
import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import StorageError, UnlearnError

__all__ = ["ABSENT_CREDENTIALS", "passes", "refused", "retrying"]

log = logging.getLogger(__name__)
T = TypeVar("T")

JITTER = random.SystemRandom()
"""Never the seeded generator: hosts that fail together must not come back together."""
FIRST_SECONDS = 0.1
LONGEST_SECONDS = 8.0
LOUD_SECONDS = 5.0
"""Shorter troubles are not worth a line in the log."""
PERMANENT = (
    UnlearnError,
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
ABSENT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
"""Errors of the stores' clients, by name: importing the clients would be slow."""
# How s3fs translates requests that the store understood and refuses, and what a local disk says.
PERMANENT_ERRNO = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)


def refused(fault: Exception) -> bool:
    """Whether a store does not let us in, or we have nothing to show it: most clients say so with errors of their own."""
    name = type(fault).__name__
    # Azure's client and requests, aiohttp, gcsfs in its two ways.
    number = "status_code" if hasattr(fault, "status_code") else "code" if name == "HttpError" else "status"
    forbidden = type(fault) is OSError and str(fault).startswith("Forbidden:")
    return name in ABSENT_CREDENTIALS or getattr(fault, number, None) in (401, 403) or forbidden


def passes(fault: Exception) -> bool:
    """Whether a fault may pass by itself: the network, or a store that is busy or away."""
    return not isinstance(fault, PERMANENT) and not (isinstance(fault, OSError) and fault.errno in PERMANENT_ERRNO)


def retrying(act: Callable[[], T], *, what: str, deadline_seconds: float) -> T:
    """What `act` returns, tried again for `deadline_seconds` after its first failure.

    Args:
        what: address and act, for messages.

    Raises:
        StorageError: it failed until the deadline; the last fault is the cause.
        PermissionError: the store refuses, whatever its client calls that.
        Exception: a fault that does not pass, as it is.
    """
    failing_since, told = 0.0, False
    for turn in itertools.count():
        try:
            return act()
        except Exception as fault:
            if not passes(fault):
                raise
            if refused(fault):
                raise PermissionError(f"{type(fault).__name__}: {' '.join(str(fault).split())}") from fault
            now = time.monotonic()
            failing_since = failing_since or now
            pause = JITTER.uniform(0, min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(turn, 30)))
            reason = " ".join(str(fault).split()) or type(fault).__name__
            if now + pause - failing_since >= deadline_seconds:
                message = f"{what}: failed for {deadline_seconds:g} s, {turn + 1} tries, the last one: {reason}"
                raise StorageError(message, "look at the store, its address and the network, then run again") from fault
            if now - failing_since >= LOUD_SECONDS and not told:
                log.warning("%s: %s; trying again for %.0f s", what, reason, deadline_seconds - (now - failing_since))
                told = True
            time.sleep(pause)
    raise AssertionError("unreachable")
