"""Files by URI through fsspec: read, list, publish whole or not at all, hash while writing, lock a folder.

Only plain storage schemes are opened; command URLs (`pipe:`) and chained URLs (`a::b`) are refused everywhere. Local
paths stay plain paths.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import fsspec

from pipeline.errors import ConfigError, StorageError, UnlearnError
from pipeline.records import FileRef

__all__ = [
    "absolute",
    "exists",
    "hash_file",
    "is_local",
    "join",
    "list_files",
    "lock",
    "move_in",
    "open_read",
    "publish",
    "publish_bytes",
    "read_bytes",
    "relative",
    "remove_tree",
    "size",
]

SCHEMES = ("file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
BLOCK = 1 << 20


def _filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem and path of a URI, or ConfigError for a scheme that is not plain storage."""
    scheme = uri.split(":", 1)[0].lower() if "://" in uri else "file"
    if uri.startswith("pipe:") or "::" in uri or scheme not in SCHEMES:
        raise ConfigError(f"{uri.split('?')[0]!r}: not a plain storage address", f"use one of: {', '.join(SCHEMES)}")
    try:
        return fsspec.core.url_to_fs(uri)
    except ImportError as fault:
        raise ConfigError(f"{scheme}://: {fault}", f"install the fsspec driver for '{scheme}'") from None


def is_local(uri: str) -> bool:
    """Whether the URI is a path on this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """A local path made absolute and free of `file://`; other URIs unchanged, without a trailing slash."""
    if not is_local(uri):
        _filesystem(uri)
        return uri.rstrip("/")
    return os.path.abspath(_filesystem(uri)[1])


def join(base: str, *parts: str) -> str:
    """`base` and a relative path; an absolute path or URI as last part stands alone. `..` is resolved."""
    path = posixpath.join(*parts)
    if "://" in path or path.startswith("/"):
        return path
    scheme, mark, rest = base.partition("://") if "://" in base else ("", "", base)
    return f"{scheme}{mark}{posixpath.normpath(posixpath.join(rest, path))}"


def relative(uri: str, base: str, root: str) -> str:
    """`uri` relative to `base` when it lies below `root`, else unchanged: a copied output folder stays whole."""
    return posixpath.relpath(uri, base) if uri.startswith(root.rstrip("/") + "/") else uri


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
    fs, path = _filesystem(uri)
    with _named_faults(uri):
        return bool(fs.exists(path))


def size(uri: str) -> int:
    """Size of a file in bytes."""
    fs, path = _filesystem(uri)
    with _named_faults(uri):
        return int(fs.size(path))


def list_files(uri: str, suffix: str = "") -> list[str]:
    """All files below a folder, or matching a glob, that end with `suffix`; sorted."""
    fs, path = _filesystem(uri)
    with _named_faults(uri):
        found = fs.glob(path) if any(mark in path for mark in "*?[") else fs.find(path)
    # unstrip_protocol gives local files a scheme; local paths stay plain here.
    named = [str(item) if is_local(uri) else fs.unstrip_protocol(item) for item in found]
    return sorted(item for item in named if item.endswith(suffix))


@contextlib.contextmanager
def open_read(uri: str) -> Iterator[BinaryIO]:
    """Open for reading bytes."""
    fs, path = _filesystem(uri)
    with _named_faults(uri), fs.open(path, "rb") as stream:
        yield cast(BinaryIO, stream)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    with open_read(uri) as stream:
        return stream.read()


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

    Locally: a temporary file beside the target, fsync, rename. Elsewhere: fsspec's transaction of one file, which
    object stores make visible on commit only.
    """
    fs, path = _filesystem(uri)
    with _named_faults(uri):
        if not is_local(uri):
            with fs.transaction, fs.open(path, "wb") as stream:
                yield HashingWriter(stream, uri)
            return
        folder = os.path.dirname(path)
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


def publish_bytes(uri: str, content: bytes) -> FileRef:
    """Publish `content` at `uri` whole or not at all."""
    with publish(uri) as out:
        out.write(content)
    return out.ref


def move_in(folder: str, target: str) -> None:
    """Rename a finished local folder to its final name, replacing an older one."""
    with _named_faults(target):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it; nothing happens where there is none."""
    fs, path = _filesystem(uri)
    with _named_faults(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)


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
