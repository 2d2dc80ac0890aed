"""Each step stands once in metrics.jsonl, also after a restart; other ranks write nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.engine.checkpoint import TrainState
from pipeline.engine.telemetry import Telemetry


def states(first: int, last: int) -> list[TrainState]:
    return [
        TrainState(step=n, sample_gradients=8 * n, seconds=0.5 * n, measures={"loss": 1.0 / n}) for n in range(first, last + 1)
    ]


def telemetry(folder: Path, rank: int = 0, every: int = 1, busy: Iterable[list[tuple[float, float]]] = ()) -> Telemetry:
    told = iter(busy)
    group = SimpleNamespace(rank=rank, busy=lambda: next(told, [(0.5, 1.0)]), gather=lambda item: [f"host{n}" for n in range(4)])
    return Telemetry(str(folder), "train", every=every, group=group)


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


def test_a_phase_that_was_left_before_its_first_line_goes_on(tmp_path: Path) -> None:
    first = telemetry(tmp_path, every=4)
    first.start(0, 8)
    first.step(states(1, 1)[0])
    first.close()
    assert steps(tmp_path) == []
    again = telemetry(tmp_path, every=4)
    again.start(1, 8)
    for state in states(2, 8):
        again.step(state)
    again.close()
    assert steps(tmp_path) == [4, 8]


def test_lines_are_thinned_but_the_last_step_always_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thin = telemetry(tmp_path, every=4)
    thin.start(0, 70)
    for state in states(1, 70):
        thin.step(state)
    thin.close()
    assert steps(tmp_path) == [*range(4, 70, 4), 70]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "train: step 30 of 70, 16 images/s, 20 s left"


def working(*seconds: float) -> list[tuple[float, float]]:
    return [(0.0, work) for work in seconds]


def test_a_slow_rank_is_named_with_its_host_once_until_that_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slow, even, little = working(1.0, 1.1, 2.0, 1.0), working(1.0, 1.1, 1.2, 1.0), working(0.01, 0.01, 0.05, 0.01)
    told = telemetry(tmp_path, busy=[even, slow, slow, little, even, slow])
    told.start(0, 6)
    with caplog.at_level(logging.WARNING, logger="unlearn"):
        for state in states(1, 6):
            told.step(state)
    told.close()
    named = [record.getMessage() for record in caplog.records]
    assert named == ["train: rank 2 on host2 holds the others up, it computes slowly: 2.0 times the work of the others"] * 2
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "train.jsonl").read_text().splitlines()]
    assert (lines[1]["slowest_rank"], lines[1]["slowest_ratio"]) == (2, 2.0)


def test_a_rank_that_waits_for_its_images_is_seen_where_the_forward_pass_waits_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = telemetry(tmp_path, busy=[[(0.1, 1.0), (0.8, 1.0), (0.1, 1.0)]])  # as under ZeRO 3
    told.start(0, 1)
    with caplog.at_level(logging.WARNING, logger="unlearn"):
        told.step(states(1, 1)[0])
    told.close()
    assert "rank 1 on host1 holds the others up, it waits for its images: 3.3 times" in caplog.text


def test_of_two_ranks_the_faster_one_is_the_measure(tmp_path: Path) -> None:
    told = telemetry(tmp_path, busy=[working(3.0, 1.0)])
    told.start(0, 1)
    told.step(states(1, 1)[0])
    told.close()
    assert json.loads((tmp_path / "metrics" / "train.jsonl").read_text())["slowest_ratio"] == 3.0


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    quiet = telemetry(tmp_path, rank=1)
    quiet.start(0, 2)
    for state in states(1, 2):
        quiet.step(state)
    quiet.close()
    assert not list(tmp_path.iterdir())
