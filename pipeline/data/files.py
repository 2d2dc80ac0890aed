"""Local files that are read at random places by several threads, with a bounded number of them open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

__all__ = ["FILES_OPEN", "OpenFiles"]

FILES_OPEN = 128


class OpenFiles:
    """Open files, those used last; a file that is being read stays open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, list[int]] = OrderedDict()  # [descriptor, readers]
        self._lock = threading.Lock()

    def _take(self, path: str) -> list[int]:
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = self._open[path] = [os.open(path, os.O_RDONLY), 0]
            self._open.move_to_end(path)
            entry[1] += 1
            idle = [name for name, (_, readers) in self._open.items() if not readers] if len(self._open) > FILES_OPEN else []
            for name in idle[: len(self._open) - FILES_OPEN]:
                os.close(self._open.pop(name)[0])
            return entry

    def _give(self, entry: list[int]) -> None:
        with self._lock:
            entry[1] -= 1

    def read(self, path: str, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer at the end of the file."""
        entry = self._take(path)
        try:
            return os.pread(entry[0], count, start)
        finally:
            self._give(entry)

    def announce(self, path: str, start: int, stop: int) -> None:
        """Let the kernel read ahead what will soon be asked for, so that decoding need not wait for a disk."""
        try:
            entry = self._take(path)
        except OSError:
            return  # the read itself will name it
        os.posix_fadvise(entry[0], start, stop - start, os.POSIX_FADV_WILLNEED)
        self._give(entry)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for handle, _ in self._open.values():
                os.close(handle)
            self._open.clear()
