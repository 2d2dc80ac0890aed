"""Argument lists, environment and resources of a stage; and a real torchrun with two ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launch import torchrun
from launch.torchrun import JobSpec, Meeting, Resources, agent_job, count_gpus, resources, stage_job, worker_job
from launch.worker import run_worker
from pipeline.chain import CHAIN
from pipeline.config import LaunchConfig
from pipeline.errors import ConfigError, DataError, Preempted

SHARD, TRAIN = CHAIN[0], CHAIN[1]
CPU = Resources(ranks=2, threads=1, gpus=0, cores=2)


def _fake_smi(folder: Path, gpus: int) -> dict[str, str]:
    tool = folder / "nvidia-smi"
    lines = "".join(f"echo 'GPU {n}: H100 (UUID: x)'\necho '  MIG 1g.10gb Device 0'\n" for n in range(gpus))
    tool.write_text(f"#!/bin/sh\n{lines}")
    tool.chmod(0o755)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(("visible", "expected"), [(None, 4), ("", 0), ("-1", 0), ("0,1", 2), ("1,-1,2", 1), ("0,1,2,3,4,5", 4)])
def test_gpus_are_counted_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: int
) -> None:
    monkeypatch.setattr(torchrun, "_torch_is_for_cpu", lambda: False)
    env = _fake_smi(tmp_path, 4) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert count_gpus(env) == expected


def test_a_cpu_build_of_torch_or_a_missing_tool_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "_torch_is_for_cpu", lambda: True)
    assert count_gpus(_fake_smi(tmp_path, 4)) == 0
    monkeypatch.setattr(torchrun, "_torch_is_for_cpu", lambda: False)
    assert count_gpus({"PATH": str(tmp_path / "nowhere")}) == 0


@pytest.mark.parametrize(("cores", "gpus", "ranks", "threads"), [(1, 0, 1, 1), (2, 0, 2, 1), (16, 0, 2, 8), (16, 4, 4, 4)])
def test_ranks_and_threads_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda env: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert resources(LaunchConfig()) == Resources(ranks=ranks, threads=threads, gpus=gpus, cores=cores)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda env: 2)
    with pytest.raises(ConfigError, match="3 ranks on 2 GPUs"):
        resources(LaunchConfig(ranks=3))


def test_a_distributed_stage_runs_under_torchrun_and_the_others_do_not() -> None:
    job = stage_job(TRAIN, "/a b/run", CPU)
    assert job.argv[:3] == (sys.executable, "-m", "torch.distributed.run")
    assert job.argv[-4:] == ("-m", "pipeline", "train", "/a b/run")
    assert {"--nproc-per-node=2", "--max-restarts=0", "--rdzv-endpoint=127.0.0.1:0"} <= set(job.argv)
    assert stage_job(SHARD, "/a b/run", CPU).argv == (sys.executable, "-m", "pipeline", "shard", "/a b/run")
    assert worker_job("check", "x.yaml", CPU).argv == (sys.executable, "-m", "pipeline", "check", "x.yaml")


def test_the_environment_of_a_cpu_node() -> None:
    env = stage_job(TRAIN, "run", CPU).env
    expected = {
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
    }
    assert {name: env[name] for name in expected} == expected
    assert env["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)
    assert stage_job(SHARD, "run", CPU).env["OMP_NUM_THREADS"] == "2"
    assert stage_job(SHARD, "run", CPU, threads=1).env["OMP_NUM_THREADS"] == "1"


def test_a_gpu_node_keeps_its_accelerator() -> None:
    env = stage_job(TRAIN, "run", Resources(ranks=1, threads=1, gpus=1, cores=2)).env
    assert env.get("DS_ACCELERATOR") == os.environ.get("DS_ACCELERATOR")


WORKER = """
import json, os, sys
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
assert dist.get_world_size() == 2
assert sys.argv[1] == "train" and sys.argv[2].endswith("a run"), sys.argv
assert os.path.basename(os.readlink("/proc/self/fd/0")) == ".lock"
dist.barrier()
how = os.environ["HOW"]
if how == "kill" and rank == 1:
    os.kill(os.getpid(), 9)
if how == "error":
    with open(os.environ["UNLEARN_ERROR_FILE"], "a") as out:
        print(json.dumps({"kind": "DataError", "message": f"bad shard on rank {rank}", "cure": "", "exit_code": 3}), file=out)
    sys.exit(3)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.distributed
@pytest.mark.parametrize(("how", "expected"), [("fine", None), ("kill", Preempted), ("error", DataError)])
def test_two_real_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, expected: type[Exception] | None) -> None:
    """The ranks meet, hold the lock as standard input, and their end arrives as one named error."""
    package, folder = tmp_path / "a space" / "pipeline", tmp_path / "a run"
    package.mkdir(parents=True)
    folder.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("HOW", how)
    job = stage_job(TRAIN, str(folder), CPU)
    with open(folder / ".lock", "w+") as lock:
        if expected is None:
            run_worker(job, what="stage train", lock=lock.fileno())
            return
        with pytest.raises(expected, match="killed by SIGKILL" if how == "kill" else "bad shard on rank"):
            run_worker(job, what="stage train", lock=lock.fileno())


AGAIN = """
import os, signal, sys, time
import torch
from pipeline.engine.distributed import join_group, leave_group
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if attempt and rank == 1:
    time.sleep(2)  # the other looks for this one's address before it is there
started = time.monotonic()
group = join_group(timeout_seconds=8)
if attempt == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
torch.distributed.new_group([0, 1])
group.barrier()
leave_group()
if rank == 0:
    open(sys.argv[1], "w").write(f"{attempt} {time.monotonic() - started:.1f}")
"""


@pytest.mark.distributed
def test_ranks_that_are_started_again_meet_each_other_and_not_those_before(tmp_path: Path) -> None:
    script, told = tmp_path / "again.py", tmp_path / "told"
    script.write_text(AGAIN)
    meeting = Meeting(
        backend="c10d",
        endpoint="127.0.0.1:0",
        name="again",
        nodes=1,
        min_nodes=1,
        rank=0,
        address="127.0.0.1",
        interface="lo",
        restarts=3,
    )
    job = agent_job(TRAIN, str(tmp_path), CPU, meeting, extra={"PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    run_worker(JobSpec(argv=(*job.argv[:-4], str(script), str(told)), env=job.env), what="stage train")
    attempt, seconds = told.read_text().split()
    assert attempt == "1"
    assert float(seconds) < 8
