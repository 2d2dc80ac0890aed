"""Each step stands once in metrics.jsonl, also after a restart; other ranks write nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.engine.checkpoint import TrainState
from pipeline.engine.telemetry import Telemetry


def states(first: int, last: int) -> list[TrainState]:
    return [
        TrainState(step=n, sample_gradients=8 * n, seconds=0.5 * n, measures={"loss": 1.0 / n}) for n in range(first, last + 1)
    ]


def telemetry(folder: Path, rank: int = 0, every: int = 1) -> Telemetry:
    return Telemetry(str(folder), "train", every=every, group=SimpleNamespace(rank=rank))


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics" / "train.jsonl").read_text().splitlines()]


def test_steps_that_run_again_after_a_restart_stand_once(tmp_path: Path) -> None:
    first = telemetry(tmp_path)
    first.start(0, 6)
    for state in states(1, 5):
        first.step(state)
    first.close()
    again = telemetry(tmp_path)
    again.start(3, 6)
    for state in states(4, 6):
        again.step(state)
    again.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "train.jsonl").read_text().splitlines()]
    assert lines[1]["images_per_second"] == pytest.approx(16.0)
    assert lines[1]["loss"] == 0.5
    assert list((tmp_path / "tensorboard").rglob("events*"))


def test_lines_are_thinned_but_the_last_step_always_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thin = telemetry(tmp_path, every=4)
    thin.start(0, 70)
    for state in states(1, 70):
        thin.step(state)
    thin.close()
    assert steps(tmp_path) == [*range(4, 70, 4), 70]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "train: step 30 of 70, 16 images/s, 20 s left"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    quiet = telemetry(tmp_path, rank=1)
    quiet.start(0, 2)
    for state in states(1, 2):
        quiet.step(state)
    quiet.close()
    assert not list(tmp_path.iterdir())
