"""The words that change while a run goes on, and their JSON."""

from __future__ import annotations

import json
from pathlib import Path

from launch.web.progress import as_json, texts_of
from launch.web.runs import progress
from tests.launch.web.conftest import Work
from tests.support.ledger_page import Clock, write_run


def test_a_run_at_work_is_told_by_stage_and_step(tmp_path: Path) -> None:
    write_run(tmp_path / "demo-1", "demo", done=5, seed=0, clock=Clock())
    run = progress("demo-1", str(tmp_path / "demo-1"))
    texts = texts_of(run)
    assert texts["title"] == "In stage 6 of 8: retain, step 297 of 480"
    assert texts["lede"].startswith("101 images a second; about 3 min") and texts["stage.retain.state"] == "running"
    assert (
        texts["stage.train.gradients"] == "537,600"
        and texts["stage.train.time"] == "1 h 30 min"
        and texts["stage.release.far"] == ""
    )
    told = json.loads(json.dumps(as_json(run)))
    assert told["values"] == {"stage.retain.step": 297} and not told["done"]
    assert set(told["points"]) == {f"curve.{curve['id']}.points" for curve in run["curves"]}


def test_silent_finished_and_strange_runs_say_so(work: Work, tmp_path: Path) -> None:
    done = progress(work.runs[0], str(work.folder / "runs" / work.runs[0]))
    assert texts_of(done)["title"] == "The model treats the forgotten images like ones it never saw." and as_json(done)["done"]
    silent = {
        **done,
        "state": "silent",
        "now": {"name": "train", "title": "t", "quiet": 7200.0, "step": 1, "steps": 2},
        "done": 1,
    }
    assert texts_of(silent)["title"] == "Stopped in stage 2 of 8: train, step 1 of 2"
    assert texts_of(silent)["lede"] == "No sign of life for 2 h 0 min."
    strange = {**done, "state": "begun", "now": None, "of": 0, "done": 0, "stages": [], "curves": [], "report": {}}
    assert texts_of(strange)["title"] == "A run of another version"
