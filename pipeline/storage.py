"""Files by URI through fsspec: read, list, publish whole or not at all, hash while writing, lock a folder.

Requests to remote stores are repeated while their faults may pass (`pipeline.remote`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pipeline.access import check_access
from pipeline.addresses import absolute, filesystem, is_local, is_s3, join, relative
from pipeline.errors import StorageError, UnlearnError
from pipeline.records import FileRef
from pipeline.remote import ATTEMPT_SECONDS, DEADLINE_SECONDS, RemoteFile, ask, fetch_range
from pipeline.retry import retrying

__all__ = [
    "absolute",
    "check_access",
    "create_bytes",
    "exists",
    "filesystem",
    "hash_file",
    "info",
    "is_local",
    "is_s3",
    "join",
    "list_files",
    "lock",
    "open_read",
    "publish",
    "publish_bytes",
    "read_bytes",
    "read_range",
    "relative",
    "remove_tree",
    "size",
]

BLOCK = 1 << 20
PART_BYTES = 16 << 20
"""Parts of an upload; four are under way at once."""


@contextlib.contextmanager
def _named_faults(uri: str) -> Iterator[None]:
    try:
        yield
    except UnlearnError:
        raise
    except FileNotFoundError:
        raise StorageError(f"{uri}: not found", "correct the path, or restore the file") from None
    except PermissionError as fault:
        raise StorageError(f"{uri}: permission denied ({fault})", "correct the permissions or the credentials") from None
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{uri}: no space left", "free space or choose another output folder, then run again") from None
        raise StorageError(f"{uri}: {fault}", "correct the path or the storage, then run again") from None


def exists(uri: str) -> bool:
    """Whether a file or folder lies at `uri`."""
    with _named_faults(uri):
        try:
            return bool(ask(uri, "exists"))
        except PermissionError:
            check_access(uri, write=False)  # a refusal to say whether it is there comes without its reason; this asks for it
            raise


def info(uri: str) -> Mapping[str, Any]:
    """What the store says of a file: `size` in bytes, and marks that each store names in its own way."""
    with _named_faults(uri):
        return cast(Mapping[str, Any], ask(uri, "info"))


def size(uri: str) -> int:
    """Size of a file in bytes."""
    return int(info(uri)["size"])


def list_files(uri: str, suffix: str = "") -> list[str]:
    """All files below a folder, or matching a glob, that end with `suffix`; sorted."""
    path = filesystem(uri)[1]
    with _named_faults(uri):
        found = ask(uri, "glob" if any(mark in path for mark in "*?[") else "find")
    # Local paths stay plain; the others keep the scheme that was asked for, where several mean one store (s3a, gcs, abfs).
    scheme = "" if is_local(uri) else f"{uri.split('://', 1)[0]}://"
    named = [item if "://" in item else f"{scheme}{item}" for item in map(str, found)]
    return sorted(item for item in named if item.endswith(suffix))


@contextlib.contextmanager
def open_read(uri: str) -> Iterator[BinaryIO]:
    """Open for reading bytes."""
    fs, path = filesystem(uri)
    with _named_faults(uri):
        if fs.async_impl:
            with io.BufferedReader(RemoteFile(uri), BLOCK) as stream:
                yield stream
        else:
            with fs.open(path, "rb") as stream:
                yield cast(BinaryIO, stream)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    with _named_faults(uri):
        return bytes(ask(uri, "cat_file", attempt_seconds=None))


def read_range(
    uri: str, start: int, stop: int, *, attempt_seconds: float = ATTEMPT_SECONDS, deadline_seconds: float = DEADLINE_SECONDS
) -> bytes | bytearray:
    """Bytes `start` to `stop` of a file, all of them.

    Args:
        attempt_seconds: a request that has no answer by then is given up and sent again.
        deadline_seconds: how long requests are repeated.

    Raises:
        IntegrityError: the file is shorter than that.
        StorageError: it is not there, or cannot be read.
    """
    with _named_faults(uri):
        return fetch_range(uri, start, stop, attempt_seconds=attempt_seconds, deadline_seconds=deadline_seconds)


def hash_file(uri: str) -> FileRef:
    """Digest and size of a file, read in blocks."""
    sha, count = hashlib.sha256(), 0
    with open_read(uri) as stream:
        while block := stream.read(BLOCK):
            sha.update(block)
            count += len(block)
    return FileRef(uri=uri, sha256=sha.hexdigest(), bytes=count)


class HashingWriter:
    """A binary file that hashes what passes; `ref` names the published file after a clean close."""

    def __init__(self, stream: IO[bytes], uri: str) -> None:
        self._stream, self._sha, self._count, self._uri = stream, hashlib.sha256(), 0, uri

    def write(self, block: bytes) -> int:
        self._sha.update(block)
        self._count += len(block)
        return self._stream.write(block)

    def flush(self) -> None:
        self._stream.flush()

    def tell(self) -> int:
        return self._count

    def close(self) -> None:
        """Closing is the publisher's act; libraries that close their file may call this."""

    @property
    def ref(self) -> FileRef:
        return FileRef(uri=self._uri, sha256=self._sha.hexdigest(), bytes=self._count)


@contextlib.contextmanager
def publish(uri: str) -> Iterator[HashingWriter]:
    """Write a file that appears whole, or not at all when the body raises.

    Locally: a temporary file beside the target, fsync, rename. Elsewhere: a temporary file on this machine that has no
    name, so that nothing is left of it however the process ends; then an upload, which is repeated while its faults may pass.
    """
    if not is_local(uri):
        with tempfile.TemporaryFile() as spool:
            with _named_faults(f"{uri}: temporary file in {tempfile.gettempdir()}"):
                yield HashingWriter(spool, uri)
                spool.flush()
            with _named_faults(uri):
                _upload(spool, uri)
        return
    path = filesystem(uri)[1]
    folder = os.path.dirname(path)
    with _named_faults(uri):
        os.makedirs(folder, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield HashingWriter(stream, uri)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(part, 0o644)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise


def _upload(spool: IO[bytes], uri: str) -> None:
    fs, path = filesystem(uri)
    limits = {"chunksize": PART_BYTES, "max_concurrency": 4} if is_s3(uri) else {}

    def attempt() -> None:
        spool.seek(0)  # where the name below stands for this very descriptor, reading begins at its place
        fs.put_file(f"/dev/fd/{spool.fileno()}", path, **limits)

    retrying(attempt, what=uri, deadline_seconds=DEADLINE_SECONDS)


def publish_bytes(uri: str, content: bytes) -> FileRef:
    """Publish `content` at `uri` whole or not at all."""
    with publish(uri) as out:
        out.write(content)
    return out.ref


def create_bytes(uri: str, content: bytes) -> bool:
    """Write `content` where nothing lies yet, whole; of several writers one wins, on any host. False: another was first.

    Locally by a hard link, which fails where the name is taken; elsewhere by the store's conditional write (on S3
    `If-None-Match: *`).
    """
    if is_local(uri):
        path = filesystem(uri)[1]
        with _named_faults(uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle, part = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=os.path.dirname(path))
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.link(part, path)
            except FileExistsError:
                return False
            finally:
                os.unlink(part)
        return True
    with _named_faults(uri):
        try:
            ask(uri, "pipe_file", content, mode="create")
        except (OSError, StorageError):
            # Clients name a failed condition in their own ways, and an answer that was lost on its way looks like one.
            if not exists(uri):
                raise
            return read_bytes(uri) == content
    return True


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it; nothing happens where there is none."""
    with _named_faults(uri), contextlib.suppress(FileNotFoundError):
        ask(uri, "rm", recursive=True)


@contextlib.contextmanager
def lock(folder: str) -> Iterator[int | None]:
    """Own a local folder while the body runs; yields the lock's descriptor, for children to inherit.

    The kernel drops the lock when the last process that holds the descriptor ends, however it ends. Folders that are
    not local yield None: their exclusive claim is the scheduler's.

    Raises:
        StorageError: another live process owns the folder.
    """
    if not is_local(folder):
        yield None
        return
    with _named_faults(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(os.path.join(folder, ".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StorageError(f"{folder}: another run is at work in this folder", "wait for it to end, or stop it") from None
    try:
        yield handle
    finally:
        os.close(handle)
