"""SIGKILL of a rank in each stage, then the same command: the final weights are those of the undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipeline.chain import chain_for
from pipeline.config import resolve
from tests.support.command import UNLEARN, environment, unlearn
from tests.support.distributed import run_distributed
from tests.support.runs import run_stages, write_run_file

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
PATIENCE = {"shard": 0.0, "evaluate": 2.0, "release": 0.0}
"""Seconds of life after which a rank is killed in stages that write no checkpoint; the others are killed at one."""
FILES = ("original", "retrained", "forgotten", "unlearned")


def workers(stage: str, folder: Path) -> list[psutil.Process]:
    """Live ranks of a stage that works below `folder`, lowest rank first."""
    found = []
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())  # a forked process has one word for all
            at_work = f"pipeline {stage} {folder}" in title and "torch.distributed.run" not in title
            if at_work and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return sorted(found, key=lambda process: process.pid)  # an agent starts them in the order of their numbers


def kill_in(stage: str, rank: int, run_file: Path) -> tuple[bool, str]:
    """Start the run and SIGKILL one rank of `stage` at work: after its first checkpoint where it writes some.

    Returns whether a rank was hit, and the run's messages. A stage that ends before it is hit has the command killed.
    """
    folder, run = run_file.parent, _start(run_file)
    first_seen, ranks = 0.0, list[psutil.Process]()
    try:
        while run.poll() is None and not list(folder.glob(f"out/tiny-*/receipts/{stage}.json")):
            # Looking for processes takes longer than a checkpoint may live.
            ranks = [process for process in ranks if process.is_running()] or workers(stage, folder)
            first_seen = first_seen or (time.monotonic() if ranks else 0.0)
            saved = list(folder.glob(f"out/tiny-*/checkpoints/{stage}/last/state.json"))
            if ranks and (saved or time.monotonic() - first_seen > PATIENCE.get(stage, 60.0)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    ranks[min(rank, len(ranks) - 1)].kill()
                _, messages = run.communicate(timeout=120)
                assert not workers(stage, folder), "an orphan rank is still at work"
                return run.returncode == 75, messages.decode()
            time.sleep(0.002)
    finally:
        if run.poll() is None:
            run.kill()
        run.communicate()
    return False, ""


def _start(run_file: Path) -> subprocess.Popen[bytes]:
    command = [*UNLEARN, "run", str(run_file)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_weights(run: Path, finished: Path) -> None:
    for name in FILES:
        relative = f"checkpoints/{name}/model.safetensors"
        assert digest(run / relative) == digest(finished / relative), name
    assert not list(run.rglob("*.part"))


def test_killed_in_phase_two_it_ends_with_the_same_weights(finished: Path, copy: Path) -> None:
    for name in ("retain", "evaluate", "release"):
        (copy / "receipts" / f"{name}.json").unlink()
    (copy / "checkpoints" / "unlearned" / "model.safetensors").unlink()
    run_file = write_run_file(copy.parents[1], method={"level": "calibrate"}, launch={"threads": 1})
    hit, messages = kill_in("retain", 1, run_file)
    assert hit, messages
    assert "run the same command again" in messages
    run_distributed(run_stages, 2, str(copy), "retain")  # the tests marked `services` give the same command again
    same_weights(copy, finished)


@pytest.mark.services
@pytest.mark.timeout(1200)
def test_killed_in_every_stage_it_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, method={"level": "calibrate"}, launch={"threads": 1})
    hits = []
    for number, spec in enumerate(chain_for(resolve(str(run_file)))):
        hit, messages = kill_in(spec.name, number % 2, run_file)
        assert "Traceback" not in messages
        if hit:
            hits.append(spec.name)
            assert "run the same command again" in messages
    assert {"train", "retrain", "forget", "retain"} <= set(hits), hits
    last = unlearn("run", str(run_file))
    assert last.returncode == 0, last.stderr
    same_weights(tmp_path / "out" / finished.name, finished)
    assert unlearn("verify", str(tmp_path / "out" / finished.name)).returncode == 0


def test_asked_to_stop_it_saves_and_goes_on(tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, train={"epochs": 400}, engine={"checkpoint_steps": 1000})
    run = _start(run_file)
    state = None
    try:
        while run.poll() is None and state is None:
            state = next(iter(tmp_path.glob("out/tiny-*/checkpoints/train/last/state.json")), None)
            time.sleep(0.05)
        time.sleep(1.0)
        for number in (signal.SIGTERM, signal.SIGUSR1) * 20:  # batch systems repeat themselves, and must not cost the state
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, number)
            time.sleep(0.01)
        _, messages = run.communicate(timeout=120)
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()
    assert run.returncode == 75, messages.decode()
    assert b"Traceback" not in messages
    assert state is not None
    assert '"step":0' not in state.read_text(), "the step at which it was asked to leave was saved"
