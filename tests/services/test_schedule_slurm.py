"""A schedule through a real Slurm: one tick sends a batch's jobs, later ones look after them, the last records what they made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.ledger import batches, history
from pipeline.ledger.store import open_ledger
from tests.services.test_slurm import CLUSTER
from tests.support import slurm as support
from tests.support.command import unlearn
from tests.support.runs import write_run_file
from tests.support.schedule import ask

pytestmark = pytest.mark.services


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if missing := support.missing_slurm():
        pytest.skip(missing)
    with support.running(tmp_path_factory.mktemp("slurm")) as found, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SLURM_CONF", str(found.config))
        yield


def test_ticks_send_follow_and_record(slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({**CLUSTER, "nodes": 1}))
    line = str(write_run_file(tmp_path, requests="", reference="none", train={"epochs": 1}))
    policy = {"every": "0", "before_due": "0", "count": 1, "submit": "slurm", "cluster": "cluster.yaml", "lines": {line: {}}}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    with open_ledger() as ledger:
        ask(ledger, line, "train-000002", "train-000007")

    def tick() -> dict[str, Any]:
        done = unlearn("schedule", "tick", "--policy", "policy.yaml", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    began = time.monotonic()
    first = tick()
    assert first["closed"] == ["b-000001"] and first["steps"][0]["state"] == "running"
    seen = []
    while time.monotonic() - began < 400 and (not seen or seen[-1] == "running"):
        seen.append(tick()["steps"][0]["state"])
        time.sleep(2)
    assert seen[-1] == "evaluated" and len(seen) > 1
    with open_ledger() as ledger:
        with ledger.read() as tx:
            row = batches.find(tx, "b-000001")
            events = [entry["event"] for entry in history.entries(tx, "batch", "b-000001")]
        assert history.check(ledger) == []
    assert row["attempts"] == 1 and set(row["jobs"]["sent"]) >= {"shard", "train", "forget", "retain", "evaluate", "release"}
    assert events == ["closed", "claimed", "running", "sent", "images skipped", "evaluated"]
