"""`unlearn keys`: files for their owner alone, nothing overwritten, nothing secret said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.testing

from launch.cli import app
from pipeline.ledger.history import check, entries
from pipeline.ledger.store import open_ledger
from tests.launch.test_cli_release import unlearn

PASSPHRASE = "planted-passphrase"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNLEARN_LEDGER", raising=False)


def test_a_pair_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = unlearn("keys", "new", "plain")
    assert done.exit_code == 0 and "not encrypted" in done.stdout
    assert (tmp_path / "plain.key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("UNLEARN_PASSPHRASE", PASSPHRASE)
    made = unlearn("keys", "new", "guarded", "--json")
    assert json.loads(made.stdout)["encrypted"] is True and PASSPHRASE not in made.output
    again = unlearn("keys", "new", "guarded")
    assert again.exit_code == 2 and "no key is overwritten" in again.stderr
    body = [line for line in (tmp_path / "plain.key").read_text().splitlines() if "-" not in line]
    assert not any(line in done.output + made.output for line in body)


def test_a_secret_is_made_and_destroyed(tmp_path: Path) -> None:
    made = json.loads(unlearn("keys", "new-secret", "--json").stdout)
    assert made["file"] == "unlearn-ledger.key" and made["ledger"] is None
    content = (tmp_path / "unlearn-ledger.key").read_text().strip()
    assert unlearn("keys", "new-secret").exit_code == 2
    refused = unlearn("keys", "destroy", "unlearn-ledger.key")
    assert refused.exit_code == 2 and (tmp_path / "unlearn-ledger.key").exists()
    done = unlearn("keys", "destroy", "unlearn-ledger.key", "--yes")
    assert done.exit_code == 0 and f"secret {made['secret']}: overwritten and removed" in done.stdout
    assert not (tmp_path / "unlearn-ledger.key").exists() and content not in done.output + refused.output


def test_who_says_no_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlearn("keys", "new-secret", "s")
    runner = typer.testing.CliRunner()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    monkeypatch.setattr("launch.cli_keys.sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    done = runner.invoke(app, ["keys", "destroy", "s"])
    assert (tmp_path / "s").exists() and done.exit_code in (0, 2)


def test_the_ledger_knows_what_was_destroyed_and_what_came_after(tmp_path: Path) -> None:
    url = "sqlite:///l.sqlite"
    with open_ledger(url) as ledger:
        file, before = ledger.key_file, ledger.now()
    assert before and unlearn("keys", "destroy", file, "--yes", "--ledger", url).exit_code == 0
    made = json.loads(unlearn("keys", "new-secret", "--ledger", url, "--json").stdout)
    assert made["file"] == file and Path(file).exists()
    with open_ledger(url, create=False) as ledger:
        with ledger.read() as tx:
            assert [entry["event"] for entry in entries(tx, "ledger")] == ["created", "destroyed", "changed"]
            assert tx.key_id == made["secret"] and len(tx.secret) == 32
        assert check(ledger) == []
