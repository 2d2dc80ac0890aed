"""A small run whose parts are checked by a fake worker, sent to a Slurm that is one function."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from launch import queue, submit
from launch.cluster import ClusterConfig, read_cluster
from launch.jobs import status_of
from launch.local import run_chain
from launch.submit import current_stages, intend, prepare
from pipeline.chain import chain_for
from pipeline.claim import owning
from pipeline.config import RunConfig, read_run, resolve, run_folder
from pipeline.decode import canonical
from pipeline.errors import ConfigError, StorageError
from pipeline.records import RequestBatch
from tests.launch.fake_slurm import FakeSlurm

Small = tuple[RunConfig, RequestBatch]
STAGES = ("shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release")


@pytest.fixture
def cluster() -> ClusterConfig:
    return read_cluster("two_nodes", {"lease_seconds": 1.0})


def send(small: Small, cluster: ClusterConfig, **over: Any) -> submit.Submission:
    return submit.submit(over.get("config", small[0]), small[1], cluster, say=lambda line: None)


def test_the_whole_chain_is_sent_and_the_folder_is_ready(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    done = send(small, cluster)
    assert list(done.sent) == list(STAGES)
    assert slurm.files() == [f"{number:02d}-{stage}.sbatch" for number, stage in enumerate(STAGES, start=1)]
    folder = Path(run_folder(*small))
    assert read_run(str(folder)).name == "small"
    assert json.loads((folder / "shards" / "batch.json").read_text())["requests"]
    assert (folder / "jobs" / "cluster.json").read_bytes() == canonical(cluster)
    assert (folder / "logs").is_dir()
    # The reference needs no trained model, but the folder has one owner at a time.
    waits = {Path(words[-1]).stem[3:]: words[2] for words in slurm.commands if words[0] == "sbatch"}
    assert waits["train"] == "--dependency=afterok:100"
    assert waits["retrain"] == "--dependency=afterok:100,afterany:101"
    assert waits["calibrate"] == "--dependency=afterok:100:101,afterany:102"


def test_what_is_sent_is_what_is_shown(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    before = sorted(Path(small[0].output).parent.rglob("*"))
    shown = intend(*small, cluster)
    assert sorted(Path(small[0].output).parent.rglob("*")) == before
    send(small, cluster)
    assert {script.file: script.text for script in shown.wanted} == {
        str(path): path.read_text() for path in (Path(shown.site.home) / "jobs").glob("*.sbatch")
    }


def test_scripts_say_what_the_cluster_file_says(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")  # where the tests themselves run may need quotes
    cluster = read_cluster("", {"nodes": 2, "stages": {"forget": {"nodes": 1, "minutes": 30}}, "python": "/opt/py"})
    site, scripts = prepare(*small, cluster)
    texts = {script.stage: script.text for script in scripts}
    assert "#SBATCH --nodes=2\n" in texts["train"] and "#SBATCH --nodes=1\n" in texts["forget"]
    assert "#SBATCH --time=0:30:00\n" in texts["forget"] and "#SBATCH --time=4:00:00\n" in texts["train"]
    assert f"    /opt/py -P -m launch stage '{site.home}' train\n" in texts["train"]
    assert f"#SBATCH --chdir={os.getcwd()}\n" in texts["train"]
    assert f'#SBATCH --output="{site.home}/logs/slurm-train.log"\n' in texts["train"]


def test_a_second_submission_sends_nothing_twice(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    first = send(small, cluster)
    again = send(small, cluster)
    assert (again.sent, again.active) == ({}, first.sent)
    assert len(slurm.files()) == len(STAGES)


def test_what_is_missing_is_sent_and_waits_for_what_is_under_way(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    first = send(small, cluster)
    for stage in ("calibrate", "forget", "retain", "evaluate", "release"):
        slurm.set(first.sent[stage], "CANCELLED", reason="DependencyNeverSatisfied")
    again = send(small, cluster)
    assert list(again.active) == ["shard", "train", "retrain"]
    assert list(again.sent) == ["calibrate", "forget", "retain", "evaluate", "release"]
    words = next(words for words in slurm.commands[len(STAGES) :] if words[-1].endswith("04-calibrate.sbatch"))
    shard, train, retrain = (first.sent[stage] for stage in ("shard", "train", "retrain"))
    assert words[2] == f"--dependency=afterok:{shard}:{train},afterany:{retrain}"


def test_finished_stages_are_left_out(finished: Path, small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    done = send(small, cluster)
    assert (done.sent, done.current, slurm.commands) == ({}, STAGES, [])
    (finished / "receipts" / "forget.json").unlink()
    done = send(small, cluster)
    assert list(done.sent) == ["forget", "retain", "evaluate", "release"]
    assert next(words for words in slurm.commands if words[0] == "sbatch")[2:] == [f"{finished}/jobs/05-forget.sbatch"]


def test_what_comes_after_an_outdated_stage_is_sent_too(finished: Path, small: Small) -> None:
    """Its receipt fits the outputs that are there now, but those will be made anew."""
    (finished / "receipts" / "shard.json").unlink()
    assert current_stages(small[0], str(finished)) == ()
    assert len(chain_for(small[0])) == len(STAGES)


@pytest.mark.parametrize("what", ["the run", "the cluster"])
def test_a_folder_is_not_changed_under_its_jobs(small: Small, cluster: ClusterConfig, slurm: FakeSlurm, what: str) -> None:
    send(small, cluster)
    config = resolve(str(Path(small[0].output).parent / "small.yaml"), ["train.epochs=9"]) if what == "the run" else small[0]
    other = cluster if what == "the run" else read_cluster("two_nodes", {"nodes": 4, "lease_seconds": 1.0})
    with pytest.raises(ConfigError, match=f"jobs are queued or running for another configuration of {what}"):
        send(small, other, config=config)
    for job in slurm.jobs:
        slurm.set(job, "CANCELLED")
    assert len(send(small, other, config=config).sent) == len(STAGES)
    assert read_run(run_folder(*small)).train.epochs == config.train.epochs


def test_a_refused_partition_leaves_no_job(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    slurm.refuse["04-calibrate.sbatch"] = "invalid partition specified: nowhere"
    with pytest.raises(queue.Refused, match=r"calibrate: .*: invalid partition specified: nowhere; jobs 100, 101, 102, sent"):
        send(small, cluster)
    assert {facts["state"] for facts in slurm.jobs.values()} == {"CANCELLED"}
    slurm.refuse.clear()
    assert len(send(small, cluster).sent) == len(STAGES)


def test_without_slurm_nothing_is_written(small: Small, cluster: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert len(intend(*small, cluster, strict=False).wanted) == len(STAGES)
    with pytest.raises(ConfigError, match="sbatch: not found"):
        send(small, cluster)
    assert not Path(small[0].output).exists()


def test_a_part_that_is_refused_is_refused_here(
    small: Small, cluster: ClusterConfig, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CHECK", "data-error")
    with pytest.raises(Exception, match="label 'Trouzers': unknown"):
        send(small, cluster)
    assert not Path(small[0].output).exists() and not slurm.files()


def test_a_folder_of_another_batch_is_refused(finished: Path, small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    (finished / "manifest.json").write_text(json.dumps({**manifest, "batch_digest": "0" * 64}))
    with pytest.raises(ConfigError, match="belongs to another batch"):
        send(small, cluster)
    assert not slurm.commands


def test_a_run_at_work_in_the_folder_is_not_disturbed(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    folder = run_folder(*small)
    with owning(folder, lease_seconds=1.0):
        with pytest.raises(StorageError, match="another run is at work in this folder"):
            send(small, cluster)
    assert not slurm.files() and not (Path(folder) / "config.yaml").exists()


def test_a_run_here_after_a_submission_finds_its_folder(small: Small, cluster: ClusterConfig, slurm: FakeSlurm) -> None:
    send(small, cluster)
    assert len(run_chain(*small, say=lambda line: None).ran) == len(STAGES)
    assert send(small, cluster).current == STAGES


def test_a_run_in_a_bucket_has_its_job_files_here(
    small: Small, cluster: ClusterConfig, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slurm can read and write nothing in a bucket; the notes of what was sent lie there all the same."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(small[0], output="memory://submitted")
    done = send(small, cluster, config=config)
    assert (done.site.home, done.site.scripts) == (run_folder(config, small[1]), f"{tmp_path}/jobs-{done.site.name}")
    assert sorted(path.name for path in Path(done.site.scripts).iterdir())[0] == "01-shard.sbatch"
    text = (Path(done.site.scripts) / "01-shard.sbatch").read_text()
    assert f"stage {done.site.home} shard\n" in text and f"--output={done.site.logs}/slurm-shard.log\n" in text
    assert [job.job for job in status_of(done.site.home).jobs] == list(done.sent.values())
    assert send(small, cluster, config=config).active == done.sent
