"""Batches, requests, releases and history as they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from launch.web import views
from pipeline.errors import ConfigError
from pipeline.ledger import batches
from pipeline.ledger.leases import claim
from pipeline.ledger.schema import ALIAS
from pipeline.ledger.store import open_ledger
from tests.launch.web.conftest import Work
from tests.support.ledger_page import Clock, ask


def test_batches_are_listed_newest_first_and_by_state(work: Work) -> None:
    with work.ledger.read() as tx:
        found = views.all_batches(tx)
        failed = views.all_batches(tx, state="failed")
        assert views.all_batches(tx, state="nonsense")["total"] == 9 and views.all_batches(tx, page=7)["page"] == 1
        assert views.batches_by_run(tx)[work.runs[0]] == "b-000001" and list(views.batch_folders(tx)) == work.runs
    assert [row["batch_id"] for row in found["rows"]] == [f"b-{number:06d}" for number in range(9, 0, -1)]
    assert found["by_state"] == {"running": 1, "failed": 1, "released": 7} and "jobs" not in found["rows"][0]
    assert [(row["batch_id"], row["failure"]) for row in failed["rows"]] == [("b-000008", "DataError")]


def test_a_lease_is_live_run_out_or_none(tmp_path: Path) -> None:
    clock = Clock()
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=clock) as ledger:
        with ledger.write() as tx:
            ask(tx, 0, line="demo")
            lease = claim(tx, "me", 60, batch_id=batches.close(tx, "demo"))
            assert lease is not None
            batches.move(tx, lease.batch_id, "running", lease=lease)
        with ledger.read() as tx:
            assert views.all_batches(tx)["rows"][0]["lease"] == "live"
        clock.move(minutes=5)
        with ledger.read() as tx:
            assert views.all_batches(tx)["rows"][0]["lease"] == "run out"
        with ledger.write() as tx:
            batches.move(tx, lease.batch_id, "failed", failure="DataError")
        with ledger.read() as tx:
            assert views.all_batches(tx)["rows"][0]["lease"] == ""


def test_one_batch_has_its_requests_outcomes_models_and_history(work: Work) -> None:
    with work.ledger.read() as tx:
        found = views.one_batch(tx, "b-000004")
        assert found["outcomes"] == {"failed": 1, "released": len(found["rows"]) - 1}
        assert [entry["event"] for entry in found["history"]] == ["closed", "claimed", "running", "evaluated", "released"]
        assert len(found["models"]) == 1 and found["models"][0]["aliases"] == []
        assert views.one_batch(tx, "b-000007")["models"][0]["aliases"] == ["production"]
        with pytest.raises(ConfigError, match="none of this name"):
            views.one_batch(tx, "b-999999")


def test_one_request_has_its_batches_and_a_short_pseudonym(work: Work) -> None:
    with work.ledger.read() as tx:
        found = views.one_request(tx, "r-000003")
        with pytest.raises(ConfigError, match="none of this name"):
            views.one_request(tx, "Jane Doe")
    assert found["batches"] == [{"batch_id": "b-000002", "outcome": "released"}]
    assert found["request"]["pseudonym"].startswith("s-") and len(found["request"]["pseudonym"]) == 11
    assert not {"basis", "note", "subject"} & set(found["request"])


def test_releases_name_the_alias_in_force_and_leave_reasons_out(work: Work) -> None:
    with work.ledger.read() as tx:
        found = views.releases(tx)
        number = tx.execute(sa.select(sa.func.count()).select_from(ALIAS)).scalar_one()
    assert [(row["name"], row["line"], row["version"]) for row in found["aliases"]] == [
        ("production", "faces-inpaint", 3), ("production", "products-mae", 2), ("production", "streets-vqgan", 2),
    ]  # fmt: skip
    assert len(found["changes"]) == number == 7 and all("reason" not in row for row in found["changes"])
    assert sum(bool(row["aliases"]) for row in found["models"]) == 3


def test_the_history_pages_back_to_its_first_entry(work: Work) -> None:
    seen, before = list[int](), 0
    while True:
        with work.ledger.read() as tx:
            page = views.past(tx, before=before)
        seen += [row["seq"] for row in page["rows"]]
        before = page["older"]
        if not before:
            break
    assert seen == list(range(page["seq"], 0, -1))


def test_an_entry_shows_listed_facts_alone() -> None:
    detail = {
        "was": "queued",
        "reason": "Jane asked",
        "basis": "b",
        "due_at": "2026-11-26T00:00:00Z",
        "model": "a" * 64,
        "jobs": {"a": 1},
    }
    entry = dict.fromkeys(("seq", "at", "actor", "what", "name", "event", "hash"), "x")
    found = views.entry_view({**entry, "detail": json.dumps(detail)})
    assert found["facts"] == [("was", "queued"), ("due", "26 Nov 2026, 00:00"), ("model", "a" * 12 + "…")]
    assert views.entry_view({**entry, "detail": b"\xff"})["facts"] == []
    assert not {"reason", "basis", "subject", "note", "failure"} & set(views.TOLD)


def test_the_chain_is_checked_and_a_long_one_is_left_to_the_command(work: Work, tmp_path: Path) -> None:
    assert views.check_chain(work.ledger, 10) == {"checked": True, "faults": []}
    assert views.check_chain(work.ledger, views.CHECKED_AT_ONCE + 1)["checked"] is False
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        with ledger.write() as tx:
            ask(tx, 0)
        with ledger.write() as tx:
            tx.execute(sa.text("DROP TRIGGER IF EXISTS history_no_update"))
            for name in tx.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
                tx.execute(sa.text(f"DROP TRIGGER {name}"))
            tx.execute(sa.text("UPDATE history SET actor = 'somebody else' WHERE seq = 2"))
        assert views.check_chain(ledger, 2)["faults"] == ["entry 2: changed after it was written"]
