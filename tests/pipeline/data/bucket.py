"""A stand-in for remote storage: what it holds, how slow it is, and what goes wrong; and samples that lie in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.config import ImagesConfig, ReadingConfig
from pipeline.data.reader import ImageReader
from pipeline.data.samples import Samples, Segment
from pipeline.data.stream import Stream
from tests.pipeline.data.test_stream import NO_CACHE, make_table, picture


class Bucket:
    """Answers `storage.read_range`; counts the requests under way and the bytes that somebody still holds."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.delay: Callable[[], float] = lambda: 0.0
        self.fault: Callable[[str, int, int, bytes], bytes] = lambda uri, start, stop, data: data
        self.requests: list[tuple[str, int, int]] = []
        self.running = self.most_running = self.held = self.most_held = 0
        self._lock = threading.RLock()

    def _hold(self, count: int) -> None:
        with self._lock:
            self.held += count
            self.most_held = max(self.most_held, self.held)

    def _run(self, count: int) -> None:
        with self._lock:
            self.running += count
            self.most_running = max(self.most_running, self.running)

    def read_range(self, uri: str, start: int, stop: int, *, attempt_seconds: float, deadline_seconds: float) -> bytes:
        """Bytes `start` to `stop` of an object, after a delay and with faults."""
        assert attempt_seconds > 0 and deadline_seconds > 0
        hold = self._hold

        class Held(bytes):
            def __del__(self) -> None:
                hold(-len(self))

        self.requests.append((uri, start, stop))
        self._run(1)
        try:
            time.sleep(self.delay())
            data = Held(self.fault(uri, start, stop, self.objects[uri][start:stop]))
        finally:
            self._run(-1)
        self._hold(len(data))
        return data

    def put(self, count: int, shards: int) -> Samples:
        """Samples as `make_samples` makes them, in this bucket."""
        segments, tables = [], []
        for turn, numbers in enumerate(np.array_split(np.arange(count), shards)):
            contents = [picture(int(number)) for number in numbers]
            uri = f"s3://bucket/{turn}.tar"
            self.objects[uri] = b"".join(contents)
            segments.append(Segment(uri=uri, samples=len(contents), bytes=sum(map(len, contents))))
            tables.append(make_table(contents, int(numbers[0]) if len(numbers) else 0))
        return Samples(segments, tables)


def make_reader(samples: Samples, images: ImagesConfig = NO_CACHE, **reading: Any) -> ImageReader:
    """A reader of two threads that keeps nothing decoded."""
    return ImageReader(samples, size=8, channels=1, images=images, reading=ReadingConfig(**{"threads": 2, **reading}))


def check(stream: Stream, steps: int) -> None:
    """The first batches hold the samples of the order, and their pictures."""
    for step in range(steps):
        batch = stream.batch(step)
        assert batch.rows.tolist() == stream.order.batch(step)[1].tolist()
        assert batch.images[: len(batch.rows), 0, 0, 0].tolist() == [row % 256 for row in batch.rows]
