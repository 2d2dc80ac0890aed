"""Nothing but what is on the lists gets out, and an event has one name however often it is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.signals.fields import EVENTS, FIELDS, WITHHELD, checked, event_id

PERSONAL = ["Jane Doe", "jane@example.org", "img/jane doe.png", "label 'Jane'", "a\nb", "<script>", "\u202eevil"]


def test_an_unknown_event_or_fact_is_a_fault_that_quotes_no_value() -> None:
    with pytest.raises(ValueError, match="no such fact: subject") as refused:
        checked("overdue", {"line": "demo", "subject": "Jane Doe"})
    assert "Jane" not in str(refused.value)
    with pytest.raises(ValueError, match="not one of"):
        checked("deleted", {})


@pytest.mark.parametrize(
    "name", ["subject", "key", "keys", "values", "note", "basis", "label", "prefix", "message", "text", "email"]
)
def test_no_personal_field_is_on_the_list(name: str) -> None:
    assert name not in FIELDS


@pytest.mark.parametrize("text", PERSONAL)
@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("line", "run")])
def test_a_value_of_another_form_is_withheld(name: str, text: str) -> None:
    assert checked("overdue", {name: text}) == {name: WITHHELD}


def test_addresses_lose_their_passwords() -> None:
    for uri in ("s3://me:hunter2@bucket/run", "https://h/x?token=1", "a\tb"):
        assert checked("run_started", {"run": uri}) == {"run": WITHHELD}
    for uri in ("s3://bucket/a folder/run", "/data/runs/demo-1", "runs/demo", "demo"):
        assert checked("run_started", {"run": uri}) == {"run": uri}


def test_what_is_empty_is_left_out_and_true_is_no_number() -> None:
    assert checked("tick", {"closed": 0, "host": "", "at": None}) == {"closed": 0}
    assert checked("tick", {"closed": True}) == {"closed": WITHHELD}
    assert checked("run_failed", {"will_retry": False}) == {"will_retry": False}


def test_every_identifying_fact_is_a_field() -> None:
    assert {name for names in EVENTS.values() for name in names} <= set(FIELDS)


@given(st.sampled_from(sorted(EVENTS)), st.integers(1, 99), st.integers(0, 10**6))
def test_the_name_depends_on_what_identifies_the_event_and_on_nothing_else(event: str, attempt: int, requests: int) -> None:
    told = {"batch_id": "b-000001", "attempt": attempt, "line": "demo", "due_at": "2026-01-01T00:00:00Z"}
    name = event_id(event, told, "ledger")
    assert event_id(event, {**told, "requests": requests}, "ledger") == name
    assert event_id(event, told, "another ledger") != name
    other = {**told, "batch_id": "b-000002", "line": "other", "host": "h", "at": told["due_at"]}
    assert (event_id(event, other, "ledger") == name) is False


def test_another_attempt_is_another_event() -> None:
    first, second = ({"batch_id": "b-000001", "attempt": number} for number in (1, 2))
    assert event_id("run_failed", first, "") != event_id("run_failed", second, "")
    assert event_id("run_failed", first, "") != event_id("run_started", first, "")
