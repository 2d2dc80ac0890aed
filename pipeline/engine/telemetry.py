"""What a phase tells while it runs, on rank zero only: metrics.jsonl, TensorBoard, progress with images a second."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.engine.checkpoint import TrainState
from pipeline.engine.distributed import ProcessGroup
from pipeline.engine.watchdog import beat
from pipeline.storage import exists, is_local, join, publish_bytes, read_bytes

__all__ = ["Telemetry"]

log = logging.getLogger("unlearn")

LINE_SECONDS = 15.0
SLOW_RATIO = 1.5
SLOW_SECONDS = 0.1
"""Shorter differences between two lines of metrics are noise."""


class Telemetry:
    """Lines in `metrics/<phase>.jsonl`, scalars in `tensorboard/<phase>/`, a bar on a terminal.

    After a restart the lines of steps that will be run again are dropped, so each step stands once. Lines are
    published when the phase ends or saves; buckets have no append.
    """

    def __init__(self, folder: str, phase: str, *, every: int, group: ProcessGroup) -> None:
        self._uri, self._phase, self._every, self._first = (
            join(folder, "metrics", f"{phase}.jsonl"),
            phase,
            every,
            group.rank == 0,
        )
        self._logs = join(folder, "tensorboard") if is_local(folder) else os.path.join(tempfile.gettempdir(), "i2i-tensorboard")
        self._group, self._hosts = group, list[str]()
        self._slow: int | None = None
        self._lines: list[str] = []
        self._steps = 0
        self._board: Any = None
        self._bar: Progress | None = None
        self._mark = TrainState()
        self._told = 0.0

    @property
    def relative_uri(self) -> str:
        """The metrics file, relative to the run folder."""
        return f"metrics/{self._phase}.jsonl"

    def start(self, step: int, steps: int) -> None:
        """Begin at `step` of `steps`; every rank must call."""
        self._steps, self._hosts = steps, self._group.gather(socket.gethostname())
        beat(f"{self._phase}: after step {step}")
        if not self._first:
            return
        self._board = self._tensorboard()
        if step and exists(self._uri):
            lines = read_bytes(self._uri).decode().split("\n")[:-1]
            self._lines = [line for line in lines if line and json.loads(line)["step"] <= step]
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(), transient=True)
            self._bar.start()
            self._bar.add_task(self._phase, total=steps, completed=step, rate="")

    def _tensorboard(self) -> Any:
        from accelerate.tracking import TensorBoardTracker

        board = TensorBoardTracker(self._phase, logging_dir=self._logs)
        board.start()
        return board

    def step(self, state: TrainState) -> None:
        """Record one finished step; every rank must call."""
        beat(f"{self._phase}: after step {state.step}")
        due = not state.step % self._every or state.step == self._steps
        busy = self._group.busy() if due else []
        if not self._first:
            return
        seconds = state.seconds - self._mark.seconds
        rate = (state.sample_gradients - self._mark.sample_gradients) / seconds if seconds > 0 else 0.0
        self._show(state)
        if not due:
            return
        self._mark = state
        slow = self._slowest(busy)
        values = {name: round(value, 8) for name, value in state.measures.items()}
        line = {"step": state.step, "seconds": round(state.seconds, 3), "images_per_second": round(rate, 1), **slow, **values}
        self._lines.append(json.dumps(line))
        if self._board is not None:
            self._board.log({f"{self._phase}/{name}": value for name, value in values.items()}, step=state.step)

    def _slowest(self, busy: list[tuple[float, float]]) -> dict[str, float]:
        """The rank that holds the others up most, and its work beside what it would be with the median rank's times; said
        when it is far off.

        Its input counts by itself as well: under ZeRO 3 the others' forward passes are as long as that of the last rank.
        """
        if len(busy) < 2:
            return {}
        middle = (len(busy) - 1) // 2  # of two ranks the faster one
        typical = [sorted(column)[middle] for column in zip(*busy, strict=True)]
        lags = [max(fed - typical[0], work - typical[1]) for fed, work in busy]
        rank = max(range(len(busy)), key=lags.__getitem__)
        (fed, work), lag = busy[rank], lags[rank]
        ratio = work / max(work - lag, 1e-3)
        far = ratio > SLOW_RATIO and lag > SLOW_SECONDS
        if far and rank != self._slow:
            what = "waits for its images" if 2 * (fed - typical[0]) > lag else "computes slowly"
            message = "%s: rank %d on %s holds the others up, it %s: %.1f times the work of the others"
            log.warning(message, self._phase, rank, self._hosts[rank], what, ratio)
        self._slow = rank if far else None
        return {"slowest_rank": rank, "slowest_ratio": round(ratio, 3)}

    def _show(self, state: TrainState) -> None:
        """Move the bar, with the phase's mean rate; without a terminal, a line now and then."""
        rate = state.sample_gradients / state.seconds if state.seconds > 0 else 0.0
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.step, rate=f"{rate:,.0f} images/s")
        elif state.seconds - self._told >= LINE_SECONDS:
            self._told = state.seconds
            left = state.seconds / state.step * (self._steps - state.step)
            print(f"{self._phase}: step {state.step} of {self._steps}, {rate:,.0f} images/s, {left:.0f} s left", flush=True)

    def flush(self) -> None:
        """Publish the lines so far."""
        if self._first:
            publish_bytes(self._uri, "".join(f"{line}\n" for line in self._lines).encode())

    def close(self) -> None:
        """Publish, close TensorBoard and the bar."""
        self.flush()
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            with contextlib.suppress(Exception):
                self._board.finish()
