"""A request is taken in once however often it is sent, and moves only as the rules allow."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.ledger import batches, history, requests
from pipeline.ledger.requests import (
    Answer,
    Submission,
    check_form,
    counts,
    extend,
    find,
    known,
    listing,
    move,
    prepare,
    show,
    submit,
    values_of,
    withdraw,
)
from pipeline.ledger.schema import REQUEST
from pipeline.ledger.states import ForbiddenMove
from pipeline.ledger.store import Ledger, open_ledger
from tests.pipeline.ledger.conftest import Clock
from tests.support.swarm import swarm

ONE = Submission(kind="keys", values=("b", "a", "b"), line="demo", subject="Ann", note="N", basis="GDPR-17")


def send(ledger: Ledger, submission: Submission = ONE, **more: Any) -> Answer:
    with ledger.write() as tx:
        return submit(tx, submission, **more)


def release(ledger: Ledger) -> None:
    with ledger.write() as tx:
        name = batches.close(tx, "demo")
        for state in ("running", "evaluated", "released"):
            batches.move(tx, name, state)


def test_a_request_is_kept_whole_and_its_subject_is_not(ledger: Ledger) -> None:
    answer = send(ledger)
    with ledger.read() as tx:
        row = find(tx, answer.request_id)
        assert row is not None and values_of(tx, answer.request_id) == ("a", "b")
        told = history.entries(tx, "request", answer.request_id)
    assert (answer.new, answer.state, answer.repeats) == (True, "received", 0)
    assert answer.due_at == "2026-02-28T12:00:00.000000Z" and row["values_count"] == 2 and row["note"] == "N"
    assert row["subject"].startswith("s-") and "Ann" not in str(row)
    assert row["entry"] == told[0]["seq"] and not {"Ann", '"N"', '"a"'} & set(told[0]["detail"].split(","))


@given(st.permutations(["a", "b", "c"]), st.sampled_from(["line", "kind", "values", "subject"]))
def test_the_same_is_what_has_the_same_line_kind_values_and_subject(order: list[str], field: str) -> None:
    first = Submission(kind="keys", values=("a", "b", "c"), line="l", subject="s")
    again = dataclasses.replace(first, values=tuple(order), note="other", basis="other")
    other = dataclasses.replace(first, **{field: {"values": ("a", "b"), "kind": "prefix"}.get(field, "x")})
    prints = [prepare(one, bytes(32), "2026-01-31T12:00:00.000000Z")[0]["fingerprint"] for one in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]


def test_the_same_again_is_counted_and_told(ledger: Ledger) -> None:
    first, second = send(ledger), send(ledger)
    assert (second.request_id, second.new, second.repeats) == (first.request_id, False, 1)
    part = send(ledger, dataclasses.replace(ONE, values=("a",)))
    assert part.new, "a part of an open request is a request of its own"
    with ledger.read() as tx:
        assert [entry["event"] for entry in history.entries(tx, "request", first.request_id)] == ["received", "repeated"]
        assert counts(tx) == {"received": 2} and counts(tx, "other") == {}


def test_a_released_request_is_answered_with_the_old_one_unless_a_new_one_is_wanted(ledger: Ledger) -> None:
    first = send(ledger)
    release(ledger)
    assert send(ledger) == Answer(request_id=first.request_id, new=False, state="released", due_at=first.due_at, repeats=1)
    new = send(ledger, again=True)
    assert new.new and new.request_id != first.request_id
    assert send(ledger, again=True).request_id == new.request_id, "while one is open there is no other"
    with ledger.read() as tx:
        print_of = find(tx, first.request_id)["fingerprint"]  # type: ignore[index]
        assert known(tx, [print_of, "0"])[print_of]["request_id"] == new.request_id


def test_other_copies_of_an_open_request_are_refused(ledger: Ledger) -> None:
    first = send(ledger)
    with pytest.raises(ConfigError, match=f"request {first.request_id}: is open with copies=stop"):
        send(ledger, dataclasses.replace(ONE, copies="include"))


def test_a_name_is_given_once(ledger: Ledger) -> None:
    assert send(ledger, dataclasses.replace(ONE, request_id="ticket-7")).request_id == "ticket-7"
    with pytest.raises(ConfigError, match="ticket-7: the ledger has another"):
        send(ledger, dataclasses.replace(ONE, values=("c",), request_id="ticket-7"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": ()}, "empty: no value"),
        ({"values": ("MARKER", " ")}, "a value is empty"),
        ({"values": ("MARKER" * 400,)}, "longer than 2000 bytes"),
        ({"values": ("MARKER\0",)}, "no text"),
        ({"values": ("MARKER\ud800",)}, "no text"),
        ({"kind": "MARKER"}, "kind: none of"),
        ({"kind": "digest", "values": ("MARKER",)}, "a digest is not 64 hexadecimal digits"),
        ({"kind": "likeness", "values": ("MARKER",)}, "a likeness is not 16 hexadecimal digits"),
        ({"copies": "MARKER"}, "copies: none of"),
        ({"line": ""}, "line: empty"),
        ({"note": "MARKER\0"}, "note: no text"),
        ({"subject": "MARKER\ud800"}, "subject: no text"),
        ({"request_id": "MARKER@example.org"}, "request_id: not a name"),
        ({"request_id": "r-1"}, "request_id: not a name"),
        ({"received_at": "MARKER"}, "received_at: neither a date nor a time"),
        ({"received_at": "2027-01-01"}, "received_at: in the future"),
        ({"due_at": "2026-01-01"}, "due_at: before the request was received"),
    ],
)
def test_what_is_malformed_is_refused_by_name_and_without_its_text(
    sqlite_ledger: Ledger, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        send(sqlite_ledger, dataclasses.replace(ONE, **change))
    assert "MARKER" not in str(refused.value)
    with sqlite_ledger.read() as tx:
        assert tx.seq == 1


def test_digests_are_the_same_in_any_case() -> None:
    assert check_form(Submission(kind="digest", values=("AB" * 32, "ab" * 32), line="l")) == ["ab" * 32]


def test_a_due_date_moves_once_and_in_time_and_with_a_reason(ledger: Ledger, clock: Clock) -> None:
    name = send(ledger).request_id
    refusals = [(3, "r", "3 months"), (0, "r", "0 months"), (1, " ", "without reason")]
    for months, reason, message in refusals:
        with pytest.raises(ConfigError, match=message), ledger.write() as tx:
            extend(tx, name, months, reason)
    with ledger.write() as tx:
        assert extend(tx, name, 2, "many requests") == "2026-04-28T12:00:00.000000Z"
    with pytest.raises(ConfigError, match="extended before, from 2026-02-28"), ledger.write() as tx:
        extend(tx, name, 1, "r")
    late = send(ledger, dataclasses.replace(ONE, values=("late",))).request_id
    clock.move(days=40)
    with pytest.raises(ConfigError, match="was due on 2026-02-28"), ledger.write() as tx:
        extend(tx, late, 1, "r")
    with ledger.write() as tx:
        withdraw(tx, late)
    with pytest.raises(ConfigError, match="is withdrawn"), ledger.write() as tx:
        extend(tx, late, 1, "r")


def test_an_extension_moves_the_due_date_of_the_batch(ledger: Ledger) -> None:
    first = send(ledger).request_id
    other = send(ledger, dataclasses.replace(ONE, values=("z",), due_at="2026-03-15")).request_id
    with ledger.write() as tx:
        batch = batches.close(tx, "demo")
        extend(tx, first, 2, "r")
        assert batches.find(tx, batch)["due_at"] == find(tx, other)["due_at"]  # type: ignore[index]


def test_overdue_are_the_open_ones_whose_date_has_passed(ledger: Ledger, clock: Clock) -> None:
    late = send(ledger).request_id
    gone = send(ledger, dataclasses.replace(ONE, values=("g",))).request_id
    send(ledger, dataclasses.replace(ONE, values=("f",), due_at="2027-01-01"))
    with ledger.write() as tx:
        withdraw(tx, gone)
        assert listing(tx, overdue=True) == []
    clock.move(days=40)
    with ledger.read() as tx:
        assert [row["request_id"] for row in listing(tx, overdue=True)] == [late]
        assert [row["state"] for row in listing(tx, state="withdrawn")] == ["withdrawn"]


def test_a_list_is_read_page_by_page_without_personal_data(ledger: Ledger) -> None:
    for number in range(7):
        send(ledger, dataclasses.replace(ONE, values=(f"KEY{number}",), line=f"l{number % 2}", note="NOTE"))
    with ledger.read() as tx:
        whole = listing(tx)
        pages, after = [], ""
        while page := listing(tx, limit=3, after=after):
            pages += page
            after = page[-1]["request_id"]
        assert pages == whole and len(whole) == 7 and len(listing(tx, line="l0")) == 4
    assert not any(mark in str(whole) for mark in ("KEY", "NOTE", "Ann", "subject"))


def test_withdrawn_is_told_and_final(ledger: Ledger) -> None:
    name = send(ledger).request_id
    with ledger.write() as tx:
        withdraw(tx, name, "asked by phone")
        told = show(tx, name)["history"]
    assert [entry["event"] for entry in told] == ["received", "withdrawn"] and "asked by phone" in told[-1]["detail"]
    with pytest.raises(ForbiddenMove, match="is withdrawn"), ledger.write() as tx:
        withdraw(tx, name)
    with pytest.raises(ConfigError, match="none of this name"), ledger.write() as tx:
        withdraw(tx, "nobody")


def test_a_withdrawal_leaves_a_batch_that_never_ran(ledger: Ledger) -> None:
    names = [send(ledger, dataclasses.replace(ONE, values=(value,))).request_id for value in "xy"]
    with ledger.write() as tx:
        batch = batches.close(tx, "demo")
        before = batches.find(tx, batch)
        withdraw(tx, names[0])
        after = batches.find(tx, batch)
        assert after["requests_count"] == 1 and after["requests_digest"] != before["requests_digest"]
        assert [one.request_id for one in batches.as_batch(tx, batch).requests] == [names[1]]
        withdraw(tx, names[1])
        assert batches.find(tx, batch)["state"] == "withdrawn"
    assert history.check(ledger) == []


def test_a_withdrawal_comes_too_late_once_a_run_has_begun(ledger: Ledger) -> None:
    name = send(ledger).request_id
    with ledger.write() as tx:
        batch = batches.close(tx, "demo")
        batches.move(tx, batch, "running")
    with pytest.raises(ForbiddenMove, match="is running"), ledger.write() as tx:
        withdraw(tx, name)
    with ledger.write() as tx:
        batches.move(tx, batch, "failed", failure="DataError")
        batches.move(tx, batch, "closed")
    with pytest.raises(ForbiddenMove, match="has run or is being started"), ledger.write() as tx:
        withdraw(tx, name)


def test_only_what_no_batch_moves_is_moved_alone(ledger: Ledger) -> None:
    name = send(ledger).request_id
    with ledger.write() as tx:
        batch = batches.close(tx, "demo")
    with pytest.raises(ForbiddenMove, match=f"is in batch {batch}"), ledger.write() as tx:
        move(tx, [name], "queued")
    with ledger.write() as tx:
        batches.move(tx, batch, "running")
        batches.move(tx, batch, "failed")
        move(tx, [name], "held", reason="too often")
        move(tx, [name], "queued")
        row = find(tx, name)
    assert row is not None and (row["state"], row["batch_id"], row["attempts"]) == ("queued", None, 1)
    with pytest.raises(ForbiddenMove, match="cannot become running"), ledger.write() as tx:
        move(tx, [name], "running")


def test_what_is_shown_names_batches_and_all_that_was_told(ledger: Ledger) -> None:
    name = send(ledger).request_id
    release(ledger)
    with ledger.read() as tx:
        found = show(tx, name)
    assert found["batches"] == [{"batch_id": "b-000001", "outcome": "released"}]
    assert [entry["event"] for entry in found["history"]] == ["received", "closed", "running", "evaluated", "released"]


def test_duplicates_from_eight_processes_are_one_request_each(ledger_url: str) -> None:
    swarm("send", 8, ledger_url)
    with open_ledger(ledger_url, create=False) as opened, opened.read() as tx:
        assert list(tx.execute(sa.select(REQUEST.c.repeats)).scalars()) == [15, 15, 15]
        assert history.check(opened) == []


def test_every_public_function_is_used_here() -> None:
    assert {name for name in requests.__all__ if name[0].islower()} <= set(globals())
