"""Scripts sent in order to a Slurm that is one function: notes after each, and what happens when one is not taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launch import queue, sending
from launch.queue import Refused
from launch.sending import Script, Site, active_jobs, command, noted, own_jobs, send_all, site_of
from pipeline.errors import IntegrityError, StorageError
from tests.launch.fake_slurm import FakeSlurm


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_of(str(tmp_path / "a b" / "run-1"), "run-1")


def scripts(site: Site, *names: str) -> list[Script]:
    """A chain in which each needs all before it."""
    return [
        Script(
            stage=name,
            needs=names[:number],
            file=f"{site.scripts}/{number + 1:02d}-{name}.sbatch",
            text=f"# {name}\n",
            log=f"{site.logs}/slurm-{name}.log",
        )
        for number, name in enumerate(names)
    ]


def test_files_lie_in_the_run_folder_or_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = site_of("/data/run-1", "run-1")
    assert (here.scripts, here.logs) == ("/data/run-1/jobs", "/data/run-1/logs")
    bucket = site_of("s3://bucket/run-1", "run-1")
    assert (bucket.home, bucket.scripts, bucket.logs) == ("s3://bucket/run-1", f"{tmp_path}/jobs-run-1", f"{tmp_path}/jobs-run-1")


def test_each_waits_for_those_it_needs(slurm: FakeSlurm, site: Site) -> None:
    said: list[str] = []
    chain = scripts(site, "shard", "train", "forget")
    assert send_all(site, chain[1:], {"shard": "77"}, said.append) == {"train": "100", "forget": "101"}
    after = ["--dependency=afterok:77", "--kill-on-invalid-dep=yes"]
    assert slurm.commands[0] == ["sbatch", "--parsable", *after, chain[1].file]
    assert slurm.commands[1][2] == "--dependency=afterok:77:100"
    assert said == ["train: job 100, afterok:77", "forget: job 101, afterok:77:100"]
    assert Path(chain[2].file).read_text() == "# forget\n"
    assert Path(site.logs).is_dir()
    notes = noted(site.home)
    assert {stage: sent.job for stage, sent in notes.items()} == {"train": "100", "forget": "101"}
    assert notes["train"].log == chain[1].log and notes["train"].at.endswith("+00:00")


def test_in_a_folder_with_one_owner_each_waits_for_the_end_of_all_before_it(site: Site) -> None:
    script = dataclasses.replace(scripts(site, "shard", "forget")[1], alone=True)
    known = {"shard": "100", "train": "101", "retrain": "102"}
    assert command(script, known)[2:4] == ["--dependency=afterok:100,afterany:101:102", "--kill-on-invalid-dep=yes"]
    assert command(script, {"train": "101"})[2] == "--dependency=afterany:101"
    assert command(script, {}) == ["sbatch", "--parsable", script.file]


def test_a_job_is_noted_before_the_next_one_is_sent(slurm: FakeSlurm, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, send = scripts(site, "shard", "train"), queue.send

    def dies(words: list[str]) -> str:
        if words[-1] == chain[1].file:
            raise KeyboardInterrupt
        return send(words)

    monkeypatch.setattr(queue, "send", dies)
    with pytest.raises(KeyboardInterrupt):
        send_all(site, chain, {}, lambda line: None)
    assert list(noted(site.home)) == ["shard"]
    assert active_jobs(site, chain) == {"shard": "100"}


def test_a_job_without_a_note_is_found_by_its_script(slurm: FakeSlurm, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = scripts(site, "shard", "train.decouple")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sending, "_note", dies)
        send_all(site, chain, {}, lambda line: None)
    assert noted(site.home) == {}
    assert active_jobs(site, chain) == {"shard": "100"}
    queue.send(["sbatch", chain[1].file])
    assert own_jobs(site.home, [script.file for script in chain]) == {"shard": "100", "train.decouple": "101"}
    slurm.set("100", "COMPLETED")
    assert active_jobs(site, chain) == {"train.decouple": "101"}


def test_a_refusal_withdraws_what_was_sent_before(slurm: FakeSlurm, site: Site) -> None:
    chain = scripts(site, "shard", "train", "forget")
    slurm.refuse["03-forget.sbatch"] = "invalid partition specified: nowhere"
    with pytest.raises(Refused) as caught:
        send_all(site, chain, {}, lambda line: None)
    words = "sbatch: error: invalid partition specified: nowhere; jobs 100, 101, sent before it, were cancelled"
    assert caught.value.message == f"forget: {chain[2].file}: {words}"
    assert {facts["state"] for facts in slurm.jobs.values()} == {"CANCELLED"}
    slurm.refuse["01-shard.sbatch"] = "no"
    with pytest.raises(Refused, match=r"sbatch: error: no\n"):
        send_all(site, chain, {}, lambda line: None)


def test_a_job_whose_answer_was_lost_is_withdrawn_too(slurm: FakeSlurm, site: Site) -> None:
    slurm.loses = "02-train.sbatch"
    with pytest.raises(Refused, match="Socket timed out; jobs 100, sent before it, were cancelled"):
        send_all(site, scripts(site, "shard", "train"), {}, lambda line: None)
    assert {facts["state"] for facts in slurm.jobs.values()} == {"CANCELLED"}


def test_jobs_that_cannot_be_withdrawn_are_named(slurm: FakeSlurm, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(words: list[str]) -> str:
        if "02-train" in words[-1]:
            slurm.away = "Unable to contact slurm controller"
            raise StorageError("sbatch: no answer")
        return "100"

    monkeypatch.setattr(queue, "send", away)
    with pytest.raises(StorageError, match="train: sbatch: no answer; jobs 100 are left, because Slurm does not answer"):
        send_all(site, scripts(site, "shard", "train"), {}, lambda line: None)


@pytest.mark.parametrize("content", ["{", '{"jobs": [{"stage": "shard", "job": "--all", "at": ""}]}'])
def test_notes_that_were_changed_are_refused(site: Site, content: str) -> None:
    (Path(site.home) / "jobs").mkdir(parents=True)
    (Path(site.home) / "jobs" / "submitted.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"submitted\.json"):
        noted(site.home)
