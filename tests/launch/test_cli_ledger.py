"""The commands for the ledger: made once, and whole or named for what was done to it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.support.ledger_commands import refused, said, told, unlearn

pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_ledger_is_made_once(tmp_path: Path) -> None:
    made = told("ledger", "init")
    assert made == {"ledger": "sqlite:///unlearn-ledger.sqlite", "pseudonym_key": "unlearn-ledger.key", "entries": 1}
    assert {path.name for path in tmp_path.iterdir()} >= {"unlearn-ledger.sqlite", "unlearn-ledger.key"}
    key = Path("unlearn-ledger.key").read_text()
    assert "1 entries in its history" in said("ledger", "init") and Path("unlearn-ledger.key").read_text() == key


def test_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_LEDGER", "sqlite:///other.sqlite")
    monkeypatch.setenv("UNLEARN_PSEUDONYM_KEY", "own.key")
    assert told("ledger", "init")["pseudonym_key"] == "own.key"
    assert Path("other.sqlite").exists() and Path("own.key").exists()


def test_what_was_done_to_the_history_is_named() -> None:
    said("ledger", "init")
    assert "1 entries, each sealed" in said("ledger", "check") and told("ledger", "check")["faults"] == []
    with sqlite3.connect("unlearn-ledger.sqlite") as connection:
        connection.execute("DROP TRIGGER history_no_update")
        connection.execute("UPDATE history SET actor = 'nobody'")
    connection.close()
    assert "entry 1: changed after it was written" in refused(3, "ledger", "check")
    result = unlearn("ledger", "check", "--json")
    assert result.exit_code == 3 and json.loads(result.stdout)["faults"][0]["seq"] == 1


def test_no_ledger_is_named_with_the_cure() -> None:
    assert "unlearn ledger init" in refused(2, "ledger", "check") and not Path("unlearn-ledger.sqlite").exists()
