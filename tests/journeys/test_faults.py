"""SIGKILL of a rank in each stage, then the same command: the final weights are those of the undisturbed run."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.chain import CHAIN
from tests.support.command import UNLEARN, environment, unlearn
from tests.support.runs import write_run_file

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
FILES = ("original", "retrained", "forgotten", "unlearned")


def workers(stage: str, folder: Path) -> list[psutil.Process]:
    """Live ranks of a stage that works below `folder`, lowest rank first."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            at_work = words[-2:-1] == [stage] and words[-1].startswith(str(folder)) and "torch.distributed.run" not in words
            if at_work and process.status() != psutil.STATUS_ZOMBIE:
                found.append((int(process.environ().get("RANK", "0")), process))
        except (psutil.Error, OSError, IndexError):
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def started(stage: str, folder: Path) -> bool:
    """Whether a stage is past its start-up: it has mapped torch (or, for the light stages, is alive)."""
    return bool(workers(stage, folder))


def kill_in(stage: str, rank: int, delay: float, run_file: Path) -> tuple[int, str]:
    """Start the run, SIGKILL one rank of `stage` `delay` seconds after it appears; exit code and messages."""
    folder = run_file.parent
    run = subprocess.Popen([*UNLEARN, "run", str(run_file)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while run.poll() is None and not started(stage, folder):
            time.sleep(0.02)
        time.sleep(delay)
        ranks = workers(stage, folder)
        if ranks:
            ranks[min(rank, len(ranks) - 1)].kill()
        _, messages = run.communicate(timeout=120)
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()
    assert not workers(stage, folder), "an orphan rank is still at work"
    return run.returncode, messages.decode()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_weights(run: Path, finished: Path) -> None:
    for name in FILES:
        relative = f"checkpoints/{name}/model.safetensors"
        assert digest(run / relative) == digest(finished / relative), name
    assert not list(run.rglob("*.part"))
    assert unlearn("verify", str(run)).returncode == 0


def test_killed_in_phase_two_it_ends_with_the_same_weights(finished: Path, copy: Path) -> None:
    for name in ("retain", "evaluate", "release"):
        (copy / "receipts" / f"{name}.json").unlink()
    (copy / "checkpoints" / "unlearned" / "model.safetensors").unlink()
    run_file = write_run_file(copy.parents[1], method={"level": "calibrate"})
    code, messages = kill_in("retain", 1, 4.0, run_file)
    assert code in (0, 75), messages
    assert code == 0 or "run the same command again" in messages
    assert unlearn("run", str(run_file)).returncode == 0
    same_weights(copy, finished)


@pytest.mark.services
@pytest.mark.timeout(1200)
def test_killed_in_every_stage_it_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, method={"level": "calibrate"})
    interrupted = []
    for number, spec in enumerate(CHAIN):
        # Light stages last a moment; the others need some seconds before their first step.
        delay = 0.1 if not spec.distributed else 4.0 + 0.7 * (number % 3)
        code, messages = kill_in(spec.name, number % 2, delay, run_file)
        assert code in (0, 75), messages
        assert "Traceback" not in messages
        if code == 75:
            interrupted.append(spec.name)
            assert "run the same command again" in messages
        if code == 0:
            break
    assert len(interrupted) >= 4, interrupted
    last = unlearn("run", str(run_file))
    assert last.returncode == 0, last.stderr
    same_weights(tmp_path / "out" / finished.name, finished)


def test_asked_to_stop_it_saves_and_goes_on(tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, train={"epochs": 400}, engine={"checkpoint_steps": 1000})
    run = subprocess.Popen([*UNLEARN, "run", str(run_file)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    state = None
    try:
        while run.poll() is None and state is None:
            state = next(iter(tmp_path.glob("out/tiny-*/checkpoints/train/last/state.json")), None)
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(run.pid, signal.SIGTERM)
        _, messages = run.communicate(timeout=120)
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()
    assert run.returncode == 75, messages.decode()
    assert b"Traceback" not in messages
    assert state is not None
    assert '"step":0' not in state.read_text(), "the step at which it was asked to leave was saved"
