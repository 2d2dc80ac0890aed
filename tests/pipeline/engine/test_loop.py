"""The loop with a counting backend: order of acts, refusal before the step, rollback, resume, a clean leave."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.engine.checkpoint import Checkpoints, Files, TrainState
from pipeline.engine.guard import Guard, Verdict
from pipeline.engine.loop import fit
from pipeline.errors import Preempted


@dataclasses.dataclass
class Losses:
    total: Tensor
    measures: Mapping[str, float]
    samples: int = 4


class Backend:
    """Its weight is the number of steps taken; `bad_at` gives a non-finite gradient there."""

    def __init__(self, bad_at: int = -1) -> None:
        self.weight, self.bad_at, self.model = 0, bad_at, None
        self.tally: dict[str, float] = {}

    def recall(self, tally: Mapping[str, float]) -> None:
        self.tally = dict(tally)

    def backward(self, loss: Tensor) -> Tensor:
        return torch.tensor(float(self.weight == self.bad_at))

    def step(self, step: int) -> None:
        assert step == self.weight
        self.weight += 1

    def save(self, folder: str, *, copy: bool) -> Callable[[], Files]:
        weight = self.weight

        def write() -> Files:
            Path(folder, "weight").write_text(str(weight))
            return Files(["weight"], [])

        return write

    def load(self, folder: str) -> None:
        self.weight = int(Path(folder, "weight").read_text())


class Feed:
    def __init__(self) -> None:
        self.used: list[int] = []

    def batch(self, step: int) -> int:
        return step

    def count(self, batch: int) -> None:
        self.used.append(batch)

    def totals(self, group: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
        return (len(self.used),), ("00",)

    def restore(self, seen: tuple[int, ...], digests: tuple[str, ...], rank: int) -> None:
        self.used = list(range(seen[0]))


class Group(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(
            rank=0, world_size=1, leaving=False, barrier=lambda: None, sum=lambda values: values.double(), mark=lambda: 0.0
        )
        self.fed = lambda: None


def run(folder: Path, backend: Backend, feed: Feed, group: Group | None = None, **changes: Any) -> tuple[TrainState, str]:
    group = group or Group()
    settings: dict[str, Any] = {
        "steps": 10,
        "save_every": 3,
        "background": True,
        "guard": Guard(),
        "checkpoints": Checkpoints(str(folder), "p", config_digest="d", group=group),
        "telemetry": SimpleNamespace(start=lambda *a: None, step=lambda *a: None, flush=lambda: None),
        "group": group,
    }
    loss = changes.pop("loss", lambda model, batch: Losses(torch.zeros(()), {"loss": float(batch)}))
    return fit(backend, feed, loss, **{**settings, **changes})


def test_a_whole_phase_counts_everything_once(tmp_path: Path) -> None:
    backend, feed = Backend(), Feed()
    state, reason = run(tmp_path, backend, feed)
    assert (reason, state.step, state.sample_gradients, state.seen, backend.weight) == ("budget", 10, 40, (10,), 10)
    assert feed.used == list(range(10))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_is_refused_before_the_weights_move_and_the_last_good_state_returns(tmp_path: Path, kind: str) -> None:
    backend, feed = Backend(bad_at=5 if kind == "gradient" else -1), Feed()
    worse = (lambda m, b: Losses(torch.zeros(()), {"loss": float("nan") if b == 5 else 1.0})) if kind == "loss" else None
    state, reason = run(tmp_path, backend, feed, **({"loss": worse} if worse else {}))
    assert reason == f"non-finite {kind}"
    assert (state.step, backend.weight, state.seen) == (3, 3, (3,))
    assert state.sample_gradients == 20, "what the abandoned steps cost stays on the bill"


def test_a_probe_stops_here_or_goes_back(tmp_path: Path) -> None:
    verdicts = {4: Verdict(act="go"), 6: Verdict(act="stop", reason="enough")}
    state, reason = run(tmp_path / "a", Backend(), Feed(), guard=Guard(probe=verdicts.get))
    assert (state.step, reason) == (6, "enough")
    backend = Backend()
    verdicts = {4: Verdict(act="go"), 5: Verdict(act="back", reason="floor")}
    state, reason = run(tmp_path / "b", backend, Feed(), guard=Guard(probe=verdicts.get), save_every=100)
    assert (state.step, backend.weight, reason) == (4, 4, "floor")


def test_a_phase_that_was_killed_after_its_stop_stops_there_again(tmp_path: Path) -> None:
    """Before its weights are published: on the way back it must not step past the state that was found good."""
    guard = Guard(probe={4: Verdict(act="go"), 6: Verdict(act="stop", reason="enough")}.get)
    first = run(tmp_path, Backend(), Feed(), guard=guard, background=False)
    backend, feed = Backend(), Feed()
    again = run(tmp_path, backend, feed, guard=guard)
    assert [(state.step, state.seen, reason) for state, reason in (first, again)] == [(6, (6,), "enough")] * 2
    assert (backend.weight, feed.used) == (6, list(range(6)))


def test_steps_go_on_while_a_checkpoint_is_written_and_it_is_put_in_place_at_the_next_step_that_finds_it_written(
    tmp_path: Path,
) -> None:
    released, seen = threading.Event(), []

    class Slow(Backend):
        def save(self, folder: str, *, copy: bool) -> Callable[[], Files]:
            write, late = super().save(folder, copy=copy), self.weight == 3
            assert copy
            return lambda: (released.wait(20) if late else None, write())[1]

    points = Checkpoints(str(tmp_path), "p", config_digest="d", group=Group())  # type: ignore[arg-type]

    def loss(model: Any, batch: int) -> Losses:
        saved = points.read()
        seen.append(saved.state.step if saved else None)
        if batch == 5:
            released.set()
            while not points.written:
                time.sleep(0.01)
        return Losses(torch.zeros(()), {"loss": 0.0})

    run(tmp_path, Slow(), Feed(), loss=loss, checkpoints=points, steps=8, save_every=3)
    assert seen[4:6] == [0, 0], "steps 4 and 5 were taken while that of step 3 was being written"
    assert seen[6] == 3, "it was put in place with step 5"
    points.settle()
    last = points.read()
    assert last is not None and last.state.step == 6


def test_asked_to_leave_it_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    group, feed = Group(), Feed()

    def leave_at_five(model: Any, batch: int) -> Losses:
        group.leaving = batch == 4
        return Losses(torch.zeros(()), {"loss": 0.0})

    with pytest.raises(Preempted, match="step 5"):
        run(tmp_path, Backend(), feed, group, loss=leave_at_five)
    backend, feed = Backend(), Feed()
    state, reason = run(tmp_path, backend, feed)
    assert (reason, state.step, state.sample_gradients, backend.weight) == ("budget", 10, 40, 10)
    assert feed.used == list(range(10))


STORM = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from pipeline import __main__ as worker
from pipeline.engine.distributed import group
from tests.pipeline.engine.test_loop import Backend, Feed, run
class Slow(Backend):
    def save(self, folder, copy):
        if self.weight:
            print("saving", flush=True)
        time.sleep(0.5)
        return super().save(folder, copy=copy)
def steps(name, folder, rank, world_size):
    print("working", flush=True)
    feed = Feed()
    feed.batch = lambda step: (time.sleep(0.01), step)[1]
    run(Path(folder), Slow(), feed, group(), steps=10**6, save_every=10**6)
launch, engine = SimpleNamespace(timeout_seconds=60), SimpleNamespace(compile=False)
worker.read_run = lambda folder: SimpleNamespace(launch=launch, engine=engine)
worker.stage = lambda name, config: SimpleNamespace(distributed=True)
worker.run_stage = steps
sys.exit(worker.main(["train", sys.argv[1]]))
"""


def test_a_storm_of_signals_while_it_saves_gives_one_whole_save(tmp_path: Path) -> None:
    env = {**os.environ, "UNLEARN_ERROR_FILE": str(tmp_path / "errors"), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", STORM, str(tmp_path / "run")]
    with subprocess.Popen(command, env=env, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "working\n"
        time.sleep(1.0)
        while rank.poll() is None:
            rank.send_signal(signal.SIGTERM)
            rank.send_signal(signal.SIGUSR1)
            time.sleep(0.02)
        assert rank.stdout.read() == "saving\n", "once"
    assert rank.returncode == 75
    last = json.loads((tmp_path / "errors").read_text().splitlines()[-1])
    assert (last["kind"], last["final"]) == ("Preempted", True)
    backend = Backend()
    state = Checkpoints(str(tmp_path / "run"), "p", config_digest="d", group=Group()).restore(backend)
    assert state is not None
    assert state.step == backend.weight > 0
