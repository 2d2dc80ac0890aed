"""A rank that hangs ends itself with its stacks, in Python or in C; the launcher names it, and nothing is left at work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.torchrun import JobSpec
from launch.worker import run_worker
from pipeline.engine.watchdog import beat, watching
from pipeline.errors import Preempted

ROOT = Path(__file__).resolve().parents[3]
ALONE = """
import ctypes, sys, time
from pipeline.engine.watchdog import beat, watching
def asleep_in_python():
    time.sleep(60)
def asleep_in_c_with_the_interpreter_held():
    ctypes.PyDLL(None).sleep(60)
with watching(1.0):
    for _ in range(6):
        time.sleep(0.3)
        beat()
    print("alive", flush=True)
    {hang}()
"""
TWO = """
import sys, time, torch
from pipeline.engine.distributed import join_group, leave_group
from pipeline.engine.watchdog import watching
group = join_group(timeout_seconds=20)
def lost_in_thought():
    time.sleep(60)
with watching(4.0):
    for step in range(10):
        if step == 3 and group.rank == 1:
            lost_in_thought()
        group.sum(torch.ones(1))
"""


@pytest.mark.parametrize("hang", ["asleep_in_python", "asleep_in_c_with_the_interpreter_held"])
def test_without_a_sign_of_life_it_ends_and_says_where(hang: str) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(hang=hang)], capture_output=True, text=True, timeout=30, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert "Timeout (" in done.stderr
    assert f"in {hang}" in done.stderr
    assert time.monotonic() - started < 15


def test_nobody_watches_before_and_after() -> None:
    with watching(0.5):
        beat()
    beat()
    time.sleep(0.6)


@pytest.mark.distributed
def test_of_two_ranks_that_stand_still_the_stacks_are_in_the_log_and_the_end_is_named(tmp_path: Path) -> None:
    script, log = tmp_path / "stage.py", tmp_path / "stage.log"
    script.write_text(TWO)
    agent = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    job = JobSpec(argv=(sys.executable, *agent, "--local-addr=127.0.0.1", str(script)), env=env)
    with pytest.raises(Preempted, match=f"stage train: a rank made no progress; its stacks are in {log}"):
        run_worker(job, what="stage train", log=str(log))
    words = log.read_text()
    assert "in lost_in_thought" in words
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])]
