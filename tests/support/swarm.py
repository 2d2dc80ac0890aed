"""Several processes at the same work on one ledger: `python -m tests.support.swarm WORK COUNT URL`.

They are forked from a process of their own, which has one thread: the one that runs the tests may have many.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.ledger import batches, history
from pipeline.ledger.leases import claim
from pipeline.ledger.requests import Submission, submit
from pipeline.ledger.store import Ledger, Transaction, open_ledger
from tests.support.ledgers import assert_consistent, fill

ROOT = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context("fork")


def swarm(work: str, count: int, url: str) -> list[str]:
    """Let so many processes do a work at once; returns the lines that they print. Fails where one of them does."""
    command = [sys.executable, "-m", "tests.support.swarm", work, str(count), url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def append(url: str) -> None:
    """Open a ledger, perhaps make it, and add five entries."""
    with open_ledger(url, actor=f"process {os.getpid()}") as opened:
        for number in range(5):
            with opened.write() as tx:
                history.append(tx, "run", f"r{number}", "counted")


def send(url: str) -> None:
    """Send each of three requests twice."""
    with open_ledger(url) as opened:
        for number in range(6):
            with opened.write() as tx:
                submit(tx, Submission(kind="keys", values=(f"k{number % 3}",), line="demo", subject="Ann"))


def claim_all(url: str) -> None:
    """Claim batches until there is none, and print their names."""
    with open_ledger(url) as opened:
        while True:
            with opened.write() as tx:
                lease = claim(tx, f"process {os.getpid()}", 600)
            if lease is None:
                return
            os.write(1, f"{lease.batch_id}\n".encode())


def one_by_one(ledger: Ledger) -> None:
    """What a worker does: close, claim, and move each batch by one state, in a transaction each."""
    acts: list[Callable[[Transaction], Any]] = [
        lambda tx: batches.close_due(tx, batches.Policy(count=1, most=2)),
        lambda tx: claim(tx, f"process {os.getpid()}", 0.01),
    ]
    for act in acts:
        with ledger.write() as tx:
            act(tx)
    following = {"closed": "running", "running": "evaluated", "evaluated": "released", "failed": "closed"}
    with ledger.read() as tx:
        found = batches.listing(tx, states=list(following))
    for row in found:
        with ledger.write() as tx:
            if batches.find(tx, row["batch_id"])["state"] == row["state"]:
                batches.move(tx, row["batch_id"], following[row["state"]])


def _endless(url: str, first: int) -> None:
    with open_ledger(url, actor="victim") as opened:
        for number in itertools.count(first):
            fill(opened, 1, first=number)
            one_by_one(opened)


def killed(url: str) -> None:
    """Kill six processes at their work, one after the other; the ledger is whole after each."""
    dice = random.Random(5)
    for attempt in range(6):
        child = FORKS.Process(target=_endless, args=(url, attempt * 10_000))
        child.start()
        time.sleep(0.15 + dice.random() / 4)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        with open_ledger(url) as opened:
            assert_consistent(opened)


WORKS = {"append": append, "send": send, "claim": claim_all, "killed": killed}


def _together(start: Any, work: str, url: str) -> None:
    start.wait(60)
    WORKS[work](url)


def main(work: str, count: int, url: str) -> int:
    """Fork the processes, let them begin together, and say how many failed."""
    if count == 1:
        WORKS[work](url)
        return 0
    start = FORKS.Barrier(count)
    children = [FORKS.Process(target=_together, args=(start, work, url)) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
    return sum(child.exitcode != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
