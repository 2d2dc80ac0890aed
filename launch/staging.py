"""A local folder to make a release in: it becomes the release by a rename, or nothing is left of it, even after a kill.

Its maker holds a lock on it that ends with the process, however that ends; what nobody holds any more the next one removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.storage import is_local

__all__ = ["staging"]

PREFIX, SUFFIX = ".release-", ".part"


@contextlib.contextmanager
def staging(line: str) -> Iterator[Path]:
    """An empty folder, inside `line` where that is local, else where this machine keeps temporary files.

    Args:
        line: folder of a model line, on any storage.

    Raises:
        StorageError: the folder cannot be made.
    """
    beside = line if is_local(line) else tempfile.gettempdir()
    try:
        os.makedirs(beside, exist_ok=True)
        _remove_abandoned(beside)
        stage, handle = _make(beside)
    except OSError as fault:
        raise StorageError(f"{beside}: {fault.strerror}", "choose another folder, or make it writable for you") from None
    try:
        yield Path(stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(handle)


def _make(beside: str) -> tuple[str, int]:
    """A new folder and the lock on it."""
    while True:
        stage = tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=beside)
        # Another one may take it for abandoned at any moment before it is locked.
        try:
            handle = os.open(stage, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(stage), os.fstat(handle)):
                os.chmod(stage, 0o755)  # noqa: S103 as the folder of any other file here
                return stage, handle
        os.close(handle)


def _remove_abandoned(beside: str) -> None:
    for path in Path(beside).glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
