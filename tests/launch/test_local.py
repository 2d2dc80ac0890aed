"""The chain on this machine: picks up where it stopped, refuses without a trace, locks its folder."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
import yaml

from launch import local, torchrun
from launch.local import read_report, refuse_other_batch, run_chain
from launch.worker import WorkerError
from pipeline.chain import CHAIN
from pipeline.config import RunConfig, read_batch, resolve, run_folder
from pipeline.errors import ConfigError, DataError, IntegrityError, Preempted, StorageError
from pipeline.records import RequestBatch
from pipeline.storage import lock

Small = tuple[RunConfig, RequestBatch]
ALL = tuple(spec.name for spec in CHAIN if spec.name != "certify")


def go(small: Small) -> tuple[local.Outcome, list[str]]:
    said: list[str] = []
    return run_chain(*small, say=said.append), said


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_goes_through_all_stages_once(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, said = go(small)
    assert outcome.ran == ALL
    assert outcome.current == ()
    assert any(line.startswith("release: done in") for line in said)
    monkeypatch.setattr(torchrun, "stage_job", None)
    monkeypatch.setattr(torchrun, "worker_job", None)
    again, _ = go(small)
    assert (again.ran, again.current) == ((), ALL)


def test_the_folder_holds_configuration_and_batch_but_the_configuration_no_requests(small: Small) -> None:
    folder = Path(go(small)[0].folder)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["requests"] == ""
    assert saved["embedded_requests"] == []
    assert saved["name"] == "small"
    assert json.loads((folder / "shards/batch.json").read_text())["requests"][0]["selector"]["values"] == ["Trouser"]
    assert (folder / "logs" / "train.log").exists()
    assert not list(folder.rglob("*.part"))


def test_only_what_depends_on_a_changed_section_runs_again(finished: Path, run_file: str) -> None:
    config = resolve(run_file, ["evaluation.bootstrap=7"])
    outcome = run_chain(config, read_batch(config), say=lambda line: None)
    assert outcome.ran == ("evaluate", "release")


def test_without_a_reference_there_is_no_retraining(run_file: str) -> None:
    config = resolve(run_file, ["reference=none"])
    outcome = run_chain(config, read_batch(config), say=lambda line: None)
    assert outcome.ran == tuple(name for name in ALL if name != "retrain")


@pytest.mark.parametrize("how", ["crash", "data-error", "kill"])
def test_a_later_failure_keeps_what_is_done_and_the_next_run_goes_on(
    small: Small, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("FAKE_FORGET", how)
    expected = {"crash": WorkerError, "data-error": DataError, "kill": Preempted}[how]
    with pytest.raises(expected):
        go(small)
    Path(run_folder(*small), "weights", ".x.part").touch()
    Path(run_folder(*small), "checkpoints", "forget", "next.part").mkdir(parents=True)
    monkeypatch.delenv("FAKE_FORGET")
    outcome, _ = go(small)
    assert outcome.ran == ("forget", "retain", "evaluate", "release")
    assert not list(Path(outcome.folder).rglob("*.part"))


@pytest.mark.parametrize("stage", ["check", "shard"])
def test_a_refused_run_leaves_nothing_behind(small: Small, run_file: str, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setenv(f"FAKE_{stage.upper()}", "data-error")
    with pytest.raises(DataError, match="Trouzers"):
        go(small)
    assert files(Path(run_file).parent) == ["small.yaml"]
    assert not Path(small[0].output).exists()


def test_a_refused_run_leaves_its_neighbours_alone(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbour = Path(small[0].output) / "other" / "file"
    neighbour.parent.mkdir(parents=True)
    neighbour.touch()
    monkeypatch.setenv("FAKE_SHARD", "data-error")
    with pytest.raises(DataError):
        go(small)
    assert files(Path(small[0].output)) == ["other/file"]


def test_a_preempted_first_stage_keeps_its_folder(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SHARD", "kill")
    with pytest.raises(Preempted, match="stage shard"):
        go(small)
    assert Path(run_folder(*small), "config.yaml").exists()


def test_a_stage_that_ends_well_without_a_receipt_is_named(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAIN", "no-receipt")
    with pytest.raises(IntegrityError, match="stage train: ended with no receipt"):
        go(small)


@pytest.mark.parametrize("name", ["manifest.json", "shards/batch.json"])
def test_a_folder_of_another_batch_is_refused(finished: Path, name: str) -> None:
    for other in {"manifest.json", "shards/batch.json"} - {name}:
        (finished / other).unlink()
    with pytest.raises(ConfigError, match="belongs to another batch"):
        refuse_other_batch(str(finished), "0" * 64)
    (finished / name).write_text("{broken")
    with pytest.raises(IntegrityError, match=name):
        refuse_other_batch(str(finished), "0" * 64)


def test_weights_that_are_not_there_are_refused_before_any_worker(run_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "worker_job", None)
    config = resolve(run_file, ["original=/nowhere/x.safetensors"])
    with pytest.raises(ConfigError, match=r"original: /nowhere/x\.safetensors: not found"):
        run_chain(config, read_batch(config), say=lambda line: None)


def test_a_busy_folder_is_waited_for_and_then_refused(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LOCK_SECONDS", 0.3)
    with lock(run_folder(*small)), pytest.raises(StorageError, match="another run is at work"):
        go(small)


def test_a_folder_that_becomes_free_is_taken(small: Small) -> None:
    held, said = threading.Event(), []

    def hold() -> None:
        with lock(run_folder(*small)):
            held.set()
            time.sleep(0.5)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with local.patient_lock(run_folder(*small), said.append):
        holder.join()
    assert len(said) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_named(small: Small) -> None:
    Path(small[0].output).mkdir(mode=0o500)
    with pytest.raises(StorageError, match="permission"):
        go(small)


def test_a_report_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"report\.json: not a report"):
        read_report(str(tmp_path))
