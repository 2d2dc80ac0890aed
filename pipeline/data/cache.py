"""Ranges of remote shards, kept as local files and shared by the processes of a machine.

Each shard has a folder named by the digest of its address, so that all that was kept of it can be found and removed. A range is
named by its limits and by a mark, a digest of the samples that it should hold: another shard at the same address has other
names. Files appear whole; whether their bytes are still right is for the reader to check, sample by sample.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator

from pipeline.errors import StorageError

__all__ = ["RangeCache"]

log = logging.getLogger("unlearn")

SPARE = 8
"""Removing old ranges frees one in so many bytes of the limit."""
SCANS = 64
"""The folder is measured again when one in so many bytes of the limit were added by this process."""


class RangeCache:
    """Ranges of remote shards in a local folder, of a bounded size; those unused for longest go first.

    Eight processes that fill one folder together stay below the limit; more may pass it by an eighth for every eight of them.
    All methods may be called from several threads.

    Args:
        folder: made if need be, for its owner only: it holds images.
        limit: bytes.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self._folder, self._limit = os.path.abspath(folder), limit
        self._lock = threading.Lock()
        self._added: int | None = None
        self._failed = False
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
        except OSError as fault:
            raise StorageError(f"{folder}: {fault}", "correct reading.cache_folder, or leave it empty") from None

    def _shard(self, uri: str) -> str:
        return os.path.join(self._folder, hashlib.sha256(uri.encode()).hexdigest())

    def get(self, uri: str, start: int, stop: int, mark: bytes, read: Callable[[], bytes | bytearray]) -> bytes | bytearray:
        """Bytes `start` to `stop` of a shard, from the folder, or else by `read`, and kept."""
        path = os.path.join(self._shard(uri), f"{start}-{stop}-{mark.hex()}")
        with contextlib.suppress(OSError):
            with open(path, "rb") as stream:
                kept = stream.read()
            if len(kept) == stop - start:
                os.utime(path)
                return kept
        data = read()
        if len(data) <= self._limit // SPARE:
            self._put(path, data)
        return data

    def _put(self, path: str, data: bytes | bytearray) -> None:
        part = ""
        try:
            self._make_room(len(data))
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            handle, part = tempfile.mkstemp(suffix=".part", dir=os.path.dirname(path))
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.replace(part, path)
        except FileNotFoundError:
            pass  # the shard was purged meanwhile
        except OSError as fault:
            with contextlib.suppress(OSError):
                os.unlink(part)
            if not self._failed:  # reading goes on without it
                self._failed = True
                log.warning("reading.cache_folder: ranges are not kept: %s", os.strerror(fault.errno or 0))

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._folder) as shards:
            for shard in shards:
                # A shard's folder may be purged meanwhile.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(shard) as files:
                    yield from files

    def _make_room(self, size: int) -> None:
        """Count `size` more bytes, and remove ranges when the folder has become too large."""
        with self._lock:
            if self._added is not None and self._added + size <= self._limit // SCANS:
                self._added += size
                return
            self._added = size
            found = []
            for file in self._files():
                with contextlib.suppress(FileNotFoundError):
                    stat = file.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, file.path))
            excess = sum(bytes_ for _, bytes_, _ in found) + size - (self._limit - self._limit // SPARE)
            for _, bytes_, path in sorted(found):
                if excess <= 0:
                    return
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                excess -= bytes_

    def drop(self, uri: str, start: int, stop: int) -> None:
        """Remove a range whose bytes were found to be wrong."""
        folder = self._shard(uri)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder):
                if name.startswith(f"{start}-{stop}-"):
                    os.unlink(os.path.join(folder, name))

    def purge(self, uris: Iterable[str]) -> int:
        """Remove all that is kept of these shards.

        Returns:
            How many ranges there were.

        Raises:
            StorageError: some could not be removed.
        """
        count = 0
        for shard in map(self._shard, uris):
            try:
                # Renamed first: a process that is filling the folder goes on in a new one, and cannot keep this one alive.
                with contextlib.suppress(FileNotFoundError):
                    os.rename(shard, f"{shard}.{uuid.uuid4().hex}")
                while gone := glob.glob(f"{glob.escape(shard)}.*"):
                    with contextlib.suppress(FileNotFoundError):  # another process purges it too
                        count += len(os.listdir(gone[0]))
                        shutil.rmtree(gone[0])
            except OSError as fault:
                raise StorageError(f"{self._folder}: {fault}", "make the folder writable, and erase again") from None
        return count
