"""`unlearn trace` as a command: one question at a time, answered without keys and subjects."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import acts
from launch.schedule import tick
from pipeline.ledger.store import open_ledger
from tests.launch.test_trace import Indexes, folder_of
from tests.support.ledger_commands import refused, said, told
from tests.support.schedule import FakeRunner, ask, desk_of, write_line, write_policy

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two batches of one line; the run folders."""
    with open_ledger() as ledger:
        for name in ("r1", "r2"):
            ask(ledger, write_line(tmp_path), f"key-{name}", name=name, subject=f"Person {name}")
            tick(desk_of(ledger, write_policy(tmp_path), FakeRunner(tmp_path / "journal")))
        indexes = Indexes(ledger)
        monkeypatch.setattr(acts, "carry_out", lambda act, order, answer, to_stderr: indexes(order))
        return [folder_of(ledger, 1), folder_of(ledger, 2)]


def test_images_are_told_in_words(folders: list[str]) -> None:
    text = said("trace", "--request", "r2")
    assert text.splitlines()[0] == "1 requests: r2 (evaluated)"
    assert f"{folders[1]}: 1 in original, 1 in forget, 0 in retain, in 2 shards" in text
    assert "forgot: unlearned model " in text and "trained: original model " in text
    assert said("trace", "--subject", "Person r2") == said("trace", "--key", "key-r2") == text
    assert "key-r2" not in text and "Person" not in text


def test_what_is_on_standard_input_is_not_on_the_command_line(folders: list[str]) -> None:
    assert said("trace", "--subject", "-", given="Person r2\n") == said("trace", "--subject", "Person r2")
    assert said("trace", "--key", "-", given="key-r1\n") == said("trace", "--request", "r1")


def test_a_model_is_told_in_words(folders: list[str]) -> None:
    text = said("trace", "--checkpoint", folders[0])
    assert "unlearned of " in text and "verdict passed" in text and "shaped by batches: b-000001" in text
    assert "1 requests: r1 (evaluated)" in text and "trained on 2 shards, forgot 2" in text and "aliases: none" in text


def test_json_has_all_of_it(folders: list[str]) -> None:
    found = told("trace", "--subject", "Person r1")
    assert set(found) == {"requests", "batches", "runs", "models"}
    assert found["batches"] == [["b-000001", "evaluated", "pending", folders[0]]]
    assert told("trace", "--checkpoint", folders[1])["requests"] == [["r2", "evaluated", "b-000002", "pending"]]


def test_nothing_found_is_said(folders: list[str]) -> None:
    assert said("trace", "--subject", "Nobody") == "nothing in this ledger has to do with it\n"


def test_one_question_at_a_time(folders: list[str]) -> None:
    assert "0 of --key" in refused(2, "trace") and "2 of --key" in refused(2, "trace", "--key", "k", "--request", "r1")
    assert "request r9" in refused(2, "trace", "--request", "r9")
