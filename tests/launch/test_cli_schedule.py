"""`unlearn schedule` as commands: what they print, their JSON, their exit codes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from launch import desk
from launch.worker import Asked
from pipeline.ledger import requests
from pipeline.ledger.store import open_ledger
from tests.support.ledger_commands import refused, said, told, unlearn
from tests.support.schedule import FakeRunner, ask, write_line, write_policy

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    """A ledger in this folder with a request, a policy `policy.yaml`, and a runner that runs nothing."""
    fake = FakeRunner(tmp_path / "journal")
    monkeypatch.setattr(desk, "runner_for", lambda where, say, to_stderr: fake)
    write_policy(tmp_path, pause="1s")
    with open_ledger() as ledger:
        ask(ledger, write_line(tmp_path), "secret-key", subject="secret-person")
    return fake


def test_a_tick_says_what_it_did(runner: FakeRunner) -> None:
    assert said("schedule", "tick", "--policy", "policy.yaml") == "b-000001: closed\nb-000001: evaluated\n"
    assert said("schedule", "tick", "--policy", "policy.yaml").startswith("tick: 0 batches closed; worked on: none")


def test_json_is_one_line(runner: FakeRunner) -> None:
    done = told("schedule", "tick", "--policy", "policy.yaml")
    assert done == {
        "closed": ["b-000001"],
        "steps": [{"batch_id": "b-000001", "state": "evaluated", "failure": ""}],
        "dangers": [],
    }


def test_a_dry_run_changes_nothing(runner: FakeRunner, tmp_path: Path) -> None:
    text = said("schedule", "tick", "--policy", "policy.yaml", "--dry-run")
    assert "1 requests: would be closed (count)" in text and "no batch would be worked on" in text
    facts = told("schedule", "tick", "--policy", "policy.yaml", "--dry-run")
    assert facts["would_work_on"] == [] and facts["would_close"][0]["waiting"] == 1
    with open_ledger() as ledger, ledger.read() as tx:
        assert tx.seq == 2  # the tables, and the request
    assert not (tmp_path / "journal").exists()


def test_a_tick_that_was_told_to_leave_says_so_by_its_exit_code(runner: FakeRunner) -> None:
    runner.fails["b-000001"] = [Asked("schedule: stopped by SIGTERM", "run it again")]
    done = unlearn("schedule", "tick", "--policy", "policy.yaml")
    assert done.exit_code == 75 and "stopped by SIGTERM" in done.stderr
    assert told("schedule", "status", "--policy", "policy.yaml")["batches"][0]["failure"] == "preempted"


def test_status_shows_queue_batches_and_dangers(runner: FakeRunner, tmp_path: Path) -> None:
    said("schedule", "tick", "--policy", "policy.yaml")
    with open_ledger() as ledger:
        name = ask(ledger, str(tmp_path / "line.yaml"), "other-key", due_at="2100-01-01")
        with ledger.write() as tx:
            requests.move(tx, [name], "held")
    text = said("schedule", "status", "--policy", "policy.yaml")
    assert "b-000001" in text and "evaluated" in text and "7200 s" in text
    assert "in danger: " in text and "held: 1 requests due 2100-01-01T00:00Z: held" in text
    facts = told("schedule", "status", "--policy", "policy.yaml")
    assert facts["batches"][0]["folder"].startswith(str(tmp_path / "runs")) and facts["dangers"][0]["why"] == "held"
    assert "secret" not in text + str(facts)


def test_the_daemon_leaves_cleanly(runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "launch.serve_schedule.serve_schedule.__kwdefaults__",
        {"ticks": 0, "sleep": lambda s: os.kill(os.getpid(), signal.SIGTERM)},
    )
    before = signal.getsignal(signal.SIGTERM)
    text = said("schedule", "serve", "--policy", "policy.yaml")
    signal.signal(signal.SIGTERM, before)
    assert text.endswith("schedule: told to leave\n") and "tick: 1 batches closed; worked on: 1 evaluated" in text


def test_install_prints_what_is_filled_in(runner: FakeRunner, tmp_path: Path) -> None:
    text = said("schedule", "install", "--print", "cron", "--policy", "policy.yaml", "--minutes", "10")
    assert f"*/10 * * * * cd {tmp_path} && " in text and f"--policy {tmp_path}/policy.yaml" in text
    assert f"UNLEARN_LEDGER=sqlite:///{tmp_path}/unlearn-ledger.sqlite" in text
    assert "no such kind" in refused(2, "schedule", "install", "--print", "windows")


def test_no_ledger_and_no_policy_are_named(tmp_path: Path) -> None:
    assert "no ledger there" in refused(2, "schedule", "tick")
    with open_ledger():
        pass
    assert "no schedule is called 'nightly'" in refused(2, "schedule", "status", "--policy", "nightly")


def test_signals_go_where_options_say_and_hold_nothing_personal(runner: FakeRunner, tmp_path: Path) -> None:
    said("schedule", "tick", "--policy", "policy.yaml", "--log-json", "log.jsonl", "--openlineage", "lineage.jsonl")
    text = (tmp_path / "log.jsonl").read_text() + (tmp_path / "lineage.jsonl").read_text()
    assert [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        *("batch_closed", "run_started", "evaluated", "tick")
    ]
    assert text.count('"eventType": "COMPLETE"') == 1 and "secret" not in text


def test_a_receiver_that_may_not_be_is_refused_at_once(runner: FakeRunner, tmp_path: Path) -> None:
    for command in ("tick", "serve"):
        fault = refused(2, "schedule", command, "--policy", "policy.yaml", "--webhook", "http://example.org/hook")
        assert "UNLEARN_WEBHOOK: not https" in fault
    assert not (tmp_path / "journal").exists()


def test_a_person_decides_on_what_is_held(runner: FakeRunner) -> None:
    runner.fails["b-000001"] = ["verdict"]
    assert "b-000001: held (verdict)\n" in said("schedule", "tick", "--policy", "policy.yaml")
    assert "without reason" in refused(2, "schedule", "decide", "b-000001", "--reason", "")
    text = said("schedule", "decide", "b-000001", "--reason", "the rule was mended")
    assert text == "b-000001: the next tick tries it again\n"
    assert told("schedule", "tick", "--policy", "policy.yaml")["steps"][0]["state"] == "evaluated"
    assert "not held" in refused(3, "schedule", "decide", "b-000001", "--reason", "again", "--apart")
