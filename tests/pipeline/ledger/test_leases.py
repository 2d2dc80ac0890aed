"""One worker at a time: a lease is held, renewed, lost by number, and never by two."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.ledger import batches, history
from pipeline.ledger.leases import Lease, LeaseLost, claim, give_back, heartbeat, refuse_lost
from pipeline.ledger.store import Ledger, open_ledger
from tests.pipeline.ledger.conftest import Clock
from tests.support.ledgers import assert_consistent, fill
from tests.support.swarm import swarm


def closed(ledger: Ledger, line: str = "demo") -> str:
    fill(ledger, 2, line=line)
    with ledger.write() as tx:
        return batches.close(tx, line)


def take(ledger: Ledger, owner: str = "a", seconds: float = 60, **more: Any) -> Lease | None:
    with ledger.write() as tx:
        return claim(tx, owner, seconds, **more)


def test_a_batch_is_claimed_by_one_until_the_lease_runs_out(ledger: Ledger, clock: Clock) -> None:
    name = closed(ledger)
    first = take(ledger)
    assert first == Lease(batch_id=name, owner="a", number=1, until="2026-01-31T12:01:00.000000Z")
    assert take(ledger, "b") is None
    clock.move(seconds=59.9)
    assert take(ledger, "b") is None
    clock.move(seconds=0.1)
    second = take(ledger, "b")
    assert second is not None and second.number == 2
    with ledger.read() as tx:
        refuse_lost(tx, second)
        told = [entry["detail"] for entry in history.entries(tx, "batch", name) if entry["event"] == "claimed"]
    assert '"taken_from":"a"' in told[1] and "taken_from" not in told[0]


def test_who_lost_a_lease_can_do_nothing_with_it(ledger: Ledger, clock: Clock) -> None:
    name = closed(ledger)
    first = take(ledger)
    clock.move(minutes=2)
    assert first is not None and take(ledger, "b") is not None
    acts = (
        lambda tx: heartbeat(tx, first, 60),
        lambda tx: give_back(tx, first),
        lambda tx: batches.note(tx, first, folder="f"),
        lambda tx: batches.move(tx, name, "running", lease=first),
    )
    for act in acts:
        with pytest.raises(LeaseLost, match="claim 1 was lost"), ledger.write() as tx:
            act(tx)
    with ledger.read() as tx:
        assert batches.find(tx, name)["state"] == "closed"


def test_a_heartbeat_prolongs_and_works_late_where_nobody_came(ledger: Ledger, clock: Clock) -> None:
    closed(ledger)
    lease = take(ledger)
    assert lease is not None
    for seconds in (50, 50, 500):
        clock.move(seconds=seconds)
        with ledger.write() as tx:
            lease = heartbeat(tx, lease, 60)
        assert take(ledger, "b") is None
    assert lease.number == 1


def test_what_is_given_back_is_free_at_once_and_numbers_grow(ledger: Ledger) -> None:
    closed(ledger)
    numbers = []
    for owner in "abcb":
        lease = take(ledger, owner)
        assert lease is not None
        numbers.append(lease.number)
        with ledger.write() as tx:
            give_back(tx, lease)
    assert numbers == [1, 2, 3, 4]


def test_the_nearest_due_date_comes_first_and_choices_are_heeded(ledger: Ledger, clock: Clock) -> None:
    early = closed(ledger, "early")
    clock.move(days=1)
    late = closed(ledger, "late")
    for options in ({"line": "late"}, {"batch_id": late}):
        lease = take(ledger, **options)
        assert lease is not None and lease.batch_id == late
        with ledger.write() as tx:
            give_back(tx, lease)
    assert take(ledger, states=("running",)) is None
    assert [lease.batch_id for lease in (take(ledger, "a"), take(ledger, "b")) if lease] == [early, late]


def test_a_next_try_is_waited_for(ledger: Ledger, clock: Clock) -> None:
    name = closed(ledger)
    with ledger.write() as tx:
        batches.move(tx, name, "running")
        batches.move(tx, name, "failed", next_try_at="2026-01-31T13:00:00.000000Z")
    assert take(ledger) is None
    clock.move(hours=1)
    assert take(ledger) is not None


def test_looking_after_a_running_batch_leaves_no_entry_each_time(ledger: Ledger) -> None:
    name = closed(ledger)
    with ledger.write() as tx:
        batches.move(tx, name, "running")
        before = tx.seq
    for _ in range(3):
        lease = take(ledger)
        assert lease is not None
        with ledger.write() as tx:
            give_back(tx, lease)
    with ledger.read() as tx:
        assert tx.seq == before


def test_eight_processes_claim_each_batch_once(ledger_url: str) -> None:
    with open_ledger(ledger_url) as opened:
        names = {closed(opened, f"line{number}") for number in range(12)}
        assert sorted(swarm("claim", 8, ledger_url)) == sorted(names)
        assert_consistent(opened)
