"""Where the sharded checkpoints of a phase lie, on a shared disk or in a bucket, and how a file gets there and back.

`checkpoints/<phase>/last/state.json` names the newest checkpoint, whose files lie beside it in a folder of their own that no
other save ever uses: replacing that one small file is what puts a checkpoint in place. DeepSpeed writes and reads local
files, so for a bucket each machine has a scratch folder of the same layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from pipeline.decode import sha256_text
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef
from pipeline.storage import (
    absolute,
    exists,
    hash_file,
    is_local,
    join,
    list_files,
    open_read,
    publish,
    publish_bytes,
    read_bytes,
    remove_tree,
)

__all__ = ["Places"]

BLOCK = 1 << 20


class Places:
    """The checkpoint folders of one phase.

    Args:
        folder: the run folder, on a disk that all ranks share or in a bucket.
        scratch: for a bucket, where files lie on this machine; by default this user's folder below the temporary folder.
    """

    def __init__(self, folder: str, phase: str, *, scratch: str = "") -> None:
        self.shared = is_local(folder)
        """Whether all ranks see the same local files."""
        self._base = join(absolute(folder), "checkpoints", phase)
        self._root = scratch or os.path.join(tempfile.gettempdir(), f"i2i-unlearn-{os.getuid()}")
        self._scratch = os.path.join(self._root, sha256_text(self._base)[:16])
        self._here = self._base if self.shared else self._scratch
        self.pointer = join(self._base, "last", "state.json")
        self.cure = f"remove {join(self._base, 'last')} and run again: the phase then begins anew"

    @staticmethod
    def new_name(step: int) -> str:
        """A folder name that was never used: also not by a save that was killed, nor by another process at the same step."""
        return f"step-{step}-{secrets.token_hex(4)}"

    def local(self, name: str) -> str:
        """The local folder of that name."""
        return os.path.join(self._here, name)

    def prepare(self, name: str) -> str:
        """Make the local folder of that name and return its path.

        Raises:
            StorageError: another user owns the scratch folder: there the files would not be safe from them.
        """
        if not self.shared:
            os.makedirs(self._root, mode=0o700, exist_ok=True)
            if os.stat(self._root).st_uid != os.getuid():
                raise StorageError(f"{self._root}: belongs to another user", "set TMPDIR to a folder of your own")
        os.makedirs(self.local(name), exist_ok=True)
        return self.local(name)

    def put(self, name: str, path: str) -> FileRef:
        """Publish a local file that this rank wrote; returns its digest, with `path` as URI."""
        local = os.path.join(self.local(name), path)
        if self.shared:
            ref = hash_file(local)
            with open(local, "rb") as stream:
                os.fsync(stream.fileno())
        else:
            with open(local, "rb") as stream, publish(join(self._base, name, path)) as out:
                shutil.copyfileobj(stream, out, BLOCK)
            ref = out.ref
        return dataclasses.replace(ref, uri=path)

    def get(self, name: str, ref: FileRef) -> None:
        """See to it that a file of a checkpoint lies in the local folder with the bytes that were saved.

        Raises:
            IntegrityError: it is missing, or has other bytes.
        """
        if not _relative(ref.uri):
            raise IntegrityError(f"{self.pointer}: {ref.uri!r} does not lie in the checkpoint's folder", self.cure)
        local = os.path.join(self.local(name), ref.uri)
        if os.path.exists(local) and hash_file(local).sha256 == ref.sha256:
            return
        if self.shared:
            raise IntegrityError(f"{local}: not the bytes that were saved", self.cure)
        self.prepare(name)
        uri = join(self._base, name, ref.uri)
        try:
            with open_read(uri) as stream, publish(local) as out:
                while block := stream.read(BLOCK):
                    out.write(block)
                if out.ref.sha256 != ref.sha256:
                    raise IntegrityError(f"{uri}: not the bytes that were saved", self.cure)
        except StorageError:
            if exists(uri):
                raise
            raise IntegrityError(f"{uri}: not the bytes that were saved: it is missing", self.cure) from None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Only one process of this machine at a time, where the local folder is the machine's own."""
        if self.shared:
            yield
            return
        self.prepare("")
        with open(os.path.join(self._scratch, ".lock"), "wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def point(self, content: bytes) -> None:
        """Put a checkpoint in place: replace the state that names the newest one."""
        publish_bytes(self.pointer, content)

    def pointed(self) -> bytes | None:
        """The state that names the newest checkpoint, or None."""
        return read_bytes(self.pointer) if exists(self.pointer) else None

    def remove(self, path: str) -> None:
        """Remove one published file, where it is still there."""
        remove_tree(join(self._base, path))

    def drop(self, name: str, *, first: bool) -> None:
        """Remove one folder: the published one on rank 0 (`first`), the machine's own on every rank."""
        if first:
            remove_tree(join(self._base, name))
        if not self.shared:
            shutil.rmtree(self.local(name), ignore_errors=True)

    def sweep(self, keep: str, *, first: bool) -> None:
        """Remove all folders but `keep`: what saves and conversions that were killed left behind."""
        if first:
            for name in self._published():
                if name != keep:
                    remove_tree(join(self._base, name))
        for name in self._names(self._scratch) if not self.shared else []:
            if name != keep:
                shutil.rmtree(self.local(name), ignore_errors=True)

    def clear(self, *, first: bool) -> None:
        """Remove everything, what names the newest checkpoint before its files."""
        if first:
            remove_tree(join(self._base, "last"))
        self.sweep("", first=first)
        if not self.shared:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _published(self) -> list[str]:
        if self.shared:
            return self._names(self._base)
        return [uri.rstrip("/").rpartition("/")[2] for uri in list_files(join(self._base, "step-*"))]

    @staticmethod
    def _names(folder: str) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(folder) if entry.name.startswith("step-")]
        except FileNotFoundError:
            return []


def _relative(path: str) -> bool:
    return not os.path.isabs(path) and ".." not in path.split("/")
