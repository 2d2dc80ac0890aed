"""Events of runs have what the standard requires, and name one run for START and its end."""

from __future__ import annotations

import datetime
import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from launch.signals.openlineage import TYPES, dataset, run_event, source_of

AT = "2026-11-26T09:00:00.000000Z"
FACTS = {"batch_id": "b-000001", "attempt": 1, "line": "demo", "run": "s3://bucket/runs/demo-1"}
REQUIRED: dict[str, type] = {"eventTime": str, "producer": str, "schemaURL": str, "run": dict, "job": dict}
"""Of RunEvent in OpenLineage.json 2-0-2."""


def event(name: str, **more: Any) -> dict[str, Any]:
    found = run_event(name, {**FACTS, **more}, scope="ledger", at=AT)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(TYPES))
def test_what_the_standard_requires_is_there(name: str) -> None:
    found = json.loads(json.dumps(event(name)))
    assert all(isinstance(found.get(key), kind) for key, kind in REQUIRED.items())
    assert found["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    datetime.datetime.fromisoformat(found["eventTime"])
    assert uuid.UUID(found["run"]["runId"]) and found["job"]["namespace"] and found["job"]["name"] == "demo"
    assert urlsplit(found["producer"]).scheme and found["schemaURL"].endswith("#/$defs/RunEvent")
    for item in (*found["inputs"], *found["outputs"]):
        assert item["namespace"] and item["name"]
    for facet in found["run"]["facets"].values():
        assert urlsplit(facet["_producer"]).scheme and urlsplit(facet["_schemaURL"]).scheme


def test_a_run_has_one_name_and_another_attempt_another() -> None:
    started, ended = event("run_started")["run"]["runId"], event("evaluated")["run"]["runId"]
    assert started == ended != event("run_started", attempt=2)["run"]["runId"]
    assert run_event("run_started", FACTS, scope="other", at=AT)["run"]["runId"] != started  # type: ignore[index]


def test_a_failure_says_its_word_and_makes_nothing() -> None:
    found = event("run_failed", failure="DataError")
    assert found["run"]["facets"]["errorMessage"]["message"] == "DataError" and found["outputs"] == []


def test_a_finished_run_makes_weights_from_the_source_of_its_manifest(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo-1"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"source_folder": "../packed"}))
    found = event("evaluated", run=str(run))
    assert found["outputs"] == [{"namespace": "file", "name": f"{run}/weights"}]
    assert [item["name"] for item in source_of(str(run))] == [f"{tmp_path}/runs/packed"]
    for broken in ("no json", "[1]"):
        (run / "manifest.json").write_text(broken)
        assert source_of(str(run)) == []


def test_other_signals_are_no_events_of_runs() -> None:
    assert run_event("overdue", {"line": "demo"}, scope="", at=AT) is None


def test_datasets_are_named_without_users() -> None:
    assert dataset("s3://bucket/a/b.tar") == {"namespace": "s3://bucket", "name": "a/b.tar"}
    assert dataset("https://me:hunter2@host/a") == {"namespace": "https://host", "name": "a"}
