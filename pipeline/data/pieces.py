"""Pieces of shards: runs of samples that are fetched together, by threads, in the order in which they are needed.

A local sample is read when it is decoded. A remote piece is fetched in one or a few range requests and dropped when its
last sample was used, so memory is bounded by the number of open pieces. Every sample is checked against the index.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline import storage
from pipeline.config import ReadingConfig
from pipeline.data.cache import RangeCache
from pipeline.data.files import OpenFiles
from pipeline.data.samples import Rows, Samples
from pipeline.errors import DataError, IntegrityError
from pipeline.storage import absolute, is_local, join

__all__ = ["CLOSE_SECONDS", "REQUEST_BYTES", "TRIES", "Piece", "Shards"]

REQUEST_BYTES = 16 << 20
"""A request asks for no more, unless one sample is larger."""
GAP_BYTES = 1 << 20
"""Samples that lie farther apart are asked for separately: it costs less than the bytes between them."""
TRIES = 3
"""Further requests for a remote sample whose bytes differ from the index."""
LOCAL_THREADS = 2
"""Threads that look up index rows where there is nothing to fetch."""
CLOSE_SECONDS = 1.0
"""How long closing waits for requests under way."""
CURE = "restore the shard, or run the shard stage again"

Bytes = bytes | bytearray


@dataclasses.dataclass(slots=True, eq=False)
class Piece:
    """Samples of one shard that are fetched together.

    uri: of the shard · segment: its number · start, stop: its rows · position: of the first in the split · wanted: those that
    will be used, counted from `start`, increasing · unread: how many of them were not used yet · rows: of the index, once
    fetched · spans: (offset, bytes) of remote ones · fault: why they could not be fetched.
    """

    uri: str
    segment: int
    start: int
    stop: int
    position: int
    wanted: Sequence[int]
    unread: int
    rows: Rows | None = None
    spans: list[tuple[int, Bytes]] = dataclasses.field(default_factory=list)
    fault: BaseException | None = None
    dropped: bool = False
    waiting: list[_Gate] | None = dataclasses.field(default_factory=list)
    """Told when the piece is fetched; None from then on."""

    @property
    def local(self) -> bool:
        """Whether its samples are read one by one, when they are used."""
        return is_local(self.uri)

    def where(self, row: int) -> str:
        """Shard, key and extension of a sample, for messages."""
        rows = self.rows
        assert rows is not None  # fetched
        return f"{self.uri}: {rows.keys[row]}.{rows.ext[row]}"


class _Gate:
    """Acts once, when all of several pieces are fetched."""

    def __init__(self, missing: int, act: Callable[[], None]) -> None:
        self.missing, self.act = missing, act


class Shards:
    """Fetches pieces, and gives the checked bytes of their samples.

    Args:
        folder: where shards with relative addresses lie.
        kept: whether the sample at a position need not be fetched.
    """

    def __init__(self, samples: Samples, *, folder: str, reading: ReadingConfig, kept: Callable[[int], bool]) -> None:
        self.samples, self._folder, self._reading, self._kept = samples, folder, reading, kept
        self.limit = reading.in_flight
        """Pieces open at once, of those that were asked for by `expect`."""
        remote = not all(is_local(join(folder, segment.uri)) for segment in samples.segments)
        self._size = reading.in_flight if remote else LOCAL_THREADS
        self._cache = RangeCache(reading.cache_folder, reading.cache_bytes) if remote and reading.cache_folder else None
        self._slots = threading.BoundedSemaphore(reading.in_flight)
        self._lock = threading.Lock()
        self._expected: deque[Piece] = deque()
        self._open: set[Piece] = set()
        self._work: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._files = OpenFiles()
        self._closed = False

    def piece(self, position: int, stop: int, wanted: Sequence[int]) -> Piece:
        """The piece of positions `position` to `stop`, which must lie in one shard."""
        segment, row = self.samples.place(position)
        return Piece(
            uri=_address(self._folder, self.samples.segments[segment].uri),
            segment=segment,
            start=row,
            stop=row + stop - position,
            position=position,
            wanted=wanted,
            unread=len(wanted),
        )

    def fetch(self, pieces: Iterable[Piece]) -> None:
        """Fetch pieces now, whatever the limit."""
        if self._closed:
            raise ValueError("a read from shards that are closed")
        while len(self._threads) < self._size:
            # Daemons: a request that hangs must not hold a process that wants to end.
            self._threads.append(threading.Thread(target=self._run, name=f"fetch-{len(self._threads)}", daemon=True))
            self._threads[-1].start()
        for piece in pieces:
            self._work.put(piece)

    def expect(self, pieces: Iterable[Piece]) -> None:
        """Fetch pieces in this order, `limit` at a time: the next one when all samples of an open one were used."""
        with self._lock:
            self._expected.extend(pieces)
        self._admit()

    @property
    def expected(self) -> int:
        """Pieces that wait for their turn."""
        return len(self._expected)

    def _admit(self) -> None:
        admitted = []
        with self._lock:
            while self._expected and len(self._open) < self.limit:
                admitted.append(self._expected.popleft())
                self._open.add(admitted[-1])
        if admitted:
            self.fetch(admitted)

    def when_fetched(self, pieces: Iterable[Piece], act: Callable[[], None]) -> None:
        """Call `act`, in any thread, once all pieces are fetched or have failed; never if one of them is dropped before."""
        with self._lock:
            gate = _Gate(0, act)
            for piece in pieces:
                if piece.waiting is not None:
                    piece.waiting.append(gate)
                    gate.missing += 1
            fetched = gate.missing == 0
        if fetched:
            act()

    def used(self, piece: Piece) -> None:
        """Note that one sample of a piece was used."""
        with self._lock:
            piece.unread -= 1
            if piece.unread:
                return
            piece.spans = []
            limited = piece in self._open
            self._open.discard(piece)
        if limited:
            self._admit()

    def drop(self, pieces: Iterable[Piece]) -> None:
        """Forget these pieces and free their bytes."""
        with self._lock:
            for piece in pieces:
                piece.dropped, piece.spans, piece.waiting = True, [], None

    def drop_expected(self) -> None:
        """Forget all pieces that `expect` asked for."""
        with self._lock:
            pieces = (*self._open, *self._expected)
            self._expected.clear()
            self._open.clear()
        self.drop(pieces)

    def _run(self) -> None:
        while (piece := self._work.get()) is not None:
            spans: list[tuple[int, Bytes]] = []
            try:
                if not piece.dropped:
                    spans.extend(self._load(piece))
            except BaseException as fault:  # whatever it is, it is raised where the piece is read
                piece.fault = fault
            opened = []
            with self._lock:
                if not piece.dropped:
                    piece.spans = spans
                    gates, piece.waiting = piece.waiting or [], None
                    for gate in gates:
                        gate.missing -= 1
                    opened = [gate for gate in gates if not gate.missing]
            for gate in opened:
                gate.act()
            del piece, spans, opened  # an idle thread holds no bytes

    def _load(self, piece: Piece) -> Iterator[tuple[int, Bytes]]:
        piece.rows = rows = self.samples.rows(piece.segment, piece.start, piece.stop)
        wanted = [row for row in piece.wanted if not self._kept(piece.position + row)]
        if piece.local:
            if wanted:
                self._files.announce(piece.uri, *_limits(rows, wanted))
            return
        for run in _runs(rows, wanted):
            start, stop = _limits(rows, run)
            if self._cache is None:
                yield start, self._request(piece.uri, start, stop)
            elif not piece.dropped:
                mark = hashlib.sha256(b"".join(rows.sha256[row] for row in run)).digest()
                request = functools.partial(self._request, piece.uri, start, stop)
                yield start, self._cache.get(piece.uri, start, stop, mark, request)

    def _request(self, uri: str, start: int, stop: int) -> Bytes:
        patience = {"attempt_seconds": self._reading.attempt_seconds, "deadline_seconds": self._reading.deadline_seconds}
        with self._slots:
            return storage.read_range(uri, start, stop, **patience)

    def read(self, piece: Piece, row: int) -> Bytes:
        """The bytes of a sample of a fetched piece; `row` counts from the piece's first.

        Raises:
            DataError: its local shard is missing.
            StorageError: its remote shard cannot be read.
            IntegrityError: its bytes are not those that the index recorded.
        """
        if piece.fault is not None:
            raise piece.fault
        assert piece.rows is not None  # fetched
        start, size, sha256 = int(piece.rows.offset[row]), int(piece.rows.size[row]), piece.rows.sha256[row]
        if piece.local:
            try:
                versions: Iterable[Bytes] = (self._files.read(piece.uri, start, size),)
            except OSError as fault:
                raise DataError(f"{piece.where(row)}: {fault}", CURE) from None
        else:
            versions = self._remote(piece, start, size)
        for data in versions:
            if hashlib.sha256(data).digest() == sha256:
                return data
        raise IntegrityError(f"{piece.where(row)}: bytes differ from the index", CURE)

    def _remote(self, piece: Piece, start: int, size: int) -> Iterator[Bytes]:
        """A sample's bytes as they were fetched, then anew for each further try."""
        for offset, span in piece.spans:
            if offset <= start and start + size <= offset + len(span):
                yield span[start - offset : start - offset + size]
                if self._cache is not None:
                    self._cache.drop(piece.uri, offset, offset + len(span))
        for _ in range(TRIES):
            yield self._request(piece.uri, start, start + size)

    def close(self) -> None:
        """End the threads and close the files. A request that hangs ends in the background, and is not heard any more."""
        self._closed = True
        self.drop_expected()
        for _ in self._threads:
            self._work.put(None)
        ended = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0, ended - time.monotonic()))
        self._threads.clear()
        self._files.close()


@functools.lru_cache(maxsize=4096)
def _address(folder: str, uri: str) -> str:
    """Where a shard lies; a plain path if that is on this machine."""
    return absolute(join(folder, uri))


def _limits(rows: Rows, run: Sequence[int]) -> tuple[int, int]:
    """Where the first of some rows begins in the shard, and where the last ends."""
    return int(rows.offset[run[0]]), int(rows.offset[run[-1]] + rows.size[run[-1]])


def _runs(rows: Rows, wanted: Sequence[int]) -> Iterator[list[int]]:
    """`wanted` rows in runs that are worth a request each."""
    run: list[int] = []
    for row in wanted:
        if run:
            first, end = _limits(rows, run)
            start, stop = _limits(rows, [row])
            if start - end > GAP_BYTES or stop - first > REQUEST_BYTES:
                yield run
                run = []
        run.append(row)
    if run:
        yield run
