"""The server starts, answers, logs nothing of what is asked for, and leaves when it is told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from launch.web.serving import own_names, run_server
from pipeline.errors import StorageError
from pipeline.ledger.store import open_ledger
from tests.support.command import UNLEARN, environment
from tests.support.ledger_page import Clock, ask


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger, ledger.write() as tx:
        ask(tx, 0)
    command = [*UNLEARN, "serve", "--ledger", f"sqlite:///{tmp_path}/ledger.sqlite", "--runs", str(tmp_path), "--port", "0"]
    started = subprocess.Popen(
        command, cwd=tmp_path, env=environment(PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        address = started.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}?q=marker-in-a-search", timeout=20) as answer:
            assert answer.status == 200 and b"No request matches." in answer.read()
        started.send_signal(signal.SIGINT)
        said, complained = started.communicate(timeout=20)
    finally:
        if started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
            started.wait()
        for stream in (started.stdout, started.stderr):
            if stream is not None:
                stream.close()
    assert "marker-in-a-search" not in said + complained and "Traceback" not in complained


def test_names_are_this_machines_and_those_given() -> None:
    assert own_names("127.0.0.1", ["Ledger.example.org."]) == {"localhost", "127.0.0.1", "ledger.example.org"}
    assert socket.gethostname().lower() in own_names("0.0.0.0", []) and "0.0.0.0" not in own_names("0.0.0.0", [])


def test_a_port_that_is_taken_is_one_message(tmp_path: Path) -> None:
    with socket.socket() as taken, open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", clock=Clock()) as ledger:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = {"runs_at": str(tmp_path), "releases_at": "", "token": "", "outbox": "", "say": print}
        with pytest.raises(StorageError, match="in use"):
            run_server(ledger, host="127.0.0.1", port=taken.getsockname()[1], names=frozenset(), **told)  # type: ignore[arg-type]
