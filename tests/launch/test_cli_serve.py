"""`unlearn serve`, `pages` and `metrics` as commands: what they print and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.testing
from prometheus_client.parser import text_string_to_metric_families

from launch.cli import app
from pipeline.ledger.store import open_ledger
from tests.support.ledger_page import Clock, ask


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a ledger with one request."""
    for name in ("UNLEARN_SERVE_TOKEN", "UNLEARN_OUTBOX", "UNLEARN_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    with open_ledger(url, clock=Clock()) as opened, opened.write() as tx:
        ask(tx, 0)
    return url


def unlearn(*words: str) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def test_pages_are_written_and_counted(ledger: str, tmp_path: Path) -> None:
    done = unlearn("pages", str(tmp_path / "out"), "--ledger", ledger)
    assert done.exit_code == 0 and done.stdout.endswith(f"files: {tmp_path}/out/index.html\n")
    facts = json.loads(unlearn("pages", str(tmp_path / "out"), "--ledger", ledger, "--no-pictures", "--json").stdout)
    assert facts == {"folder": str(tmp_path / "out"), "files": len(list((tmp_path / "out").iterdir())), "pictures": False}


def test_metrics_are_what_prometheus_reads(ledger: str) -> None:
    done = unlearn("metrics", "--ledger", ledger)
    found = {family.name for family in text_string_to_metric_families(done.stdout)}
    assert done.exit_code == 0 and {"unlearn_requests", "unlearn_batches", "unlearn_history_entries"} <= found


def test_other_hosts_need_a_token(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = unlearn("serve", "--ledger", ledger, "--host", "0.0.0.0")
    assert refused.exit_code == 2 and "a token is needed" in refused.output and "--token-file" in refused.output
    monkeypatch.setenv("UNLEARN_SERVE_TOKEN", "short")
    assert unlearn("serve", "--ledger", ledger).exit_code == 2


@pytest.mark.parametrize("words", [("serve",), ("pages", "out"), ("metrics",)])
def test_no_ledger_is_one_message_and_none_is_made(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = unlearn(*words, "--ledger", f"sqlite:///{tmp_path}/none.sqlite")
    assert refused.exit_code == 2 and "no ledger there" in refused.output and "Traceback" not in refused.output
    assert list(tmp_path.iterdir()) == []
