"""From a request to a report, on two ranks: what a user sees, what the files say, and that a second run does nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch

from launch.local import stages_to_run
from pipeline.config import resolve
from pipeline.models.autoencoder import Config, build
from tests.support.command import unlearn
from tests.support.runs import write_run_file

pytestmark = pytest.mark.distributed


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_run_folder_holds_what_it_promises(finished: Path) -> None:
    stages = {path.stem for path in (finished / "receipts").iterdir()}
    assert stages == {"shard", "train", "retrain", "calibrate", "forget", "retain", "evaluate", "release"}
    report = json.loads((finished / "report.json").read_text())
    assert len(report["table"]) == 6
    assert any("no certificate" in line for line in report["headline"])
    page = (finished / "report.html").read_text()
    assert "no certificate" in page
    assert not re.search(r"(src|href)=[\"']?https?://", page)
    lines = [json.loads(line) for line in (finished / "metrics" / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert all(line["loss"] > 0 for line in lines)
    assert list((finished / "tensorboard").rglob("events*"))
    assert "shared-memory op is switched off" in (finished / "logs" / "forget.log").read_text()
    assert not list(finished.rglob("*.part"))
    model = build(Config(image_size=8, width=8, latent=16))
    model.load_state_dict(safetensors.torch.load((finished / "weights" / "model.safetensors").read_bytes()))


def test_no_key_and_no_subject_leaves_the_private_folder(finished: Path) -> None:
    for path in finished.rglob("*"):
        if path.is_file() and "shards" not in path.relative_to(finished).parts:
            content = path.read_bytes()
            for secret in (b"train-000002", b"train-000006"):
                assert secret not in content, path


def test_a_second_run_does_nothing_and_says_so(finished: Path) -> None:
    before = files(finished)
    run_file = finished.parents[1] / "run.yaml"
    again = unlearn("run", str(run_file))
    assert again.returncode == 0
    assert "nothing to do: all 8 stages are up to date" in again.stdout
    assert "report.html" in again.stdout
    assert files(finished) == before


def test_only_what_a_change_concerns_runs_again_and_without_a_reference_nothing_is_compared(copy: Path) -> None:
    changes = {"method": {"level": "calibrate"}, "output": str(copy.parent), "evaluation": {"bootstrap": 60}}
    config = resolve(str(write_run_file(copy.parents[1], **changes)))
    assert [spec.name for spec in stages_to_run(config, str(copy))] == ["evaluate", "release"]
    write_run_file(copy.parents[1], **changes, reference="none", launch={"ranks": 1})
    done = unlearn("run", str(copy.parents[1] / "run.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ran"] == ["evaluate", "release"]
    assert "not computed" in (copy / "report.html").read_text()
    report = json.loads((copy / "report.json").read_text())
    assert all(row["retrained"] is None or row["retrained"]["error"] is None for row in report["table"])


def test_plan_and_verify_of_a_finished_run(finished: Path) -> None:
    plan = unlearn("plan", str(finished.parents[1] / "run.yaml"), "--json")
    assert plan.returncode == 0, plan.stderr
    verified = unlearn("verify", str(finished))
    assert verified.returncode == 0, verified.stderr
    assert "intact" in verified.stdout


def test_a_run_of_another_architecture_is_refused_by_name(finished: Path, tmp_path: Path) -> None:
    weights = str(finished / "checkpoints" / "original" / "model.safetensors")
    good = unlearn("check", str(write_run_file(tmp_path, original=weights)))
    assert good.returncode == 0, good.stderr
    wrong = unlearn("run", str(write_run_file(tmp_path, original=weights, model={"latent": 24}, launch={"ranks": 1})))
    assert wrong.returncode == 3
    assert "weights of another architecture" in wrong.stderr
    assert "Traceback" not in wrong.stderr
