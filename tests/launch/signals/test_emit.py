"""A signal is told once wherever it should, survives a host that dies and a receiver that is away, and holds nothing personal."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.signals.emit import LAST_TICK, Settings, Signals, open_signals
from launch.signals.outbox import read_mark
from pipeline.errors import ConfigError
from pipeline.ledger import batches
from pipeline.ledger.leases import claim
from pipeline.ledger.store import Ledger, open_ledger
from tests.launch.signals.receiver import Receiver, receiving
from tests.support.ledger_page import Clock, ask

MARKERS = ("Jane-Marker", "key-marker/001", "note marker", "basis marker", "Secret-Marker")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and an environment that says nothing."""
    for name in ("LOG_JSON", "WEBHOOK", "WEBHOOK_SECRET", "WEBHOOK_SECRET_FILE", "WEBHOOK_EVENTS", "OPENLINEAGE", "OUTBOX"):
        monkeypatch.delenv(f"UNLEARN_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ledger(here: Path) -> Iterator[Ledger]:
    """A ledger with a request that is full of markers."""
    with open_ledger(f"sqlite:///{here}/ledger.sqlite", clock=Clock()) as opened:
        with opened.write() as tx:
            given = {"kind": "keys", "values": (MARKERS[1],), "subject": MARKERS[0], "note": MARKERS[2], "basis": MARKERS[3]}
            ask(tx, 0, line="demo", **given)
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """One that takes all."""
    with receiving() as found:
        yield found


@pytest.fixture
def settings(receiver: Receiver, here: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """All places at once."""
    monkeypatch.setenv("UNLEARN_WEBHOOK_SECRET", MARKERS[4] + "x" * 32)
    return Settings(log_json=str(here / "log.jsonl"), webhook=receiver.url, openlineage=str(here / "lineage.jsonl"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_batch(ledger: Ledger, *, to: str, signals: Signals | None = None) -> str:
    """A batch that is closed, run and failed or evaluated and released; told, where `signals` are given."""
    with ledger.write() as tx:
        name = batches.close(tx, "demo")
        lease = claim(tx, "me", 600, batch_id=name)
        batches.note(tx, lease, folder="runs/demo-1")  # type: ignore[arg-type]
        batches.move(tx, name, "running", lease=lease)
    told = {"batch_id": name, "attempt": 1, "line": "demo", "run": "runs/demo-1"}
    if signals:
        signals.signal("run_started", **told)
    for state in ("failed",) if to == "failed" else ("evaluated", "released"):
        with ledger.write() as tx:
            batches.move(tx, name, state, failure="DataError" if state == "failed" else "")
        if signals:
            signals.signal({"failed": "run_failed"}.get(state, state), **told, failure="DataError" if state == "failed" else None)
    return name


def test_nothing_is_written_where_nothing_is_set(here: Path) -> None:
    with open_signals() as signals:
        signals.signal("overdue", line="demo", due_at="2026-01-01T00:00:00Z", requests=3)
        signals.follow()
        assert signals.deliver() == (0, 0)
    assert list(here.iterdir()) == []


def test_a_line_of_the_log_has_time_event_name_and_facts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_signals(Settings(log_json="-"), clock=Clock()) as signals:
        signals.signal("batch_closed", batch_id="b-000001", line="demo", requests=12, reason="time")
    found = json.loads(capsys.readouterr().err)
    assert found["time"] == "2026-09-21T08:00:00.000000Z" and found["event"] == "batch_closed" and found["requests"] == 12
    assert len(found["event_id"]) == 32


def test_each_event_is_sent_once_however_often_it_is_told(
    settings: Settings, receiver: Receiver, ledger: Ledger, here: Path
) -> None:
    with open_signals(settings, ledger) as signals:
        for _ in range(3):
            signals.signal("overdue", line="demo", due_at="2026-01-01T00:00:00Z", requests=3)
        run_batch(ledger, to="failed", signals=signals)
        signals.follow()
        signals.follow()
        assert signals.deliver()[1] == 0 and signals.deliver() == (0, 0)
    bodies = [json.loads(body) for _, _, body in receiver.taken]
    assert [body["type"] for body in bodies] == ["unlearn.overdue", "unlearn.run_failed"]
    assert bodies[1]["data"] == {
        "batch_id": "b-000001",
        "attempt": 1,
        "line": "demo",
        "run": "runs/demo-1",
        "failure": "DataError",
    }
    assert [line["eventType"] for line in lines(here / "lineage.jsonl")] == ["START", "FAIL"]
    assert [line["event"] for line in lines(here / "log.jsonl")] == ["overdue", "run_started", "run_failed", "batch_closed"]


def test_what_a_dead_host_did_not_tell_the_history_tells(
    settings: Settings, receiver: Receiver, ledger: Ledger, here: Path
) -> None:
    with open_signals(settings, ledger):
        pass
    run_batch(ledger, to="released")  # and no signal
    with open_signals(settings, ledger) as signals:
        signals.follow()
        signals.deliver()
    assert [json.loads(body)["type"] for _, _, body in receiver.taken] == ["unlearn.released"]
    found = lines(here / "lineage.jsonl")
    assert [line["eventType"] for line in found] == ["START", "COMPLETE"]
    assert found[1]["outputs"] == [{"namespace": "file", "name": f"{here}/runs/demo-1/weights"}]


def test_two_hosts_give_an_event_one_name(receiver: Receiver, ledger: Ledger, here: Path, settings: Settings) -> None:
    for host in ("a", "b"):
        with open_signals(Settings(webhook=receiver.url, outbox=str(here / host)), ledger) as signals:
            signals.signal("overdue", line="demo", due_at="2026-01-01T00:00:00Z", requests=len(host))
            signals.deliver()
    first, second = (headers["webhook-id"] for _, headers, _ in receiver.taken)
    assert first == second


def test_a_receiver_that_is_away_gets_it_later(
    settings: Settings, receiver: Receiver, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 503
    with open_signals(settings, ledger) as signals:
        signals.signal("overdue", line="demo", due_at="2026-01-01T00:00:00Z")
        assert signals.deliver() == (0, 1) and "wait in the outbox" in capsys.readouterr().err
    receiver.status = 204
    with sqlite3.connect("unlearn-outbox.sqlite") as connection:
        connection.execute("UPDATE item SET next_try = 0")
    connection.close()
    with open_signals(settings, ledger) as signals:
        assert signals.deliver() == (1, 0)


def test_a_tick_leaves_its_time(here: Path) -> None:
    with open_signals(Settings(outbox=str(here / "out")), clock=Clock()) as signals:
        signals.signal("tick", host="node-1", closed=1)
    assert read_mark(str(here / "out"), LAST_TICK) == "2026-09-21T08:00:00.000000Z"


def test_a_log_that_cannot_be_written_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_signals(Settings(log_json="nowhere/log.jsonl")) as signals:
        signals.signal("tick", host="node-1")
        signals.signal("tick", host="node-1")
    assert capsys.readouterr().err == "signals: a signal could not be written (FileNotFoundError); the work goes on\n"


def test_settings_come_from_the_environment_and_are_checked(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    monkeypatch.setenv("UNLEARN_WEBHOOK", receiver.url)
    with pytest.raises(ConfigError, match="secret"):
        open_signals()
    monkeypatch.setenv("UNLEARN_WEBHOOK_SECRET", "x" * 32)
    monkeypatch.setenv("UNLEARN_WEBHOOK_EVENTS", "evaluated, nonsense")
    with pytest.raises(ConfigError, match="nonsense"):
        open_signals()
    monkeypatch.setenv("UNLEARN_WEBHOOK_EVENTS", "evaluated")
    with open_signals() as signals:
        signals.signal("evaluated", batch_id="b-000001", attempt=1)
        signals.signal("overdue", line="demo", due_at="2026-01-01T00:00:00Z")
        assert signals.deliver() == (1, 0)
    monkeypatch.setenv("UNLEARN_OPENLINEAGE", "http://catalogue.example.org/api")
    with pytest.raises(ConfigError, match="UNLEARN_OPENLINEAGE"):
        open_signals()


def test_no_marker_of_a_request_gets_anywhere(
    settings: Settings, receiver: Receiver, ledger: Ledger, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_signals(settings, ledger) as signals:
        run_batch(ledger, to="failed", signals=signals)
        signals.signal("run_failed", batch_id="b-000001", attempt=2, failure=f"DataError: {MARKERS[1]}", line=f"x {MARKERS[0]}@y")
        signals.signal("overdue", request_id=f"r {MARKERS[0]}", due_at="2026-01-01T00:00:00Z")
        for _ in range(2):
            signals.follow()
            signals.deliver()
    told = b"".join(f"{headers}".encode() + body for _, headers, body in receiver.taken)
    written = b"".join((here / name).read_bytes() for name in ("log.jsonl", "lineage.jsonl", "unlearn-outbox.sqlite"))
    said = "".join(capsys.readouterr()).encode()
    assert len(receiver.taken) == 3 and b"withheld" in told
    assert not [marker for marker in MARKERS if marker.encode() in told + written + said]
