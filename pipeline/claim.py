"""Who owns a run folder: an exclusive claim with a lease, on any storage that all hosts see, without a clock in common.

Claims lie in `<folder>/claims/<number>.json`, and the highest number counts. An owner makes the next number, which only one
host can, and writes its file again every few seconds with a higher beat. Who waits watches the beat: if it stands still for
the whole lease by the watcher's own monotonic clock, the owner is dead and the next number may be made. So neither clocks
that differ nor clocks that jump matter. An owner that was only asleep finds the higher number before it publishes
(`fence`), and leaves. Leases that fence: Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.decode import canonical, decode
from pipeline.errors import IntegrityError, Preempted, StorageError, UnlearnError
from pipeline.records import record
from pipeline.storage import create_bytes, exists, join, list_files, publish_bytes, read_bytes, remove_tree

__all__ = ["AT_WORK", "LEASE_SECONDS", "VARIABLE", "Claim", "Held", "Taken", "Watcher", "fence", "owning", "this_process"]

LEASE_SECONDS = 20.0
RELEASED = {"kind": ""}
VARIABLE = "UNLEARN_CLAIM"
"""Names the claim to the processes that work under it, as URI#TOKEN."""


class Taken(StorageError):
    """The folder has a living owner."""


AT_WORK = threading.Lock()
"""Held by a thread that beats while it is at work: a worker that was forked then would have its locks locked for ever."""
os.register_at_fork(before=AT_WORK.acquire, after_in_parent=AT_WORK.release, after_in_child=AT_WORK.release)


@record
class Claim:
    """One owner's sign of life. `notes` say what the others need to join it; `ended` says why it gave up, if it did, and is
    `{"kind": ""}` when all was well."""

    token: str
    process: str
    beat: int = 0
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ended: Mapping[str, str] = dataclasses.field(default_factory=dict)


def this_process() -> str:
    """HOST/BOOT/NAMESPACE/PID/START of this process: whoever sees the same host, boot and process namespace can tell
    whether it still lives."""
    return f"{_machine()}/{os.getpid()}/{_start(os.getpid())}"


def _machine() -> str:
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{boot}/{space.strip('pid:[]')}"


def _start(pid: int) -> str:
    """When a process was started, in ticks since boot; empty where there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie owns nothing
    return ""


def _gone(process: str) -> bool:
    """Whether the process is surely dead: it was on this machine, and it is not there any more."""
    machine, _, rest = process.rpartition("/")[0].rpartition("/")
    start = process.rpartition("/")[2]
    if machine != _machine() or not rest.isdecimal() or not start:
        return False
    return _start(int(rest)) != start


def _newest(folder: str) -> tuple[int, str]:
    """The highest number among the claims, and its URI; 0 without any."""
    found = {}
    for uri in list_files(join(folder, "claims"), ".json") if exists(join(folder, "claims")) else []:
        stem = uri.rsplit("/", 1)[-1].removesuffix(".json")
        if stem.isdecimal():
            found[int(stem)] = uri
    number = max(found, default=0)
    return number, found.get(number, "")


def _read(uri: str, again: bool = True) -> Claim | None:
    """The claim, or None where it went away meanwhile."""
    try:
        return decode(Claim, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
    except StorageError:
        if exists(uri):
            raise
        return None
    except ValueError:
        if again:  # a store in memory shows a file while it is written
            time.sleep(0.05)
            return _read(uri, again=False)
        raise IntegrityError(f"{uri}: not a claim", "remove the file if no run is at work in this folder") from None


class Watcher:
    """Sees whether a folder has a living owner. Ask it again and again: it judges by its own clock between the looks.

    Args:
        lease_seconds: an owner that gives no sign of life for so long is dead.
    """

    def __init__(self, folder: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.folder, self._lease = folder, lease_seconds
        self.number = 0
        """Of the claim that was looked at last; the next number is free to take where that owner is dead."""
        self._mark: tuple[int, str, int] | None = None
        self._since = time.monotonic()

    def mark(self, claim: Claim) -> str:
        """What `VARIABLE` names to the processes that work under the claim seen last."""
        return f"{join(self.folder, 'claims', f'{self.number:06d}.json')}#{claim.token}"

    def look(self) -> Claim | None:
        """The claim of a living owner, or of one that ended and said why; None: the folder is free."""
        number, uri = _newest(self.folder)
        claim = _read(uri) if uri else None
        self.number = number
        if claim is None or claim.ended == RELEASED or (_gone(claim.process) and not claim.ended):
            return None
        mark = (number, claim.token, claim.beat)
        if mark != self._mark:
            self._mark, self._since = mark, time.monotonic()
        alive = claim.ended or time.monotonic() - self._since < self._lease
        return claim if alive else None


class Held:
    """A claim that is ours, kept alive by a thread. When another takes it, this process is sent SIGTERM."""

    def __init__(self, uri: str, claim: Claim, *, lease_seconds: float) -> None:
        self._uri, self._claim, self._every = uri, claim, lease_seconds / 5
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.lost = False
        """Whether another owner took the folder over."""
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def mark(self) -> str:
        """What `VARIABLE` names to the processes that work under this claim."""
        return f"{self._uri}#{self._claim.token}"

    def _write(self, **changes: object) -> None:
        with self._lock:
            self._claim = dataclasses.replace(self._claim, beat=self._claim.beat + 1, **changes)  # type: ignore[arg-type]
            publish_bytes(self._uri, canonical(self._claim))

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            # Storage that is away does not cost us the folder: who waits cannot see it either.
            with AT_WORK, contextlib.suppress(StorageError, OSError):
                if _overtaken(self.mark):
                    self.lost = True
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._write()

    def note(self, **notes: str) -> None:
        """Replace the notes that others read."""
        self._write(notes=notes)

    def release(self, ended: Mapping[str, str] = RELEASED) -> None:
        """Give the folder back, with the reason for those who work along. The claim stays: numbers must never come again,
        or a slow watcher could follow a dead owner of the same number into a folder that has a living one."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(UnlearnError):
            if not self.lost and not _overtaken(self.mark):
                self._write(ended=ended)
                base, _, own = self._uri.rpartition("/")
                for uri in list_files(base, ".json"):
                    name = uri.rsplit("/", 1)[-1]
                    if name.startswith("fault-") or (name[0].isdecimal() and name < own):
                        remove_tree(uri)


def _overtaken(mark: str) -> bool:
    """Whether the claim `URI#TOKEN` is no longer the one that counts: one listing and one small file."""
    uri, _, token = mark.rpartition("#")
    _, newest = _newest(uri.rpartition("/claims/")[0])
    claim = _read(newest) if newest else None
    return claim is None or claim.token != token


def fence() -> None:
    """Raise Preempted when the claim that this process works under was taken by another owner: nothing may be published.

    Called before a checkpoint or a receipt is put in place. Without a claim in the environment it does nothing.
    """
    mark = os.environ.get(VARIABLE, "")
    if mark and _overtaken(mark):
        raise _overtaken_error(mark.rpartition("/claims/")[0])


def _overtaken_error(folder: str) -> Preempted:
    return Preempted(f"{folder}: another owner took this run folder over, and goes on", "look at it there; nothing is lost")


def _take(folder: str, number: int, *, lease_seconds: float) -> Held | None:
    """Make the claim of that number; None where another host was faster."""
    uri = join(folder, "claims", f"{number:06d}.json")
    claim = Claim(token=uuid.uuid4().hex, process=this_process())
    if not create_bytes(uri, canonical(claim)):
        return None
    if _newest(folder)[0] != number:
        # We were slow: others took this number and higher ones, and removed it. The newest claim always stays, so it is seen.
        remove_tree(uri)
        return None
    return Held(uri, claim, lease_seconds=lease_seconds)


@contextlib.contextmanager
def owning(
    folder: str, *, lease_seconds: float = LEASE_SECONDS, patience: float | None = None, leave_word: bool = False
) -> Iterator[Held]:
    """Own the folder while the body runs.

    Args:
        folder: the run folder, on any storage.
        lease_seconds: see `Watcher`.
        patience: how long to wait for a dead owner's lease to run out; None: a little longer than the lease.
        leave_word: a body that fails leaves the reason in its claim, for those who follow.

    Raises:
        Taken: a living owner has it.
    """
    watcher, held = Watcher(folder, lease_seconds=lease_seconds), None
    deadline = time.monotonic() + (lease_seconds * 1.25 + 1.0 if patience is None else patience)
    while held is None:
        claim = watcher.look()
        if claim is None or claim.ended:
            # The number after the one that was judged: whoever was faster has taken it.
            held = _take(folder, watcher.number + 1, lease_seconds=lease_seconds)
            continue
        if time.monotonic() > deadline:
            who = claim.process.split("/")[0]
            raise Taken(f"{folder}: another run is at work in this folder, on {who}", "wait for it to end, or stop it")
        time.sleep(min(0.2, lease_seconds / 10))
    try:
        yield held
    except BaseException as fault:
        if held.lost:
            raise _overtaken_error(folder) from None
        named = (
            fault
            if isinstance(fault, UnlearnError)
            else UnlearnError(f"the node that leads failed: {fault!r}", "see its messages")
        )
        kind = next(cls.__name__ for cls in type(named).__mro__ if cls.__module__ == UnlearnError.__module__)
        held.release({"kind": kind, "message": named.message, "cure": named.cure} if leave_word else RELEASED)
        raise
    held.release()
