"""A desk knows where a line's batches run; a heartbeat keeps a lease, and tells when it is lost."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from launch.batch_run import Local, Slurm
from launch.desk import Desk, heartbeat
from launch.policy import LinePolicy, SchedulePolicy
from launch.worker import Asked, terminable
from pipeline.ledger import batches, leases
from pipeline.ledger.leases import Lease, LeaseLost
from pipeline.ledger.schema import BATCH
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.schedule import ask


def claimed(ledger: Ledger, seconds: float) -> Lease:
    ask(ledger, "line", "train-000001")
    with ledger.write() as tx:
        lease = leases.claim(tx, "me", seconds, batch_id=batches.close(tx, "line"))
    assert lease is not None
    return lease


def until(ledger: Ledger) -> str:
    with ledger.read() as tx:
        return str(batches.find(tx, "b-000001")["lease_until"])


def test_a_lease_lives_while_the_body_runs(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        lease = claimed(ledger, 0.4)
        desk = Desk(ledger, SchedulePolicy(lease_seconds=0.4), owner="me", say=print)
        with heartbeat(desk, lease):
            time.sleep(0.8)
            assert until(ledger) > ledger.now() > lease.until
        last = until(ledger)
        time.sleep(0.3)
        assert until(ledger) == last


def test_a_lost_lease_ends_the_body(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        lease = claimed(ledger, 0.4)
        with ledger.write() as tx:
            tx.execute(sa.update(BATCH).values(lease_number=lease.number + 1))
        desk = Desk(ledger, SchedulePolicy(lease_seconds=0.4), owner="me", say=print)
        began = time.monotonic()
        with pytest.raises(LeaseLost, match="taken over"), terminable("body"), heartbeat(desk, lease):
            time.sleep(10)
        assert time.monotonic() - began < 5


def test_a_lease_that_was_lost_at_the_very_end_is_lost(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        lease = claimed(ledger, 0.2)
        desk = Desk(ledger, SchedulePolicy(lease_seconds=0.2), owner="me", say=print)
        with pytest.raises(LeaseLost), terminable("body"), heartbeat(desk, lease) as lost:
            with ledger.write() as tx:
                tx.execute(sa.update(BATCH).values(lease_number=lease.number + 1))
            with contextlib.suppress(Asked):
                while not lost.is_set():
                    time.sleep(0.01)
                time.sleep(1)


def test_what_a_line_says_goes_before_what_all_say(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        lines = {"far": LinePolicy(submit="slurm", cluster="two_nodes"), "near": LinePolicy()}
        desk = Desk(ledger, SchedulePolicy(lines=lines), owner="me", say=print)
        assert [desk.where(name) for name in lines] == ["slurm", "local"]
        assert [desk.cluster(name) for name in lines] == ["two_nodes", ""]
        assert isinstance(desk.runner("slurm"), Slurm) and type(desk.runner("local")) is Local
