"""What a piece of work takes of torch's memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

__all__ = ["taken_by"]


def taken_by(act: Callable[[], object]) -> int:
    """Bytes that torch's allocator for CPUs held beyond what it held before, at most, while `act` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    return max([0, *itertools.accumulate(event.nbytes() for event in events)])
