"""Batches through the real chain with fake workers, and through a Slurm that is one function."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from launch import batch_run
from launch.batch_run import WORDS, BatchRun, Local, Slurm, word_of, word_of_code
from launch.endings import WorkerError
from pipeline.config import RunConfig, run_folder
from pipeline.errors import CheckpointError, ConfigError, DataError, GateFailed, Preempted, StorageError
from pipeline.records import RequestBatch
from tests.launch.fake_slurm import FakeSlurm

Small = tuple[RunConfig, RequestBatch]


def run_of(small: Small, **jobs: Any) -> BatchRun:
    config, batch = small
    return BatchRun(batch_id="b-000001", config=config, batch=batch, folder=run_folder(*small), cluster="two_nodes", jobs=jobs)


def unexpected(sent: Mapping[str, str]) -> None:
    raise AssertionError(sent)


def test_every_end_has_a_word() -> None:
    faults = (
        ConfigError(""),
        DataError(""),
        CheckpointError(""),
        StorageError(""),
        GateFailed(""),
        Preempted(""),
        WorkerError("", ""),
    )
    words = [word_of(fault) for fault in faults]
    assert words == ["configuration", "data", "data", "storage", "verdict", "preempted", "crash"] and set(words) <= set(WORDS)
    assert [word_of_code(code) for code in (1, 2, 3, 4, 75, 137)] == [
        "crash",
        "configuration",
        "data",
        "verdict",
        "preempted",
        "crash",
    ]


def test_a_local_run_goes_on_where_it_was_and_ends_once(small: Small, finished: Path) -> None:
    (finished / "receipts" / "release.json").unlink()
    said: list[str] = []
    local, run = Local(said.append), run_of(small)
    assert local.carry_on(run, unexpected) == ""
    assert [line.partition(":")[0] for line in said if "up to date" not in line] == ["release", "release"]
    said.clear()
    assert local.carry_on(run, unexpected) == "" and not said


def test_a_local_run_that_fails_raises_what_the_worker_named(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAIN", "data-error")
    with pytest.raises(DataError):
        Local(lambda line: None).carry_on(run_of(small), unexpected)


def test_a_failed_verdict_is_told(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = {"metric": "kept", "value": 2.0, "bound": "at most 1", "reason": "x", "state": "broken"}
    monkeypatch.setattr("launch.local.read_report", lambda folder: {"verdict": {"outcome": "failed", "rules": [rule]}})
    assert batch_run._judged("anywhere") == "verdict"


def test_jobs_are_sent_noted_and_followed(small: Small, slurm: FakeSlurm) -> None:
    noted: dict[str, str] = {}
    slurm_runner = Slurm(lambda line: None)
    assert slurm_runner.carry_on(run_of(small), noted.update) is None
    assert noted["shard"] == "100" and len(noted) == 8
    run = run_of(small, sent=noted)
    assert slurm_runner.carry_on(run, unexpected) is None  # queued
    slurm.set("100", "RUNNING")
    assert slurm_runner.carry_on(run, unexpected) is None
    assert len(slurm.files()) == 8


def test_jobs_have_ended_well_when_all_receipts_are_there(small: Small, finished: Path, slurm: FakeSlurm) -> None:
    assert Slurm(lambda line: None).carry_on(run_of(small, sent={"shard": "100"}), unexpected) == ""
    assert Slurm(lambda line: None).carry_on(run_of(small), unexpected) == ""  # nothing is left to send
    assert not slurm.files()


def test_what_was_sent_but_not_noted_is_not_sent_twice(small: Small, slurm: FakeSlurm) -> None:
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    Slurm(lambda line: None).carry_on(run_of(small), first.update)
    assert Slurm(lambda line: None).carry_on(run_of(small), second.update) is None
    assert first == second and len(slurm.files()) == 8


@pytest.mark.parametrize(
    ("state", "more", "word"),
    [
        ("FAILED", {"code": "2:0"}, "configuration"),
        ("FAILED", {"code": "75:0"}, "preempted"),
        ("FAILED", {"code": "0:9"}, "crash"),
        ("PREEMPTED", {}, "preempted"),
        ("NODE_FAIL", {}, "preempted"),
        ("OUT_OF_MEMORY", {}, "crash"),
    ],
)
def test_a_job_s_end_becomes_a_word(small: Small, slurm: FakeSlurm, state: str, more: dict[str, str], word: str) -> None:
    noted: dict[str, str] = {}
    Slurm(lambda line: None).carry_on(run_of(small), noted.update)
    slurm.set(noted["shard"], state, **more)
    for stage, job in noted.items():
        if stage != "shard":
            slurm.set(job, "CANCELLED", reason="DependencyNeverSatisfied")
    assert Slurm(lambda line: None).carry_on(run_of(small, sent=noted), unexpected) == word


def test_jobs_that_slurm_forgot_without_a_trace_are_lost(small: Small, slurm: FakeSlurm) -> None:
    noted: dict[str, str] = {}
    Slurm(lambda line: None).carry_on(run_of(small), noted.update)
    slurm.forget()
    assert Slurm(lambda line: None).carry_on(run_of(small, sent=noted), unexpected) == "lost"


def test_a_slurm_that_does_not_answer_is_no_end(small: Small, slurm: FakeSlurm) -> None:
    noted: dict[str, str] = {}
    said: list[str] = []
    Slurm(said.append).carry_on(run_of(small), noted.update)
    slurm.away = "Unable to contact slurm controller"
    said.clear()
    assert Slurm(said.append).carry_on(run_of(small, sent=noted), unexpected) is None
    assert said == ["Slurm does not answer"]


def test_a_plan_refuses_a_folder_of_another_batch(small: Small, finished: Path) -> None:
    run = run_of(small)
    Local(lambda line: None).plan(run)
    manifest = finished / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"batch_digest":"', '"batch_digest":"0'))
    with pytest.raises(ConfigError, match="belongs to another batch"):
        Local(lambda line: None).plan(run)
