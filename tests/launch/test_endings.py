"""From what ranks wrote and said to one named error: the last attempt counts, and a lost peer is not a bug."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from launch.endings import crash, hung, lost, named_error, signalled
from launch.torchrun import JobSpec
from launch.worker import WorkerError, run_worker
from pipeline.errors import DataError, Preempted, StorageError

ROOT = Path(__file__).resolve().parents[2]
CLOSED = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:25555"
TIMED = "RuntimeError: Timed out waiting 5000ms for recv operation to complete"
STORE = "torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /none/x"


def entries(folder: Path, *facts: tuple[str, int]) -> str:
    file = folder / "errors"
    lines = [json.dumps({"kind": kind, "message": f"{kind} {n}", "cure": "", "exit_code": 3, "attempt": n}) for kind, n in facts]
    file.write_text("\n".join(lines))
    return str(file)


def test_the_last_attempt_counts_and_in_it_a_cause_before_a_mere_stop(tmp_path: Path) -> None:
    found = named_error(entries(tmp_path, ("DataError", 0), ("Preempted", 1), ("StorageError", 1)))
    assert isinstance(found, StorageError)
    assert found.message == "StorageError 1"
    assert named_error(str(tmp_path / "none")) is None


@pytest.mark.parametrize("words", [CLOSED, TIMED, STORE, f"[rank1]: Traceback\n[rank1]: {CLOSED}\n{TIMED}\n"])
def test_lost_peers_are_no_bug(words: str) -> None:
    fault = lost("stage train", f"Traceback (most recent call last):\n  File x\n{words}\n")
    assert isinstance(fault, Preempted)
    assert "lost their peers" in fault.message


@pytest.mark.parametrize("words", ["", "ValueError: ours", f"{CLOSED}\nValueError: ours", "RuntimeError: size mismatch"])
def test_a_bug_is_one_although_its_peers_lost_it(words: str) -> None:
    assert lost("stage train", f"Traceback (most recent call last):\n{words}\n") is None


def test_a_hung_rank_is_named_with_its_log() -> None:
    fault = hung("stage train", "x\nTimeout (0:00:05)!\nThread 0x7f (most recent call first):\n", "/a/train.log")
    assert fault is not None
    assert "its stacks are in /a/train.log" in fault.message
    assert hung("stage train", "a Timeout (0:00:05)! in a sentence", "") is None


def test_signals_and_crashes() -> None:
    assert "killed by SIGKILL" in str(signalled("stage x", -9, ""))
    assert signalled("stage x", 1, "") is None
    assert crash("stage x", 1, "ValueError: ours\n").output == "ValueError: ours"


WORKER = """
import os, sys, json, signal
sys.path.insert(0, {root!r})
from pipeline import __main__ as worker
from pipeline.errors import DataError, StorageError
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def act(name, folder):
    open({tries!r}, "a").write(f"{{attempt}}\\n")
    if {how!r} == "killed" and attempt == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if {how!r} == "data":
        raise DataError("shard 7: truncated", "restore it")
    if {how!r} == "storage" and attempt < 2:
        raise StorageError("the store is away", "wait")
worker._run = act
sys.exit(worker.main(["train", "x"]))
"""


def under_torchrun(folder: Path, how: str) -> list[str]:
    """Run a worker that fails in some way under an agent with two restarts; returns its attempts."""
    script, tries = folder / "worker.py", folder / "tries"
    script.write_text(WORKER.format(root=str(ROOT), tries=str(tries), how=how))
    agent = ("-m", "torch.distributed.run", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d")
    argv = (sys.executable, *agent, "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", str(script))
    run_worker(JobSpec(argv=argv, env=dict(os.environ)), what="stage train")
    return tries.read_text().split()


def test_a_killed_rank_is_started_again(tmp_path: Path) -> None:
    assert under_torchrun(tmp_path, "killed") == ["0", "1"]


def test_a_store_that_was_away_is_tried_again(tmp_path: Path) -> None:
    assert under_torchrun(tmp_path, "storage") == ["0", "1", "2"]


def test_what_trying_again_cannot_cure_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shard 7: truncated"):
        under_torchrun(tmp_path, "data")
    assert (tmp_path / "tries").read_text().split() == ["0"], "the ranks that were started again did nothing"


def test_a_plain_crash_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(WorkerError):
        run_worker(JobSpec(argv=(sys.executable, "-c", "raise ValueError('ours')"), env=dict(os.environ)), what="stage x")
