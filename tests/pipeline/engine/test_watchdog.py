"""A rank that hangs ends itself with its stacks, in Python or in C; the launcher names it, and nothing is left at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.torchrun import JobSpec
from launch.worker import run_worker
from pipeline.engine.watchdog import beat, margin, rest, watching
from pipeline.errors import Preempted

ROOT = Path(__file__).resolve().parents[3]
ALONE = """
import ctypes, sys, time
from pipeline.engine.watchdog import beat, rest, watching
def asleep_in_python():
    time.sleep(60)
def asleep_in_c_with_the_interpreter_held():
    ctypes.PyDLL(None).sleep(60)
def a_while():
    for step in range(5):
        time.sleep(0.6)
        beat(f"after step {step}")
    rest()
    time.sleep(2.8)
    beat()
    print("alive", flush=True)
with watching(0.5):
"""
TWO = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import torch
from pipeline import __main__ as worker
from pipeline.engine.distributed import group
from pipeline.engine.telemetry import Telemetry
from tests.pipeline.engine.test_loop import Backend, Feed, Losses, run
def lost_in_thought():
    time.sleep(60)
def steps(name, folder, rank, world_size):
    def loss(model, batch):
        if (batch, rank) == (3, 1):
            lost_in_thought()
        return Losses(torch.zeros(()), {"loss": float(group().sum(torch.ones(1)))})
    none = SimpleNamespace(restore=lambda backend: None, save=lambda backend, state, wait: None, written=True, pending=False)
    telemetry = Telemetry(folder, name, every=1, group=group())
    run(Path(folder), Backend(), Feed(), group(), loss=loss, checkpoints=none, telemetry=telemetry)
launch, engine = SimpleNamespace(timeout_seconds=3), SimpleNamespace(compile=False)
worker.read_run = lambda folder: SimpleNamespace(launch=launch, engine=engine)
worker.stage = lambda name, config: SimpleNamespace(distributed=True)
worker.run_stage = steps
sys.exit(worker.main(["train", sys.argv[1]]))
"""


def alone(*acts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**{name: value for name, value in os.environ.items() if name != "UNLEARN_ERROR_FILE"}, **environment}
    command = [sys.executable, "-c", ALONE + "".join(f"    {act}()\n" for act in acts)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=env, check=False)


def test_without_a_sign_of_life_it_ends_and_says_where() -> None:
    done = alone("asleep_in_python")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Timeout (" in done.stderr
    assert "in asleep_in_python" in done.stderr


def test_it_leaves_a_file_for_the_launcher_also_while_c_holds_the_interpreter(tmp_path: Path) -> None:
    given = {"UNLEARN_ERROR_FILE": str(tmp_path / "errors"), "RANK": "3", "TORCHELASTIC_RESTART_COUNT": "1"}
    done = alone("a_while", "asleep_in_c_with_the_interpreter_held", **given)
    assert (done.returncode, done.stdout, done.stderr) == (1, "alive\n", "")
    (file,) = tmp_path.glob("errors.1.3.*.stacks")
    head, _, stacks = file.read_text().partition("\n")
    told = json.loads(head)
    assert (told["rank"], told["attempt"], told["where"]) == (3, 1, "after step 4")
    assert "in asleep_in_c_with_the_interpreter_held" in stacks


def test_nobody_watches_before_and_after() -> None:
    beat("before")
    rest()
    with watching(0.1):
        beat()
    beat("after")
    time.sleep(2.5)


def test_collectives_give_up_first_and_the_agent_kills_last() -> None:
    assert [margin(limit) for limit in (3, 60, 300, 600, 7200)] == [2.0, 2.0, 10.0, 20.0, 20.0]


@pytest.mark.distributed
def test_of_two_ranks_the_one_that_hangs_is_named_with_its_step_and_its_stacks_are_in_the_log(tmp_path: Path) -> None:
    script, log, started = tmp_path / "stage.py", tmp_path / "stage.log", time.monotonic()
    script.write_text(TWO)
    agent = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    argv = (sys.executable, *agent, "--local-addr=127.0.0.1", str(script), str(tmp_path / "run"))
    with pytest.raises(Preempted) as caught:
        run_worker(JobSpec(argv=argv, env=env), what="stage train", log=str(log))
    assert time.monotonic() - started < 100
    assert caught.value.message.startswith("stage train: rank 1 on ")
    assert "made no progress for 5 s (train: after step 3; in lost_in_thought, stage.py line " in caught.value.message
    assert caught.value.cure.endswith(f"stacks are in {log}")
    words = log.read_text()
    assert words.count("Timeout (0:00:0") == 1, "the rank that waited is not to blame"
    assert "in lost_in_thought" in words
    assert "Timed out waiting" in words
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(script) in (p.info["cmdline"] or [])]
