"""What all tables share: paired rounds in turning order, medians of ratios with intervals, and the machine's name."""

from __future__ import annotations

import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

RESAMPLES = 2000


def machine() -> str:
    """Date, processor, cores and command, for the head of a table."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    cores, version = len(os.sched_getaffinity(0)), sys.version.split()[0]
    return f"{date.today().isoformat()}, {processor}, {cores} cores, Python {version}; {command}"


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds until all of it is done, on a GPU as well."""
    settle(device)
    begun = time.perf_counter()
    act()
    settle(device)
    return time.perf_counter() - begun


def settle(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu(device: torch.device) -> str:
    """Its name, for the head of a table; nothing on a CPU."""
    return f"; {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""


def rounds(acts: Mapping[str, Callable[[], float]], count: int, *, warm: int = 1) -> dict[str, list[float]]:
    """What each act returns in each of `count` rounds, after `warm` rounds that do not count.

    Every round runs all acts, and begins with another one: what slows the machine for a while slows all alike.
    """
    names = list(acts)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm, count):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            value = acts[name]()
            if turn >= 0:
                found[name].append(value)
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and its 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[RESAMPLES // 40], medians[-1 - RESAMPLES // 40]


def ratio(ours: Sequence[float], theirs: Sequence[float], *, digits: int = 2) -> str:
    """Median of the paired ratios ours / theirs with its interval, as text."""
    value, low, high = interval([a / b for a, b in zip(ours, theirs, strict=True)])
    return f"{value:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def spread(values: Sequence[float], *, digits: int = 0) -> str:
    """Median and range, as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def table(*rows: Sequence[object]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    head, *rest = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *rest])
