"""From what ranks wrote down and the agent says of their ends to one error: the last attempt counts, and a bug stays a bug."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.endings import WorkerError, ending, keep_stacks, read_hangs, read_words
from launch.torchrun import JobSpec
from launch.worker import run_worker
from pipeline.errors import DataError, Preempted, StorageError

ROOT = Path(__file__).resolve().parents[2]
CLOSED = "[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:25555"
NCCL_WORDS = "[rank0]:[E ProcessGroupNCCL.cpp:683] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)\n"
STORE = "Traceback\ntorch.distributed.DistNetworkError: failed to recv, got 0 bytes\n"
THREAD = "Thread 0x00007f12 (most recent call first):\n"
STUCK = f'{THREAD}  File "/opt/ours/reader.py", line 33 in read\n  File "/opt/ours/loop.py", line 7 in fit\n'
WAITS = f'{THREAD}  File "/opt/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 9 in all_reduce\n'
BUSY = f'{THREAD}  File "/opt/lib/python3.11/threading.py", line 5 in wait\n'


def leave(folder: Path, *words: tuple[str, int, int]) -> str:
    """What ranks wrote: kind, attempt and rank of each; returns the file."""
    file = folder / "errors"
    names = ("kind", "attempt", "rank")
    lines = [{**dict(zip(names, word, strict=True)), "message": f"{word[0]} {word[1]}", "cure": ""} for word in words]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not whole")
    return str(file)


def hang(error_file: str, rank: int, stacks: str, attempt: int = 0) -> None:
    head = {"rank": rank, "host": f"host{rank}", "attempt": attempt, "seconds": 620, "where": "train: after step 7"}
    Path(f"{error_file}.{attempt}.{rank}.99.stacks").write_text(json.dumps(head).ljust(300) + "\n" + stacks)


def account(*codes: int) -> str:
    """How the agent tells the exit codes of its ranks; the first of them failed first."""
    told = [f"[{n}]:\n  rank      : {n} (local_rank: {n})\n  exitcode  : {code} (pid: 7)\n" for n, code in enumerate(codes)]
    return failed(codes[0]) + "".join(told)


def failed(code: int) -> str:
    """What it says at the end of each attempt."""
    return f"E1123 1 torch/distributed/elastic/api.py:984] failed (exitcode: {code}) local_rank: 0\n"


def end(error_file: str, output: str = "", code: int = 1, log: str = "a.log") -> Any:
    return ending("stage train", code, output=output, error_file=error_file, log=log)


def test_the_last_attempt_counts_and_in_it_a_cause_before_a_mere_stop(tmp_path: Path) -> None:
    words = ("DataError", 0, 0), ("Preempted", 1, 0), ("StorageError", 1, 1)
    found = end(leave(tmp_path, *words))
    assert (type(found), found.message) == (StorageError, "StorageError 1")
    assert [word.kind for word in read_words(leave(tmp_path, *words))] == ["DataError", "Preempted", "StorageError"]
    killed = end(leave(tmp_path, ("StorageError", 0, 0), ("Started", 1, 0)), failed(-15) + account(-9))
    assert "killed by SIGKILL" in str(killed), "the store had come back"
    crashed = end(leave(tmp_path, ("Started", 1, 0)), failed(-9) + "ValueError: ours\n" + account(1))
    assert (type(crashed), crashed.output) == (WorkerError, "ValueError: ours")
    assert isinstance(end(leave(tmp_path, ("Bug", 0, 0), ("Preempted", 0, 1))), WorkerError)


@pytest.mark.parametrize(
    ("words", "output", "expected"),
    [
        # a peer died on another node; the agent stopped a rank that did not answer
        ((("LostPeers", 0, 0),), account(75, -9) + "forcefully exiting via SIGKILL", Preempted),
        ((("LostPeers", 0, 0), ("LostPeers", 0, 1)), account(75, 75), Preempted),
        # an agent that lost the others' agents says nothing of its ranks
        ((("LostPeers", 0, 0),), "", Preempted),
        ((), STORE, Preempted),
        ((), f"{NCCL_WORDS}{account(-6, -15)}", Preempted),
        # a rank wrote down its bug, crashed in native code, or ended before it could write
        ((("LostPeers", 0, 0), ("Bug", 0, 1)), account(75, 1), WorkerError),
        ((("LostPeers", 0, 0),), account(75, -11), WorkerError),
        ((("LostPeers", 0, 0),), account(75, -6), WorkerError),
        ((("LostPeers", 0, 0),), account(75, 1), WorkerError),
        ((), f"{STORE}ValueError: ours\n", WorkerError),
        ((), "", WorkerError),
    ],
)
def test_a_lost_peer_is_told_from_a_bug(
    tmp_path: Path, words: tuple[tuple[str, int, int], ...], output: str, expected: type[Exception]
) -> None:
    found = end(leave(tmp_path, *words), output)
    assert type(found) is expected
    assert expected is WorkerError or "lost" in found.message


def test_a_hung_rank_is_named_with_place_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, log = leave(tmp_path, ("LostPeers", 0, 0)), tmp_path / "a.log"
    hang(file, 0, f"Timeout (0:10:20)!\n{WAITS}")
    hang(file, 1, f"Timeout (0:10:20)!\n{BUSY}\n{STUCK}")
    hang(file, 2, "")
    found = end(file, account(75, 1), log=str(log))
    told = "stage train: rank 1 on host1 made no progress for 620 s (train: after step 7; in read, reader.py line 33)"
    assert (type(found), found.message) == (Preempted, told)
    assert found.cure.endswith(f"stacks are in {log}")
    log.write_text("before\n")
    keep_stacks(read_hangs(file), str(log))
    assert log.read_text().startswith("before\n\nrank 0 on host0 made no progress for 620 s")
    assert STUCK in log.read_text()
    keep_stacks(read_hangs(file), "")
    assert STUCK in capsys.readouterr().err


def test_who_only_waits_is_to_blame_where_all_do_and_earlier_attempts_are_not(tmp_path: Path) -> None:
    file = leave(tmp_path, ("Started", 0, 0))
    hang(file, 0, WAITS)
    hang(file, 1, WAITS)
    assert "rank 0 on host0" in end(file).message
    assert end(file).message.endswith(", and 1 more ranks")
    assert isinstance(end(leave(tmp_path, ("Bug", 1, 0))), WorkerError)


@pytest.mark.parametrize("code", [-9, -15, -10])
def test_a_signal_from_outside_is_no_bug(tmp_path: Path, code: int) -> None:
    assert "the worker was killed by SIG" in end(str(tmp_path / "none"), code=code).message
    assert "a rank was killed by SIG" in end(str(tmp_path / "none"), account(code, -15)).message


WORKER = """
import os, sys, json, signal
sys.path.insert(0, {root!r})
from pipeline import __main__ as worker
from pipeline.errors import DataError, Preempted, StorageError
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def act(name, folder):
    open({tries!r}, "a").write(f"{{attempt}}\\n")
    if {how!r} == "killed" and attempt == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if {how!r} == "data":
        raise DataError("shard 7: truncated", "restore it")
    if {how!r} == "asked":
        raise Preempted("asked to leave", "again")
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


@pytest.mark.parametrize(("how", "expected"), [("data", DataError), ("asked", Preempted)])
def test_what_trying_again_cannot_cure_keeps_its_name(tmp_path: Path, how: str, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"shard 7: truncated|asked to leave"):
        under_torchrun(tmp_path, how)
    assert (tmp_path / "tries").read_text().split() == ["0"], "the ranks that were started again did nothing"


CRASH = """
import os, signal, sys, torch
sys.path.insert(0, {root!r})
from pipeline import __main__ as worker
def act(name, folder):
    from pipeline.engine.distributed import join_group
    group = join_group(timeout_seconds=20)
    group.barrier()
    if group.rank == 1:
        os.kill(os.getpid(), {number})
    group.sum(torch.ones(1))
worker._run = act
sys.exit(worker.main(["train", "x"]))
"""


@pytest.mark.distributed
def test_a_crash_in_native_code_is_a_bug_although_a_peer_was_lost(tmp_path: Path) -> None:
    script, log = tmp_path / "worker.py", tmp_path / "log"
    script.write_text(CRASH.format(root=str(ROOT), number=11))
    agent = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(WorkerError):
        argv = (sys.executable, *agent, "--local-addr=127.0.0.1", str(script))
        run_worker(JobSpec(argv=argv, env=env), what="stage train", log=str(log))
    assert "by peer" in log.read_text()


def test_a_plain_crash_is_a_bug() -> None:
    with pytest.raises(WorkerError) as caught:
        run_worker(JobSpec(argv=(sys.executable, "-c", "raise ValueError('ours')"), env=dict(os.environ)), what="stage x")
    assert caught.value.output.endswith("ValueError: ours")
