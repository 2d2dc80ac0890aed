"""A run through a real Slurm of two nodes: the chain, a warning, a dead node, a stage that fails, a job that is cancelled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import slurm as support
from tests.support.command import unlearn
from tests.support.cuts import write_tars
from tests.support.runs import write_run_file
from tests.support.slurm import Slurm

pytestmark = pytest.mark.services

STAGES = ["shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release"]
CLUSTER = {"nodes": 2, "lease_seconds": 5.0, "slurm": {"minutes": 30, "grace_seconds": 30}}
LONG = {"train": {"epochs": 30}, "engine": {"checkpoint_steps": 20, "log_steps": 1}}
"""240 steps: long enough to be interrupted twice."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing := support.missing_slurm():
        pytest.skip(missing)
    with support.running(tmp_path_factory.mktemp("slurm")) as found, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SLURM_CONF", str(found.config))
        yield found


def files(folder: Path, *, cluster: dict[str, Any] | None = None, **over: Any) -> list[str]:
    """The words of a submission of a tiny run, whose file and cluster's file lie in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "cluster.yaml").write_text(yaml.safe_dump({**CLUSTER, **(cluster or {})}))
    return [str(write_run_file(folder, **over)), "--cluster", str(folder / "cluster.yaml")]


def submit(words: list[str], *more: str) -> dict[str, Any]:
    """What `unlearn submit --json` answers."""
    done = unlearn("submit", *words, *more, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def status(folder: str) -> dict[str, dict[str, Any]]:
    """What `unlearn status --json` says of each stage."""
    done = unlearn("status", folder, "--json")
    assert done.returncode == 0, done.stderr
    return {job["stage"]: job for job in json.loads(done.stdout)["jobs"]}


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_the_whole_chain_over_two_nodes(slurm: Slurm, tmp_path: Path) -> None:
    words = files(tmp_path / 'it\'s 100%j "x"')
    shown = json.loads(unlearn("submit", *words, "--dry-run", "--json").stdout)
    sent = submit(words)
    assert list(sent["sent"]) == STAGES
    again = submit(words)
    assert (again["sent"], again["active"]) == ({}, sent["sent"])
    for job in shown["jobs"]:
        assert Path(job["file"]).read_text() == job["text"]
        assert slurm.client("scontrol", "write", "batch_script", sent["sent"][job["stage"]], "-").strip() == job["text"].strip()
    ended = slurm.wait(sent["sent"]["release"], "COMPLETED", "FAILED", "CANCELLED", seconds=200)
    found = status(sent["folder"])
    assert ended["JobState"] == "COMPLETED", found
    assert {(stage, job["state"], job["receipt"]) for stage, job in found.items()} == {
        (stage, "COMPLETED", "current") for stage in STAGES
    }
    for stage in STAGES:
        assert Path(found[stage]["log"]).exists(), stage
    assert json.loads((Path(sent["folder"]) / "receipts" / "train.json").read_text())["receipt"]["world_size"] == 2
    assert "nothing to do: all 8 stages are up to date" in unlearn("run", words[0]).stdout
    assert unlearn("verify", sent["folder"]).returncode == 0
    assert submit(words)["sent"] == {}


def test_a_warning_and_a_dead_node_cost_no_step(slurm: Slurm, tmp_path: Path) -> None:
    sent = submit(files(tmp_path / "run", **LONG))
    train, folder = sent["sent"]["train"], Path(sent["folder"])
    metrics = folder / "metrics" / "train.jsonl"

    def steps() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    until(lambda: steps() > 25)
    slurm.client("scancel", "--signal=USR1", train)
    assert slurm.wait(train, "PENDING")["Restarts"] == "1"
    saved = steps()
    assert saved >= 25
    slurm.wait(train, "RUNNING")
    log = folder / "logs" / "slurm-train.log"
    assert "ended with 75: queued again" in log.read_text()
    seen: list[int] = []
    until(lambda: bool(seen.append(steps()) or steps() > saved + 25))
    assert min(seen) >= saved, "it went on where it had saved"

    slurm.kill_node("node2")
    assert slurm.wait(train, "PENDING")["Restarts"] == "2"
    slurm.start_node("node2")
    assert slurm.wait(train, "COMPLETED", "FAILED", seconds=150)["JobState"] == "COMPLETED", log.read_text()
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 241))
    found = status(sent["folder"])
    assert (found["train"]["restarts"], found["train"]["receipt"]) == (2, "current")
    gone = json.loads(unlearn("cancel", sent["folder"], "--json").stdout)["cancelled"]
    assert "train" not in gone and "release" in gone


def test_a_stage_that_fails_ends_the_chain(slurm: Slurm, tmp_path: Path) -> None:
    words = files(tmp_path / "run", requests=[{"request_id": "r1", "label": "no such label"}])
    sent = submit(words)
    slurm.wait(sent["sent"]["release"], "CANCELLED")
    found = status(sent["folder"])
    assert (found["shard"]["state"], found["shard"]["reason"], found["shard"]["receipt"]) == ("FAILED", "exit code 2", "none")
    assert "no such label" in Path(found["shard"]["log"]).read_text()
    for stage in STAGES[1:]:
        assert (found[stage]["state"], found[stage]["reason"]) == ("CANCELLED", "DependencyNeverSatisfied")
    table = unlearn("status", sent["folder"]).stdout
    assert "DependencyNeverSatisfied" in table and f"shard: see {found['shard']['log']}" in table


def test_a_job_that_is_cancelled_stays_so(slurm: Slurm, tmp_path: Path) -> None:
    """Its processes end as those of a job that wants to be queued again."""
    words = files(tmp_path / "run")
    sent = submit(words)
    log = Path(sent["folder"]) / "logs" / "slurm-shard.log"
    until(lambda: log.exists() and "shard: " in log.read_text())
    gone = json.loads(unlearn("cancel", sent["folder"], "--json").stdout)["cancelled"]
    assert list(gone) == STAGES
    until(lambda: not slurm.client("squeue", "-h", f"--jobs={','.join(gone.values())}", check=False))
    found = status(sent["folder"])
    assert {(job["state"], job["restarts"]) for job in found.values()} == {("CANCELLED", 0)}
    assert "nothing to cancel" in unlearn("cancel", sent["folder"]).stdout


def test_a_job_that_slurm_refuses_leaves_none(slurm: Slurm, tmp_path: Path) -> None:
    words = files(tmp_path / "run", cluster={"stages": {"evaluate": {"nodes": 3}}})
    done = unlearn("submit", *words)
    assert done.returncode == 2
    assert "error: evaluate: " in done.stderr and "Node count specification invalid" in done.stderr, done.stderr
    assert "sent before it, were cancelled" in done.stderr
    found = status(next(str(path.parent) for path in tmp_path.rglob("config.yaml")))
    assert [found[stage]["state"] for stage in STAGES] == ["CANCELLED"] * 6 + ["not submitted"] * 2
    (tmp_path / "cluster.yaml").write_text("slurm: {partition: nowhere}")
    refused = unlearn("submit", words[0], "--cluster", str(tmp_path / "cluster.yaml"))
    assert refused.returncode == 2
    assert "error: shard: " in refused.stderr and "invalid partition specified: nowhere" in refused.stderr


def test_an_index_is_built_by_an_array(slurm: Slurm, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    words = [f"{tmp_path}/tars/train-*.tar", "classes=[zero, one, two]", "--tasks", "2", "--out", str(tmp_path / "out")]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    done = unlearn("submit-index", *words, "--cluster", str(tmp_path / "cluster.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert slurm.wait(sent["sent"]["index"], "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED"
    found = status(sent["folder"])
    assert (found["parts"]["state"], found["parts"]["reason"]) == ("COMPLETED", "2 of 2 tasks")
    logs = Path(sent["logs"])
    for name in ("parts-0", "parts-1"):
        assert "this task's parts of the index are done" in (logs / f"slurm-{name}.log").read_text()
    assert "14 training and 0 unseen images of 3 classes in 4 shards" in (logs / "slurm-index.log").read_text()
