"""A round tells of due dates once each, of what happened since the last one, and that the scheduler lives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.schedule import tick
from launch.signals.emit import LAST_TICK, Settings
from launch.signals.outbox import read_mark
from launch.signals.rounds import tell_round
from pipeline.errors import ConfigError
from pipeline.ledger import batches
from pipeline.ledger.store import open_ledger
from tests.support.ledger_page import Clock, ask
from tests.support.schedule import FakeRunner, desk_of, write_line, write_policy
from tests.support.schedule import ask as ask_for


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rounds_tell_each_thing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clock, log = Clock(), tmp_path / "log.jsonl"
    settings = Settings(log_json=str(log))
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=clock) as ledger:
        with ledger.write() as tx:
            ask(tx, 0, line="demo", due_at="2026-09-23")
            ask(tx, 1, line="demo", due_at="2026-09-25")
            ask(tx, 2, line="other")

        def round_() -> list[str]:
            before = len(told(log)) if log.exists() else 0
            tell_round(ledger, settings, seconds=1.0, closed=0, claimed=0, failed=0)
            return [line["event"] for line in told(log)[before:]]

        assert round_() == ["due_soon", "tick"]
        assert told(log)[0]["requests"] == 2 and told(log)[0]["due_at"] == "2026-09-23T00:00:00.000000Z"
        assert round_() == ["tick"]
        clock.move(days=2)
        with ledger.write() as tx:
            name = batches.close(tx, "demo")
        assert round_() == ["batch_closed", "overdue", "due_soon", "tick"]  # the nearest date is another one now
        assert told(log)[3]["batch_id"] == name
        assert round_() == ["tick"]
        assert read_mark(str(tmp_path / "unlearn-outbox.sqlite"), LAST_TICK)


def test_a_tick_tells_its_round_goes_on_without_outbox_and_refuses_bad_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARN_LOG_JSON", str(tmp_path / "log.jsonl"))
    line, said = write_line(tmp_path), list[str]()
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        desk = desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal"), said=said)
        ask_for(ledger, line, "train-000001")
        tick(desk)
        facts = told(tmp_path / "log.jsonl")
        assert [entry["event"] for entry in facts] == ["batch_closed", "run_started", "evaluated", "tick"]
        assert facts[2]["batch_id"] == "b-000001" and facts[2]["line"] == line and facts[2]["run"].startswith(f"{tmp_path}/runs/")
        assert (facts[3]["closed"], facts[3]["claimed"], facts[3]["failed"]) == (1, 1, 0)
        monkeypatch.setenv("UNLEARN_OUTBOX", str(tmp_path / "nowhere" / "outbox"))
        ask_for(ledger, line, "train-000002")
        assert tick(desk).closed == ("b-000002",) and "no outbox" in said[-1]
        monkeypatch.setenv("UNLEARN_WEBHOOK", "http://example.org/")
        with pytest.raises(ConfigError, match="UNLEARN_WEBHOOK: not https"):
            tick(desk)


def test_nothing_set_up_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOG_JSON", "WEBHOOK", "OPENLINEAGE", "OUTBOX"):
        monkeypatch.delenv(f"UNLEARN_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        before = sorted(path.name for path in tmp_path.iterdir())
        tell_round(ledger, seconds=1.0, closed=0, claimed=0, failed=0)
    assert not {path.name for path in tmp_path.iterdir()} - set(before) - {"ledger.sqlite-wal", "ledger.sqlite-shm"}
