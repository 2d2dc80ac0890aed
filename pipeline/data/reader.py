"""Samples by position -> uint8 images: fetched, checked and decoded by threads, straight into the caller's array.

Decoders do their work without the interpreter's lock, so threads share the cores, and nothing is copied between processes.
Decoded images are kept up to a bound: small splits are decoded once.
"""

from __future__ import annotations

import atexit
import itertools
import os
import queue
import threading
import weakref
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.config import ImagesConfig, ReadingConfig
from pipeline.data.images import decode_into
from pipeline.data.pieces import CLOSE_SECONDS, Piece, Shards
from pipeline.data.samples import Samples

__all__ = ["ImageReader", "Item", "Job", "decoding_threads"]

CHUNK = 32
"""Samples handed to a thread at a time, at most."""
PIECE = 16
"""Samples of one piece, at most, when they are read out of order."""

Item = tuple[int, Piece, int]
"""Place in the array, piece, and position in the split of one sample."""


def decoding_threads(reading: ReadingConfig) -> int:
    """Threads that decode on one rank: as configured, or the rank's share of the cores that this process may use."""
    share = len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return reading.threads or max(1, share)


class Job:
    """Samples on their way into an array."""

    def __init__(self, out: np.ndarray, items: Sequence[Item]) -> None:
        self.out, self.items = out, items
        self._left, self._running, self._stopped = len(items), 0, False
        self._fault: BaseException | None = None
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """A thread asks to work on this job."""
        with self._changed:
            if self._stopped:
                return False
            self._running += 1
            return True

    @property
    def stopped(self) -> bool:
        """Whether it is of no use to go on."""
        return self._stopped

    def leave(self, done: int, fault: BaseException | None = None) -> None:
        """A thread has done its part, or has failed."""
        with self._changed:
            self._running -= 1
            self._left -= done
            self._fault = self._fault or fault
            self._stopped = self._stopped or fault is not None
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when all samples are there.

        Raises:
            UnlearnError: what befell one of them; see `ImageReader.fetch`.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._left or self._stopped)
        if self._fault is not None:
            self.stop()
            raise self._fault

    def stop(self) -> None:
        """Give up what is left; on return no thread writes to the array any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running)


class ImageReader:
    """Reads, checks and decodes samples; keeps decoded ones up to `images.cache_bytes`.

    Threads start with the first read, and end with `close`.

    Args:
        folder: where shards with relative addresses lie.
        size, channels: of the images that are made.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        size: int,
        channels: int,
        images: ImagesConfig,
        folder: str = "",
        reading: ReadingConfig = ReadingConfig(),  # noqa: B008 - frozen
    ) -> None:
        self.samples, self.reading, self.shape = samples, reading, (size, size, channels)
        self.shards = Shards(samples, folder=folder, reading=reading, kept=self._kept)
        self._images, self._size = images, decoding_threads(reading)
        self._cache: dict[int, np.ndarray] = {}
        self._capacity = images.cache_bytes // (size * size * channels)
        self._cache_lock = threading.Lock()
        self._ready: queue.PriorityQueue[tuple[int, tuple[Job, Sequence[Item]] | None]] = queue.PriorityQueue()
        self._serial = itertools.count()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def _kept(self, position: int) -> bool:
        return position in self._cache

    @property
    def filling(self) -> bool:
        """Whether all samples will be kept decoded, and are not yet."""
        return len(self._cache) < len(self.samples) <= self._capacity

    def begin(self, out: np.ndarray, items: Sequence[Item]) -> Job:
        """Decode samples into an array, in the background; their pieces must have been asked for.

        Args:
            out: uint8 [n, H, W, C].
            items: in the order in which their pieces were asked for.
        """
        _reading.add(self)
        while len(self._threads) < self._size:
            # Daemons: a request that hangs must not hold a process that wants to end.
            self._threads.append(threading.Thread(target=self._run, name=f"decode-{len(self._threads)}", daemon=True))
            self._threads[-1].start()
        job = Job(out, items)
        for chunk in self._chunks(items):
            turn = (next(self._serial), (job, chunk))
            self.shards.when_fetched({piece for _, piece, _ in chunk}, lambda turn=turn: self._ready.put(turn))  # type: ignore[misc]
        return job

    def _chunks(self, items: Sequence[Item]) -> Iterable[Sequence[Item]]:
        """Parts for one thread each. None needs more pieces than can be fetched while all others are in use."""
        largest = min(CHUNK, -(-len(items) // self._size))
        start, pieces = 0, set[Piece]()
        for number, (_, piece, _) in enumerate(items):
            if number - start == largest or len(pieces | {piece}) > self.reading.in_flight:
                yield items[start:number]
                start, pieces = number, set()
            pieces.add(piece)
        yield items[start:]

    def _run(self) -> None:
        while (task := self._ready.get()[1]) is not None:
            job, chunk = task
            if job.enter():
                fault = None
                try:
                    for item in chunk:
                        if job.stopped or self._closed:
                            break
                        self._decode(job.out, *item)
                except BaseException as caught:  # whatever it is, it is raised where the job is waited for
                    fault = caught
                job.leave(len(chunk), fault)
            del task, job, chunk  # an idle thread holds no images

    def _decode(self, out: np.ndarray, place: int, piece: Piece, position: int) -> None:
        image = self._cache.get(position)
        if image is not None:
            out[place] = image
        else:
            row = position - piece.position
            data, bound = self.shards.read(piece, row), self._images.max_pixels
            decode_into(out[place], data, fit=self._images.fit, max_pixels=bound, where=piece.where(row))
            with self._cache_lock:
                if len(self._cache) < self._capacity:
                    self._cache[position] = out[place].copy()
        self.shards.used(piece)

    def fetch(self, positions: np.ndarray) -> np.ndarray:
        """Decoded samples at any positions, in any order, uint8 [n, H, W, C]; the array is the caller's.

        Raises:
            DataError: a shard is missing, or an image is unreadable; names shard and key.
            StorageError: a remote shard cannot be read.
            IntegrityError: bytes are not those that the index recorded; names shard and key.
        """
        out = np.empty((len(positions), *self.shape), dtype=np.uint8)
        unique, first, inverse = np.unique(np.asarray(positions, dtype=np.int64), return_index=True, return_inverse=True)
        homes = np.searchsorted(self.samples.starts, unique, side="right")
        pieces, items = [], []
        for home in np.unique(homes):
            found = np.flatnonzero(homes == home)
            for part in (found[start : start + PIECE] for start in range(0, len(found), PIECE)):
                low, high = int(unique[part[0]]), int(unique[part[-1]])
                pieces.append(self.shards.piece(low, high + 1, (unique[part] - low).tolist()))
                items += [(int(first[turn]), pieces[-1], int(unique[turn])) for turn in part]
        self.shards.fetch(pieces)
        if items:
            try:
                self.begin(out, items).wait()
            finally:
                self.shards.drop(pieces)
        again = np.flatnonzero(first[inverse] != np.arange(len(out)))
        out[again] = out[first[inverse[again]]]
        return out

    def close(self) -> None:
        """End the threads and close the shards; the reader cannot be used afterwards."""
        self._closed = True
        _reading.discard(self)
        for _ in self._threads:
            self._ready.put((-1 - next(self._serial), None))
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)  # one that waits for a request ends with it
        self._threads.clear()
        self.shards.close()


_reading: weakref.WeakSet[ImageReader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End threads that an error left at work: the interpreter must not go while one of them is in a decoder."""
    for reader in list(_reading):
        reader.close()
