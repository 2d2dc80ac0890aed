"""The schedule as a daemon: a tick, a pause, and so on until it is told to leave."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from launch.desk import Desk
from launch.policy import span_seconds
from launch.schedule import Tick, tick
from launch.worker import Asked, terminable
from pipeline.errors import StorageError

__all__ = ["serve_schedule", "tick_line"]


def tick_line(done: Tick) -> str:
    """One line about a tick."""
    counts: dict[str, int] = {}
    for step in done.steps:
        counts[step.state] = counts.get(step.state, 0) + 1
    worked = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    return f"tick: {len(done.closed)} batches closed; worked on: {worked}; due dates in danger: {len(done.dangers)}"


def serve_schedule(desk: Desk, *, ticks: int = 0, sleep: Callable[[float], None] = time.sleep) -> int:
    """Tick until SIGTERM or SIGUSR1; what runs then is saved, and free for others.

    Args:
        desk: where to work.
        ticks: end after so many; 0: never.
        sleep: waits so many seconds.

    Returns:
        How many ticks there were.
    """
    done = 0
    try:
        while True:
            # Anew for each: a batch that was lost to another host ends its run by a signal, too, and is no reason to leave.
            with terminable("schedule serve"):
                try:
                    desk.say(tick_line(tick(desk)))
                except StorageError:
                    # It is said once a tick, until it is mended.
                    desk.say("tick: the ledger or a storage is away; it is tried again")
            done += 1
            if done == ticks:
                return done
            # A little at random, or many hosts that started together would always tick together.
            with terminable("schedule serve"):
                sleep(span_seconds(desk.policy.pause) * (1.0 + random.random() / 10))  # noqa: S311
    except Asked:
        desk.say("schedule: told to leave")
    return done
