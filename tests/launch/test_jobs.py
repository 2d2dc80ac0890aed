"""What is said of jobs that Slurm knows, has forgotten, or cannot be asked for; and cancelling them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import queue
from launch.cluster import read_cluster
from launch.jobs import cancel_jobs, find_jobs, job_rows, status_of
from launch.submit import submit
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.records import RequestBatch
from tests.launch.fake_slurm import FakeSlurm

Small = tuple[RunConfig, RequestBatch]


@pytest.fixture
def sent(finished: Path, small: Small, slurm: FakeSlurm) -> Path:
    """A run folder whose forgetting and what follows was sent again."""
    (finished / "receipts" / "forget.json").unlink()
    submit(*small, read_cluster(), say=lambda line: None)
    return finished


def states(folder: Path) -> dict[str, tuple[str, str, str, str]]:
    return {job.stage: (job.job, job.state, job.reason, job.receipt) for job in status_of(str(folder)).jobs}


def test_each_stage_has_its_job_its_state_and_its_receipt(sent: Path, slurm: FakeSlurm) -> None:
    slurm.set("100", "FAILED", reason="NonZeroExitCode", code="3:0")
    slurm.set("101", "CANCELLED", reason="DependencyNeverSatisfied")
    slurm.set("102", "PENDING", reason="BeginTime", restarts="2")
    found = states(sent)
    assert found["shard"] == ("", "not submitted", "", "current")
    assert found["forget"] == ("100", "FAILED", "exit code 3", "none")
    assert found["retain"] == ("101", "CANCELLED", "DependencyNeverSatisfied", "outdated")
    columns, rows, lines = job_rows(status_of(str(sent)))
    assert columns == ["stage", "job", "state", "restarts", "reason", "receipt"]
    assert ["evaluate", "102", "PENDING", "2", "BeginTime", "outdated"] in rows
    assert lines == [f"forget: see {sent}/logs/slurm-forget.log"]


def test_receipts_speak_where_slurm_has_forgotten(sent: Path, slurm: FakeSlurm) -> None:
    slurm.forget()
    assert states(sent)["train"][1::2] == ("not submitted", "current")
    assert states(sent)["forget"] == ("100", "forgotten", "", "none")
    assert job_rows(status_of(str(sent)))[2][0] == f"forget: see {sent}/logs/slurm-forget.log"


@pytest.mark.parametrize("why", ["away", "not here"])
def test_without_slurm_the_receipts_are_shown_all_the_same(
    sent: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "away":
        slurm.away = "Unable to contact slurm controller"
    else:
        monkeypatch.undo()
        monkeypatch.setenv("PATH", "/nowhere")
    found = status_of(str(sent))
    assert found.told.endswith("Unable to contact slurm controller" if why == "away" else "squeue: not found")
    assert {job.stage: (job.job, job.receipt) for job in found.jobs}["forget"] == ("100", "none")
    assert job_rows(found)[2][0] == f"Slurm could not be asked: {found.told}"


def test_a_job_sent_by_hand_is_known(sent: Path, slurm: FakeSlurm) -> None:
    slurm.set("100", "FAILED")
    by_hand = queue.send(["sbatch", f"{sent}/jobs/05-forget.sbatch"])
    assert states(sent)["forget"][:2] == (by_hand, "PENDING")
    assert cancel_jobs(str(sent))["forget"] == by_hand


def test_what_is_queued_or_running_is_cancelled_the_last_first(sent: Path, slurm: FakeSlurm) -> None:
    slurm.set("100", "COMPLETED")
    slurm.set("101", "RUNNING")
    assert cancel_jobs(str(sent)) == {"retain": "101", "evaluate": "102", "release": "103"}
    assert slurm.commands[-1] == ["scancel", "103", "102", "101"]
    assert cancel_jobs(str(sent)) == {}
    assert slurm.commands[-1][0] != "scancel"


def test_nothing_is_cancelled_where_nothing_was_sent(finished: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(ConfigError, match="no job was submitted for it"):
        cancel_jobs(str(finished))
    slurm.away = "Unable to contact slurm controller"
    with pytest.raises(StorageError, match="Slurm does not answer"):
        cancel_jobs(str(finished))


def test_a_submission_is_found_by_its_folder_or_its_run(sent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(sent.parent)
    assert find_jobs(str(sent)) == find_jobs(sent.name, output) == find_jobs(sent.name.rpartition("-")[2], output) == str(sent)
    other = tmp_path / "index-1"
    (other / "jobs").mkdir(parents=True)
    (other / "jobs" / "submitted.json").write_text('{"jobs": [{"stage": "index", "job": "100", "at": ""}]}')
    monkeypatch.chdir(tmp_path)
    assert find_jobs("index-1") == str(other)
    assert [job.receipt for job in status_of(str(other)).jobs] == [""]
    with pytest.raises(ConfigError, match="no run folder"):
        find_jobs("nowhere")
