"""Where a tick of the schedule works: its ledger, its policy, who it is, and what runs its batches."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

from launch.batch_run import Runner, runner_for
from launch.policy import LinePolicy, SchedulePolicy
from launch.signals.emit import Settings
from pipeline.claim import AT_WORK
from pipeline.errors import StorageError
from pipeline.ledger import leases
from pipeline.ledger.leases import Lease, LeaseLost
from pipeline.ledger.store import Ledger

__all__ = ["Desk", "heartbeat"]


class Desk:
    """What a tick works with.

    Args:
        ledger: an open one.
        policy: the schedule's.
        owner: who ticks; no two processes may have the same.
        say: takes one line at a time, without personal data.
        runners: what runs batches, by `local` and `slurm`; None: the real ones.
        to_stderr: keep standard output free, for JSON.
        signals: where other programs are told of each tick; None: where the environment says.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: SchedulePolicy,
        *,
        owner: str,
        say: Callable[[str], None],
        runners: Mapping[str, Runner] | None = None,
        to_stderr: bool = False,
        signals: Settings | None = None,
    ) -> None:
        self.ledger, self.policy, self.owner, self.say, self.signals = ledger, policy, owner, say, signals
        self._runners, self._to_stderr = runners, to_stderr

    def line(self, name: str) -> LinePolicy:
        """What the policy says of a model line alone."""
        return self.policy.lines.get(name, LinePolicy())

    def where(self, line: str) -> str:
        """Where a line's batches run: `local` or `slurm`."""
        return self.line(line).submit or self.policy.submit

    def cluster(self, line: str) -> str:
        """The cluster that a line's batches go to."""
        return self.line(line).cluster or self.policy.cluster

    def runner(self, where: str) -> Runner:
        """What runs batches at `local` or `slurm`."""
        return self._runners[where] if self._runners else runner_for(where, self.say, to_stderr=self._to_stderr)


@contextlib.contextmanager
def heartbeat(desk: Desk, lease: Lease) -> Iterator[threading.Event]:
    """Keep a lease alive while the body runs; it must not be given back there.

    Where another worker has taken the batch, the event is set and this process gets SIGTERM, which ends a chain that runs here.

    Raises:
        LeaseLost: in place of what the body raised then, or at its end.
    """
    seconds, stop, lost = desk.policy.lease_seconds, threading.Event(), threading.Event()

    def beat() -> None:
        while not stop.wait(seconds / 4):
            try:
                with AT_WORK, desk.ledger.write() as tx:
                    leases.heartbeat(tx, lease, seconds)
            except StorageError:
                continue  # Whoever would take the batch must reach the ledger, too.
            except LeaseLost:
                lost.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        try:
            yield lost
        finally:
            stop.set()
            thread.join()
    except BaseException as fault:
        if not lost.is_set():
            raise
        raise _taken(lease) from fault
    if lost.is_set():
        raise _taken(lease)


def _taken(lease: Lease) -> LeaseLost:
    return LeaseLost(f"batch {lease.batch_id}: was taken over", "another worker goes on with it")
