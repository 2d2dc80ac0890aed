"""Batches are closed when it is time, move as the table says with their requests, and are whole wherever work breaks off."""

from __future__ import annotations

import contextlib
import itertools
import tempfile

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.ledger import batches, history
from pipeline.ledger.batches import Policy, as_batch, close, close_due, find, listing, move, note, without
from pipeline.ledger.leases import LeaseLost, claim
from pipeline.ledger.requests import Submission, counts, submit, withdraw
from pipeline.ledger.requests import move as move_requests
from pipeline.ledger.schema import BATCH_REQUEST, REQUEST
from pipeline.ledger.states import BATCH_MOVES, ForbiddenMove
from pipeline.ledger.store import Ledger, Transaction, open_ledger
from pipeline.requests import batch_digest
from tests.pipeline.ledger.conftest import Clock
from tests.support.ledgers import Broken, assert_consistent, broken_at, fill, move_through
from tests.support.swarm import one_by_one, swarm


def due(ledger: Ledger, **policy: float) -> list[str]:
    with ledger.write() as tx:
        return close_due(tx, Policy(**{"every_seconds": 0, "count": 0, "before_due_seconds": 0, **policy}))  # type: ignore[arg-type]


def reason(ledger: Ledger, name: str) -> str:
    with ledger.read() as tx:
        return str(find(tx, name)["reason"])


def states(ledger: Ledger) -> dict[str, int]:
    with ledger.read() as tx:
        return counts(tx)


def test_each_condition_closes_by_itself(ledger: Ledger, clock: Clock) -> None:
    fill(ledger, 3)
    assert due(ledger) == [] == due(ledger, count=4) == due(ledger, every_seconds=60) == due(ledger, before_due_seconds=86400)
    assert [reason(ledger, name) for name in due(ledger, count=3)] == ["count"]
    fill(ledger, 1, first=3)
    clock.move(seconds=60)
    assert [reason(ledger, name) for name in due(ledger, every_seconds=60)] == ["time"]
    fill(ledger, 1, first=4)
    clock.move(days=27, hours=1)
    assert [reason(ledger, name) for name in due(ledger, before_due_seconds=86400)] == ["due"]
    assert_consistent(ledger)


def test_a_batch_takes_the_nearest_due_dates_and_the_rest_makes_others(ledger: Ledger) -> None:
    with ledger.write() as tx:
        for day in (5, 3, 9, 7, 1):
            submit(tx, Submission(kind="keys", values=(f"k{day}",), line="demo", due_at=f"2026-02-0{day}"))
    names = due(ledger, count=1, most=2)
    with ledger.read() as tx:
        asked = [[one.selector.values[0] for one in as_batch(tx, name).requests] for name in names]
        dates = [find(tx, name)["due_at"][:10] for name in names]
    assert [sorted(part) for part in asked] == [["k1", "k3"], ["k5", "k7"], ["k9"]]
    assert dates == ["2026-02-01", "2026-02-05", "2026-02-09"]


def test_lines_do_not_mix(ledger: Ledger) -> None:
    fill(ledger, 2, line="a")
    fill(ledger, 3, line="b")
    with ledger.write() as tx:
        assert close_due(tx, Policy(count=3, every_seconds=0, before_due_seconds=0), line="a") == []
        names = close_due(tx, Policy(count=1), line="b")
        assert [find(tx, name)["line"] for name in names] == ["b"] and counts(tx, "a") == {"received": 2}
        with pytest.raises(ConfigError, match="c: no request waits"):
            close(tx, "c")


def test_a_run_reads_names_values_and_copies_and_nothing_of_the_person(ledger: Ledger) -> None:
    with ledger.write() as tx:
        wish = Submission(kind="keys", values=("b", "a"), line="demo", subject="Ann", note="N", basis="B", copies="include")
        name = submit(tx, wish).request_id
        batch = close(tx, "demo")
        (request,) = as_batch(tx, batch).requests
    assert (request.request_id, request.selector.values, request.copies) == (name, ("a", "b"), "include")
    assert (request.subject, request.note, request.basis, request.received_at) == ("", "", "", "")


def test_the_same_batch_is_the_same_whatever_becomes_of_it(ledger: Ledger) -> None:
    names = fill(ledger, 4)
    with ledger.write() as tx:
        batch = close(tx, "demo")
        first = as_batch(tx, batch)
        assert find(tx, batch)["requests_digest"] == batch_digest(first)
    move_through(ledger, batch, "running", "failed")
    with ledger.write() as tx:
        move_requests(tx, names[:1], "held")
        move_requests(tx, names[1:2], "queued")
        move(tx, batch, "moved_on")
        assert as_batch(tx, batch) == first
        assert counts(tx) == {"queued": 3, "held": 1}, "what is held waits for a person"
        outcomes = dict(tuple(row) for row in tx.execute(sa.select(BATCH_REQUEST.c.request_id, BATCH_REQUEST.c.outcome)))
        assert sorted(outcomes.values()) == ["failed", "moved_on", "moved_on", "moved_on"] and outcomes[names[0]] == "failed"
        with pytest.raises(ConfigError, match="b-9: the ledger has none"):
            as_batch(tx, "b-9")
    assert_consistent(ledger)


def test_what_went_on_alone_cannot_be_tried_again_with_the_others(ledger: Ledger) -> None:
    names = fill(ledger, 2)
    with ledger.write() as tx:
        batch = close(tx, "demo")
    move_through(ledger, batch, "running", "failed")
    with ledger.write() as tx:
        move_requests(tx, names[:1], "queued")
    with pytest.raises(ForbiddenMove, match="some of its requests cannot become batched"), ledger.write() as tx:
        move(tx, batch, "closed")
    assert states(ledger) == {"queued": 1, "failed": 1}


PATHS: dict[str, tuple[str, ...]] = {
    "closed": (),
    "running": ("running",),
    "evaluated": ("running", "evaluated"),
    "released": ("running", "evaluated", "released"),
    "failed": ("running", "failed"),
    "held": ("held",),
    "moved_on": ("running", "failed", "moved_on"),
    "rolled_back": ("running", "evaluated", "released", "rolled_back"),
}


@pytest.mark.parametrize("before", PATHS)
def test_every_move_is_allowed_by_the_table_or_raises_and_changes_nothing(ledger: Ledger, before: str) -> None:
    for number, after in enumerate(sorted(set(BATCH_MOVES) - {"withdrawn"})):
        fill(ledger, 2, line=f"l{number}")
        with ledger.write() as tx:
            batch = close(tx, f"l{number}")
        move_through(ledger, batch, *PATHS[before])
        if after in BATCH_MOVES[before]:
            move_through(ledger, batch, after)
        else:
            with pytest.raises(ForbiddenMove, match=f"batch {batch}: is {before} and cannot become {after}"):
                move_through(ledger, batch, after)
        with ledger.read() as tx:
            assert find(tx, batch)["state"] == (after if after in BATCH_MOVES[before] else before)
    assert_consistent(ledger)


def test_tries_are_counted_and_failures_told(ledger: Ledger) -> None:
    fill(ledger, 1)
    with ledger.write() as tx:
        batch = close(tx, "demo")
        for _ in range(2):
            move(tx, batch, "running")
            move(tx, batch, "failed", failure="DataError", next_try_at="2026-03-01T00:00:00.000000Z")
            move(tx, batch, "closed")
        row = find(tx, batch)
        told = history.entries(tx, "batch", batch)
        attempts = tx.execute(sa.select(REQUEST.c.attempts)).scalar_one()
    assert (row["attempts"], row["failure"], row["next_try_at"], attempts) == (2, "", None, 2)
    assert [entry["event"] for entry in told] == ["closed", *["running", "failed", "closed"] * 2]
    assert '"failure":"DataError"' in told[2]["detail"]


def test_single_requests_of_a_released_batch_may_have_failed(ledger: Ledger) -> None:
    names = fill(ledger, 3)
    with ledger.write() as tx:
        batch = close(tx, "demo")
    move_through(ledger, batch, "running", "evaluated")
    with pytest.raises(ForbiddenMove, match="not all are its own"), ledger.write() as tx:
        move(tx, batch, "released", failed=[names[0], "nobody"])
    with ledger.write() as tx:
        move(tx, batch, "released", failed=names[:1])
        outcomes = dict(tuple(row) for row in tx.execute(sa.select(BATCH_REQUEST.c.request_id, BATCH_REQUEST.c.outcome)))
    assert outcomes == {names[0]: "failed", names[1]: "released", names[2]: "released"}
    assert states(ledger) == {"released": 2, "failed": 1}
    with ledger.write() as tx:
        move_requests(tx, names[:1], "queued")
        assert len(as_batch(tx, close(tx, "demo")).requests) == 1
    assert_consistent(ledger)


def test_a_roll_back_opens_the_requests_again_unless_they_were_sent_again(ledger: Ledger) -> None:
    fill(ledger, 2)
    with ledger.write() as tx:
        batch = close(tx, "demo")
    move_through(ledger, batch, "running", "evaluated", "released")
    with ledger.write() as tx:
        submit(tx, Submission(kind="keys", values=("demo-0",), line="demo"), again=True)
        move(tx, batch, "rolled_back", detail={"by": "approver"})
    assert states(ledger) == {"received": 1, "queued": 1, "released": 1}


def test_a_worker_notes_what_it_knows(ledger: Ledger) -> None:
    fill(ledger, 1)
    with ledger.write() as tx:
        batch = close(tx, "demo")
        lease = claim(tx, "w", 60)
        assert lease is not None
        note(tx, lease, folder="runs/demo-1", jobs={"shard": 7})
        note(tx, lease, next_try_at="2026-03-01T00:00:00.000000Z")
        row = find(tx, batch)
        assert [one["batch_id"] for one in listing(tx, line="demo", states=["closed"])] == [batch]
        assert listing(tx, states=["held"]) == []
    assert (row["folder"], row["jobs"], row["next_try_at"]) == ("runs/demo-1", {"shard": 7}, "2026-03-01T00:00:00.000000Z")


def test_a_batch_under_a_lease_loses_no_request(ledger: Ledger) -> None:
    (name,) = fill(ledger, 1)
    with ledger.write() as tx:
        batch = close(tx, "demo")
        claim(tx, "w", 60)
        with pytest.raises(ForbiddenMove, match="is being started"):
            without(tx, batch, name)


KINDS = ["submit", "close", "move", "move", "move", "withdraw", "claim", "single", "again"]
ACTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 10**6)), min_size=5, max_size=30)


@given(ACTS)
@settings(max_examples=15, deadline=None)
def test_whatever_is_done_in_whatever_order_batches_and_requests_agree(acts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, open_ledger(f"sqlite:///{folder}/l.sqlite") as ledger:
        for what, number in acts:
            with contextlib.suppress(ForbiddenMove, ConfigError, LeaseLost), ledger.write() as tx:
                _act(tx, what, number)
        assert_consistent(ledger)


def _act(tx: Transaction, what: str, number: int) -> None:
    """One act on a request or batch that the number chooses."""
    names = list(tx.execute(sa.select(REQUEST.c.request_id).order_by(REQUEST.c.request_id)).scalars())
    found = [row["batch_id"] for row in listing(tx)]
    if what in ("submit", "again"):
        submit(tx, Submission(kind="keys", values=(str(number % 5),), line="demo"), again=what == "again")
    elif what == "close":
        close(tx, "demo", most=1 + number % 3)
    elif what == "claim":
        claim(tx, str(number), number % 2)
    elif what == "move" and found:
        name = found[number % len(found)]
        allowed = sorted(BATCH_MOVES[find(tx, name)["state"]] - {"withdrawn"}) if number % 4 else sorted(BATCH_MOVES)[:-1]
        if allowed:
            move(tx, name, allowed[number // 7 % len(allowed)])
    elif what == "withdraw" and names:
        withdraw(tx, names[number % len(names)])
    elif what == "single" and names:
        move_requests(tx, [names[number % len(names)]], ["queued", "held", "refused"][number // 7 % 3])


def _steps(tx: Transaction) -> None:
    """One transaction that does all there is to do with batches."""
    close_due(tx, Policy(count=1, most=2))
    for owner in ("a", "b"):
        lease = claim(tx, owner, 60, states=("closed",))
        if lease is not None:
            note(tx, lease, folder="f")
            move(tx, lease.batch_id, "running", lease=lease)
    for row in listing(tx, states=["running"]):
        move(tx, row["batch_id"], "failed")


def test_work_that_breaks_off_at_any_statement_leaves_nothing_of_it(ledger: Ledger) -> None:
    fill(ledger, 5)
    with ledger.read() as tx:
        before = tx.seq
    for number in itertools.count(1):
        with broken_at(ledger, number) as seen, contextlib.suppress(Broken), ledger.write() as tx:
            _steps(tx)
        if seen["statements"] < number:
            break
        assert states(ledger) == {"received": 5}
        with ledger.read() as tx:
            assert tx.seq == before and listing(tx) == []
    assert number > 40 and states(ledger) == {"failed": 4, "batched": 1}
    assert_consistent(ledger)


def test_each_transaction_that_breaks_off_leaves_a_whole_ledger_that_goes_on(sqlite_ledger: Ledger) -> None:
    fill(sqlite_ledger, 4)
    for number in itertools.count(1):
        with broken_at(sqlite_ledger, number) as seen, contextlib.suppress(Broken):
            one_by_one(sqlite_ledger)
        assert_consistent(sqlite_ledger)
        if seen["statements"] < number:
            break
    for _ in range(8):
        one_by_one(sqlite_ledger)
    assert states(sqlite_ledger) == {"released": 4}


def test_processes_that_are_killed_leave_a_whole_ledger(ledger_url: str) -> None:
    swarm("killed", 1, ledger_url)
    with open_ledger(ledger_url) as opened:
        for _ in range(12):
            one_by_one(opened)
        assert set(states(opened)) == {"released"}
        assert_consistent(opened)


def test_every_public_function_is_used_here() -> None:
    assert {name for name in batches.__all__ if name[0].islower()} <= set(globals())
