"""Batches made ahead: which pieces to ask for and when, and arrays that are used in turn."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.data.order import Order, Window
from pipeline.data.pieces import Piece
from pipeline.data.reader import ImageReader, Item, Job

__all__ = ["Ahead", "Made"]


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """One rank's part of a global batch.

    images: uint8 [n, H, W, C], padding is black · items: of the samples, in no order; the first number is the place in `images`
    """

    step: int
    images: np.ndarray
    items: Sequence[Item]


@dataclasses.dataclass(frozen=True, slots=True)
class _Due:
    made: Made
    buffer: np.ndarray
    job: Job


class Ahead:
    """Makes the batches of one rank, `reading.ahead` of them ahead of the one that is asked for.

    Asked for step by step it never waits for the order; asked for another step it begins there.
    """

    def __init__(self, reader: ImageReader, order: Order, *, rank: int, world_size: int) -> None:
        self._reader, self._order, self._rank, self._world = reader, order, rank, world_size
        self._shape = (order.largest_share(world_size), *reader.shape)
        # Windows in use and requests under way: with fewer open pieces a batch could wait for a piece that is never asked for.
        lanes = len(range(rank, order.lanes, world_size))
        reader.shards.limit = lanes * order.window + reader.reading.in_flight
        self._free: list[np.ndarray] = []
        self._handed: deque[np.ndarray] = deque()
        self._due: deque[_Due] = deque()
        self._next = self._first = -1
        self._coming: Iterator[Window] = iter(())
        self._window: Window | None = None
        self._open: deque[tuple[Window, list[Piece | None]]] = deque()

    def get(self, step: int) -> Made:
        """This rank's part of global batch `step`; its images are valid until two more batches were asked for.

        Raises:
            UnlearnError: what befell a sample of it. Asked for again, it is tried again.
        """
        if step != (self._due[0].made.step if self._due else self._next):
            self._restart(step)
        if len(self._handed) == 2:
            self._free.append(self._handed.popleft())
        last, per_pass = step + self._reader.reading.ahead, self._order.steps_per_pass
        if self._reader.filling:  # the next pass will find in memory what this one reads
            last = min(last, step - step % per_pass + per_pass - 1)
        while self._next <= last:
            self._due.append(self._begin(self._next))
            self._next += 1
        self._look_ahead(self._order.places(last // per_pass * per_pass + per_pass)[0] if self._reader.filling else math.inf)
        due = self._due[0]
        try:
            due.job.wait()
        except BaseException:
            self._restart(step)
            raise
        self._due.popleft()
        self._handed.append(due.buffer)
        return due.made

    def _give_up(self) -> None:
        """Stop what is in the making."""
        for due in self._due:
            due.job.stop()
            self._free.append(due.buffer)
        self._due.clear()
        self._open.clear()
        self._reader.shards.drop_expected()

    def _restart(self, step: int) -> None:
        """Give up what is in the making, and begin at `step`."""
        self._give_up()
        self._next, self._first = step, self._order.places(step)[0]
        self._coming = self._order.windows(step, self._rank, self._world)
        self._window = next(self._coming, None)

    def _look_ahead(self, stop: float) -> None:
        """Ask for the pieces of further windows, before place `stop`, until enough of them wait for their turn."""
        shards, enough = self._reader.shards, self._reader.reading.in_flight
        while self._window is not None and self._window.first < stop and shards.expected < enough:
            self._ask_next(self._window)

    def _ask_next(self, window: Window) -> None:
        """Ask for the pieces of the window that comes next."""
        read = window.between(0, self._first).stop  # before this process began
        pieces: list[Piece | None] = []
        for home, (low, high) in enumerate(window.pieces):
            wanted: Sequence[int] = range(high - low)
            if read > 0:
                wanted = np.sort(window.positions[read:][window.homes[read:] == home] - low).tolist()
            pieces.append(self._reader.shards.piece(low, high, wanted) if wanted else None)
        self._reader.shards.expect(piece for piece in pieces if piece is not None)
        self._open.append((window, pieces))
        self._window = next(self._coming, None)

    def _begin(self, step: int) -> _Due:
        start, stop = self._order.places(step)
        while self._window is not None and self._window.first < stop:
            self._ask_next(self._window)
        places: list[int] = []
        found: list[tuple[Piece, int]] = []
        for window, pieces in itertools.takewhile(lambda entry: entry[0].first < stop, self._open):
            part = window.between(start, stop)
            chosen = slice(part.start, max(part.start, part.stop))
            for home, position in zip(window.homes[chosen].tolist(), window.positions[chosen].tolist(), strict=True):
                piece = pieces[home]
                assert piece is not None  # it holds a wanted sample
                found.append((piece, position))
            places.extend(window.first + window.stride * turn for turn in part)
        self._open = deque(
            entry for entry in self._open if entry[0].first + entry[0].stride * (len(entry[0].positions) - 1) >= stop
        )
        turns = np.argsort(np.argsort(places)).tolist()
        items = [(turn, *sample) for turn, sample in zip(turns, found, strict=True)]
        buffer = self._free.pop() if self._free else self._buffer()
        share = self._order.share(step, self._world)
        buffer[len(items) : share] = 0
        made = Made(step=step, images=buffer[:share], items=items)
        return _Due(made=made, buffer=buffer, job=self._reader.begin(buffer, items))

    def _buffer(self) -> np.ndarray:
        # Pinned memory is copied to a device without a detour.
        return torch.empty(self._shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()

    def close(self) -> None:
        """Give up what is in the making."""
        self._give_up()
