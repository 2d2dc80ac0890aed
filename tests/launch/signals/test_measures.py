"""The metrics are what the ledger holds, and Prometheus' own parser reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from launch.signals.measures import HELP, exposition, samples
from pipeline.ledger import batches, requests
from pipeline.ledger.leases import claim
from pipeline.ledger.store import Ledger, open_ledger
from tests.support.ledger_page import Clock, ask

HOSTILE = 'a"b\\c\nd{e="f"} # HELP x <script>\u202e'


def measured(ledger: Ledger, **more: str) -> dict[tuple[str, str, str], float]:
    with ledger.read() as tx:
        text = exposition(list(samples(tx, **more)))
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.type == "gauge" and family.documentation and re.fullmatch(r"unlearn_[a-z_]+", family.name)
    return {
        (s.name.removeprefix("unlearn_"), s.labels.get("line", ""), s.labels.get("state", "")): s.value
        for family in families
        for s in family.samples
    }


@pytest.fixture
def clock() -> Clock:
    """It stands still."""
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    """A new ledger in a file."""
    return open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=clock)


def test_requests_and_batches_are_counted_by_state_and_line(ledger: Ledger, clock: Clock) -> None:
    with ledger.write() as tx:
        for number in range(6):
            ask(tx, number, line="demo")
        ask(tx, 9, line="other", due_at="2026-09-23")
        batches.close(tx, "demo", most=4)
    clock.move(hours=2)
    found = measured(ledger)
    assert found["requests", "demo", "batched"] == 4 and found["requests", "demo", "queued"] == 2
    assert found["requests", "demo", "released"] == 0 and found["requests", "other", "queued"] == 1
    assert found["batches", "demo", "closed"] == 1 and found["batches", "other", "closed"] == 0
    assert found["requests_oldest_waiting_seconds", "demo", ""] == 7200
    assert found["requests_due_soon", "other", ""] == 1 and found["requests_overdue", "other", ""] == 0
    assert ("last_tick_timestamp_seconds", "", "") not in found
    clock.move(days=3)
    with ledger.write() as tx:
        requests.withdraw(tx, ask(tx, 10, line="third"))
    found = measured(ledger, last_tick="2026-09-24T00:00:00Z")
    assert found["requests_overdue", "other", ""] == 1 and found["requests_due_soon", "other", ""] == 0
    assert found["requests_oldest_waiting_seconds", "third", ""] == 0
    assert found["last_tick_timestamp_seconds", "", ""] == 1790208000
    assert found["history_entries", "", ""] == 1 + 8 + 1 + 1


def test_a_lease_that_ran_out_is_counted(ledger: Ledger, clock: Clock) -> None:
    with ledger.write() as tx:
        ask(tx, 0, line="demo")
        lease = claim(tx, "me", 60, batch_id=batches.close(tx, "demo"))
        assert lease is not None
        batches.move(tx, lease.batch_id, "running", lease=lease)
    assert measured(ledger)["batches_lease_expired", "", ""] == 0
    clock.move(minutes=2)
    assert measured(ledger)["batches_lease_expired", "", ""] == 1


def test_a_hostile_line_is_one_label(ledger: Ledger) -> None:
    with ledger.write() as tx:
        ask(tx, 0, line=HOSTILE)
    assert measured(ledger)["requests", HOSTILE, "queued"] == 1


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=40))
def test_any_label_comes_back_as_it_was(text: str) -> None:
    (family,) = text_string_to_metric_families(exposition([("unlearn_x", "gauge", "Help.", {"line": text}, 1.5)]))
    assert family.samples[0].labels == {"line": text} and family.samples[0].value == 1.5


def test_names_keep_to_the_conventions() -> None:
    for name, words in HELP.items():
        assert name.startswith("unlearn_") and not name.endswith("_total") and words.endswith(".")
