"""Requests to remote stores: every attempt has a time limit, attempts are repeated, and ranges come whole or not at all."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError

from pipeline import presigned
from pipeline.addresses import filesystem, is_s3
from pipeline.errors import IntegrityError, StorageError
from pipeline.retry import retrying

__all__ = ["ATTEMPT_SECONDS", "DEADLINE_SECONDS", "RemoteFile", "ask", "call_s3", "fetch_range"]

ATTEMPT_SECONDS = 20.0
DEADLINE_SECONDS = 300.0
BLOCK = 8 << 20


def once(uri: str, act: str, *arguments: Any, seconds: float | None, **named: Any) -> Any:
    """One attempt at a method of the URI's file system, which is given the path first.

    Raises:
        TimeoutError: no answer within `seconds`; the request was given up.
    """
    fs, path = filesystem(uri)
    if not fs.async_impl:
        return getattr(fs, act)(path, *arguments, **named)
    try:
        # The time limit cancels the request inside the event loop, so nothing goes on in the background.
        return sync(fs.loop, getattr(fs, f"_{act}"), path, *arguments, timeout=seconds, **named)
    except FSTimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def ask(
    uri: str,
    act: str,
    *arguments: Any,
    attempt_seconds: float | None = ATTEMPT_SECONDS,
    deadline_seconds: float = DEADLINE_SECONDS,
    **named: Any,
) -> Any:
    """What a method of the URI's file system returns, tried again while its faults may pass.

    Args:
        act: name of the fsspec method, such as `info`; it is given the path, then `arguments`.
        attempt_seconds: time limit of one attempt; None where it depends on the size.

    Raises:
        StorageError: the deadline has passed, or the client cannot use the address.
        OSError: a fault that does not pass.
    """
    try:
        return retrying(
            lambda: once(uri, act, *arguments, seconds=attempt_seconds, **named), what=uri, deadline_seconds=deadline_seconds
        )
    except ValueError as fault:  # clients say so of an endpoint or a name that they cannot use
        raise StorageError(f"{uri}: {fault}", "correct the address, and the endpoint in the environment") from None


def call_s3(uri: str, call: str, *, deadline_seconds: float = DEADLINE_SECONDS, **named: Any) -> Any:
    """The answer to one of S3's own calls on the URI's bucket, tried again like `ask`.

    Args:
        call: name of the boto3 client's method; `Bucket` is given to it, and `named`.
    """
    fs, path = filesystem(uri)
    named["Bucket"] = fs.split_path(path)[0]

    def attempt() -> Any:
        try:
            return sync(fs.loop, fs._call_s3, call, timeout=ATTEMPT_SECONDS, **named)
        except FSTimeoutError:
            raise TimeoutError(f"no answer within {ATTEMPT_SECONDS:g} s") from None

    return retrying(attempt, what=f"{uri}: {call}", deadline_seconds=deadline_seconds)


def fetch_range(uri: str, start: int, stop: int, *, attempt_seconds: float, deadline_seconds: float) -> bytes | bytearray:
    """Bytes `start` to `stop` of an object, all of them.

    Raises:
        IntegrityError: the object is shorter than that.
        StorageError: the deadline has passed.
        OSError: a fault that does not pass.
    """

    def attempt() -> bytes | bytearray:
        try:
            data: bytes | bytearray | None = None
            if is_s3(uri) and stop > start:
                data = presigned.read_range(uri, start, stop, seconds=attempt_seconds)
            if data is None:
                data = once(uri, "cat_file", start=start, end=stop, seconds=attempt_seconds)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as fault:
            # A range past the end is refused, by each store with its own error.
            if "ange" in str(fault):
                _check_reaches(uri, stop, attempt_seconds)
            raise
        if len(data) != stop - start:
            _check_reaches(uri, stop, attempt_seconds)
            raise ConnectionError(f"{len(data)} of {stop - start} bytes came")
        return data

    return retrying(attempt, what=f"{uri}: bytes {start} to {stop}", deadline_seconds=deadline_seconds)


def _check_reaches(uri: str, stop: int, seconds: float) -> None:
    size = once(uri, "info", seconds=seconds)["size"]
    if size is not None and size < stop:
        cure = "restore the object, or index the source again"
        raise IntegrityError(f"{uri}: the object has {size} bytes; byte {stop - 1} was asked for", cure)


class RemoteFile(io.RawIOBase):
    """A remote object as a file for reading, in blocks of 8 MiB; read in sequence, the next block is fetched meanwhile."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        size = ask(uri, "info")["size"]
        if size is None:
            raise StorageError(f"{uri}: the server does not say how long it is", "put the file into a bucket or a folder")
        self._uri, self._size, self._place = uri, int(size), 0
        self._blocks: dict[int, Future[bytes | bytearray]] = {}
        self._last = -1
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="read-ahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def _begin(self, number: int) -> Future[bytes | bytearray]:
        if number not in self._blocks:
            start = number * BLOCK
            bounds = start, min(start + BLOCK, self._size)
            self._blocks[number] = self._pool.submit(
                fetch_range, self._uri, *bounds, attempt_seconds=ATTEMPT_SECONDS, deadline_seconds=DEADLINE_SECONDS
            )
        return self._blocks[number]

    def _block(self, number: int) -> bytes | bytearray:
        found = self._begin(number)
        if number == self._last + 1 and (number + 1) * BLOCK < self._size:
            self._begin(number + 1)
        self._last = number
        for old in [known for known in self._blocks if known not in (number, number + 1)]:
            self._blocks.pop(old).cancel()
        return found.result()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._place >= self._size or not len(view):
            return 0
        number, offset = divmod(self._place, BLOCK)
        part = self._block(number)[offset : offset + len(view)]
        view[: len(part)] = part
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._blocks.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
