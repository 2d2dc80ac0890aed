"""Run folders: how far, how fast, what it cost; damaged and half-written files end nothing, and a log's texts are not shown."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from launch.web.runs import QUIET_SECONDS, cost_of, grids, progress, report_of, run_folders, summary
from pipeline.storage import publish_bytes
from tests.launch.web.conftest import Work
from tests.support.ledger_page import Clock, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run in its sixth stage."""
    write_run(tmp_path / "demo-1", "demo", done=5, seed=0, clock=Clock())
    return tmp_path / "demo-1"


def test_runs_are_those_with_a_configuration(work: Work, tmp_path: Path) -> None:
    found = run_folders(str(work.folder / "runs"))
    assert sorted(found) == sorted(work.runs)
    (tmp_path / "other").mkdir()
    assert run_folders(str(tmp_path)) == {} == run_folders(str(tmp_path / "nowhere"))
    elsewhere = run_folders(str(tmp_path), {"x": str(work.folder / "runs" / work.runs[0]), "gone": str(tmp_path / "gone")})
    assert list(elsewhere) == ["x"]
    seen = set[str]()
    assert run_folders(str(work.folder / "runs"), seen=seen) == found and seen == set(found.values())


def test_a_run_at_work_says_stage_step_and_losses(folder: Path) -> None:
    found = progress("demo-1", str(folder))
    assert (found["state"], found["done"], found["of"], found["now"]["name"]) == ("running", 5, 8, "retain")
    assert (found["now"]["step"], found["now"]["steps"]) == (297, 480) and found["now"]["left"] > 0
    assert [row["state"] for row in found["stages"]] == ["done"] * 5 + ["running"] + ["not yet"] * 2
    ids = [curve["id"] for curve in found["curves"]]
    assert ids == [
        "train.loss",
        "retrain.loss",
        "calibrate.loss",
        "forget.forget_loss_0",
        "forget.forget_loss_1",
        "retain.retain_loss",
    ]
    curve = found["curves"][3]
    assert curve["title"] == "forget loss, group 1" and curve["low"] <= curve["last"] <= curve["high"]
    for pair in curve["points"].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 300 and 0 <= y <= 84


def test_a_log_without_news_is_silent(folder: Path) -> None:
    log = folder / "logs" / "retain.log"
    before = time.time() - QUIET_SECONDS - 60
    os.utime(log, (before, before))
    found = progress("demo-1", str(folder))
    assert found["state"] == "silent" and found["now"]["quiet"] > QUIET_SECONDS and "step" in found["now"]


def test_nothing_of_a_log_is_shown_but_its_figures(folder: Path) -> None:
    log = folder / "logs" / "retain.log"
    log.write_text("key-marker\n" * 20_000 + log.read_text() + "retain: step x of key-marker, 1 images/s, 2 s left\n")
    found = progress("demo-1", str(folder))
    assert found["now"]["step"] == 297 and "key-marker" not in json.dumps(found)


def test_damaged_files_are_named_or_passed_over(folder: Path) -> None:
    (folder / "receipts" / "train.json").write_text("{}")
    (folder / "metrics" / "forget.jsonl").write_text(
        'no json\n[1]\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo'
    )
    (folder / "report.json").write_text('{"half": ')
    found = progress("demo-1", str(folder))
    assert found["stages"][1]["state"] == "receipt damaged" and found["report"] == {}
    assert not [curve for curve in found["curves"] if curve["stage"] == "forget"]
    (folder / "config.yaml").write_text("of: another version\n")
    other = progress("demo-1", str(folder))
    assert other["stages"] == [] and other["state"] == "begun"


def test_a_finished_run_has_report_verdict_and_cost(work: Work) -> None:
    place = str(work.folder / "runs" / work.runs[0])
    found = summary(work.runs[0], place)
    assert found["state"] == "done" and found["verdict"] == "passed" and found["page"]
    assert 0.15 < found["cost"]["share"] < 0.25 and found["cost"] == cost_of(report_of(place), [])
    assert grids(place) == ["grid_0.png"]


def test_cost_comes_from_receipts_while_there_is_no_report_and_is_no_share(folder: Path) -> None:
    found = summary("demo-1", str(folder))["cost"]
    assert found["sample_gradients"] == (210 + 96) * 128 and found["retrain_sample_gradients"] == 4180 * 128
    assert found["share"] is None and cost_of({}, [])["sample_gradients"] is None
    (folder / "report.json").write_text(
        '{"cost": {"share": "soon", "seconds": true}, "headline": 5, "verdict": [], "summary": {"a": 1}}'
    )
    found = summary("demo-1", str(folder))
    assert (
        found["cost"]["share"] is found["cost"]["seconds"] is None
        and found["verdict"] == ""
        and report_of(str(folder))["headline"] == []
    )


def test_only_grids_are_pictures(folder: Path) -> None:
    (folder / "evaluation").mkdir()
    for name in ("grid_0.png", "grid_retain.png", "grid_x.png", "errors.npz", "grid_0.png.part"):
        (folder / "evaluation" / name).touch()
    assert grids(str(folder)) == ["grid_0.png", "grid_retain.png"]
    shutil.rmtree(folder / "evaluation")
    assert grids(str(folder)) == []


def test_runs_lie_on_any_storage(folder: Path) -> None:
    home = f"memory://{folder.name}-{id(folder)}"
    for path in folder.rglob("*"):
        if path.is_file():
            publish_bytes(f"{home}/demo-1/{path.relative_to(folder)}", path.read_bytes())
    ((name, uri),) = run_folders(home).items()
    assert name == "demo-1" and uri.startswith("memory://")
    here, there = progress(name, str(folder)), progress(name, uri)
    assert {**there, "folder": ""} == {**here, "folder": ""} and there["now"]["step"] == 297
