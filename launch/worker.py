"""Start one worker process group, wait for it, and turn its end into nothing, one named error, or a crash.

The worker's standard output is ours, so its progress bars see the terminal. Its standard error is captured: it goes to
the stage's log, and to the user only when the worker ended by a bug.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from launch.endings import AGAIN, WorkerError, ending, keep_stacks, read_hangs
from launch.forkserver import Adopted, ForkServer
from launch.torchrun import JobSpec
from pipeline.errors import Preempted

__all__ = ["Asked", "WorkerError", "run_worker", "terminable"]

# torchrun's agent gives its ranks 30 s to save their state after SIGTERM; wait a little longer than it does.
GRACE_SECONDS = 40.0
PATIENCE_SECONDS = 5.0
"""For ranks that outlived their agent, where nobody asked them to save."""
TAIL_LINES = 400
# From <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Asked(Preempted):
    """This very process was asked to leave, by SIGTERM or by a batch system's SIGUSR1."""


def _prctl() -> Callable[[int, int], int]:
    """Linux's prctl, or a function that does nothing elsewhere. Loaded before the fork: a forked child must not load."""
    if sys.platform != "linux":
        return lambda option, value: 0
    library = ctypes.CDLL(None, use_errno=True)
    return lambda option, value: int(library.prctl(option, value, 0, 0, 0))


def _children() -> set[int]:
    """Process ids of this process's children, from /proc; empty where there is none."""
    found, me = set(), os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The command name, in parentheses, may hold spaces; state and parent follow it.
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == me:
                found.add(int(stat.parent.name))
    return found


class _Grace:
    """Until when ranks may still save their state, by the monotonic clock."""

    def __init__(self) -> None:
        self.until = 0.0


@contextlib.contextmanager
def _adopting() -> Iterator[_Grace]:
    """While the body runs, ranks whose agent died become our children; at its end none of them is left.

    They have a few seconds, or what is left of the time that the body gave.
    """
    prctl, before, grace = _prctl(), _children(), _Grace()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield grace
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = max(grace.until, time.monotonic() + PATIENCE_SECONDS)
            left = _children() - before
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C insists
                _reap(left, deadline)
            grace.until = 0.0
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def _reap(left: set[int], deadline: float) -> None:
    while left and time.monotonic() < deadline:
        for pid in list(left):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            left.discard(pid)
        time.sleep(0.02)


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class _Listener:
    """Raises Asked at the first signal to leave. Batch systems repeat themselves: more of them must not cut the leave short."""

    def __init__(self, what: str) -> None:
        self._what, self.told = what, False
        self.old = {number: signal.signal(number, self) for number in SIGNALS}

    def __call__(self, number: int, frame: Any) -> None:
        if not self.told:
            self.tell()
            raise Asked(f"{self._what}: stopped by {signal.Signals(number).name}", AGAIN)

    def tell(self) -> None:
        """This one, and those around it, have been asked."""
        self.told = True
        for outer in self.old.values():
            if isinstance(outer, _Listener):
                outer.tell()

    def leave(self) -> None:
        """Put the old handlers back; where there was none, a process that was asked to leave does so undisturbed."""
        for number, old in self.old.items():
            signal.signal(number, signal.SIG_IGN if self.told and old == signal.SIG_DFL else old)


@contextlib.contextmanager
def terminable(what: str) -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise Asked in the body, once, as Ctrl-C raises KeyboardInterrupt."""
    listener = _Listener(what)
    try:
        yield
    finally:
        listener.leave()


class _Capture(threading.Thread):
    """Reads a worker's standard error to its end, keeps the last lines, and adds all to a log file."""

    def __init__(self, stream: IO[bytes], log: str) -> None:
        super().__init__(daemon=True)
        self._stream, self._log = stream, log
        self._lines: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.start()

    def run(self) -> None:
        with self._stream, contextlib.ExitStack() as stack:
            copy: IO[bytes] | None = None
            if self._log:
                with contextlib.suppress(OSError):
                    os.makedirs(os.path.dirname(self._log), exist_ok=True)
                    copy = stack.enter_context(open(self._log, "ab", buffering=0))
            for line in self._stream:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                try:
                    if copy:
                        copy.write(line)
                except OSError:  # A full disk must not stop the reading, or the worker would hang on a full pipe.
                    copy = None

    def text(self) -> str:
        # A stray grandchild may hold the pipe open; what matters was written before the worker ended.
        self.join(timeout=5)
        return "\n".join(list(self._lines))


def _stop(child: subprocess.Popen[bytes] | Adopted, grace: _Grace) -> None:
    """SIGTERM to the group, so that ranks save their state; SIGKILL when the grace is over or the user insists by Ctrl-C."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # `terminable` puts the old handlers back
    grace.until = time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        # An agent that is sent a second signal by a batch system ends at once; its ranks are still saving.
        child.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        grace.until = 0.0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _start(job: JobSpec, stdin: int, stdout: int, stderr: int, forks: ForkServer | None) -> subprocess.Popen[bytes] | Adopted:
    """Start a process in a session of its own that is told to leave when we end."""
    if forks and (child := forks.start(job, stdin=stdin, stdout=stdout, stderr=stderr)):
        return child
    prctl, parent = _prctl(), os.getpid()

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # The parent died between fork and prctl.
            os._exit(75)

    return subprocess.Popen(
        job.argv,
        env=job.env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread of ours is alive at the fork
    )


def run_worker(
    job: JobSpec, *, what: str, lock: int | None = None, log: str = "", to_stderr: bool = False, forks: ForkServer | None = None
) -> None:
    """Run one worker process group to its end.

    Args:
        job: what to start.
        what: how messages call it, e.g. `stage train`.
        lock: descriptor of the run folder's lock. It becomes the worker's standard input, the one descriptor that
            torchrun hands on to its ranks, so that a rank which outlives us keeps the folder locked.
        log: local file for the worker's standard error; empty for none.
        to_stderr: send the worker's standard output to our standard error, because ours must be JSON.
        forks: what forks it, if it can; without it a process is started.

    Raises:
        UnlearnError: the worker's own named error, or Preempted when a signal ended it.
        WorkerError: anything else that is not success.
    """
    with tempfile.TemporaryDirectory(prefix="unlearn-") as scratch, terminable(what), open(os.devnull, "rb") as nothing:
        error_file = os.path.join(scratch, "error.jsonl")
        job = dataclasses.replace(job, env={**job.env, "UNLEARN_ERROR_FILE": error_file})
        with _adopting() as grace:
            reader, writer = os.pipe()
            try:
                child = _start(job, nothing.fileno() if lock is None else lock, 2 if to_stderr else 1, writer, forks)
            finally:
                os.close(writer)
                capture = _Capture(os.fdopen(reader, "rb"), log)
            try:
                code = child.wait()
            except BaseException:
                _stop(child, grace)
                raise
        output = capture.text()
        keep_stacks(read_hangs(error_file), log)
        if code:
            raise ending(what, code, output=output, error_file=error_file, log=log)
