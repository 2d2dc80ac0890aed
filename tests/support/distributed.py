"""Run one test body on several gloo ranks: real processes, rendezvous by a temporary file, a hard time-out.

The body is a module-level function of picklable arguments; its return values come back in rank order. A child's traceback
or skip comes back too. The same bodies run on NCCL in `tests/gpu`.

Ranks are forked from a server process that has loaded torch and DeepSpeed once: each rank by itself would spend seconds on it.
CUDA does not survive a fork, so ranks of another backend start anew.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import pickle
import queue
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

ON_CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""Also on a machine with GPUs; libraries read it when they are loaded."""
# What a rank of a stage loads sooner or later, some of it only when its optimizer or its telemetry is made.
LOADED = ("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.zero.stage3", "torch.utils.tensorboard", "pytest")
STAGES = ("train", "calibrate", "forget", "certify", "retain", "evaluate", "release")


@functools.cache
def _forks() -> Any:
    """The way to start gloo ranks; the server starts with the first of them, and ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED, *(f"pipeline.stages.{stage}" for stage in STAGES)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ON_CPU.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def _child(
    body: Callable[..., Any],
    rank: int,
    world_size: int,
    backend: str,
    store: str,
    environment: dict[str, str],
    answers: Any,
    arguments: tuple[Any, ...],
) -> None:
    warnings.simplefilter("ignore")
    gc.freeze()  # DeepSpeed collects garbage; what the server has loaded is none
    os.environ.clear()  # the server's is that of its start
    os.environ.update(environment)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in place.items()})
    if backend == "gloo":
        os.environ.update(ON_CPU, GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    import torch

    from pipeline.engine.distributed import join_group, leave_group

    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world_size)
        join_group()
        answer = ("value", pickle.dumps(body(*arguments)))  # by value: shared memory would end with this process
        leave_group()
    except pytest.skip.Exception as reason:
        answer = ("skip", str(reason))
    except BaseException:
        answer = ("error", traceback.format_exc())
    answers.put((rank, answer))


def run_distributed(
    body: Callable[..., Any], world_size: int = 2, *arguments: Any, timeout: float = 400.0, backend: str = "gloo"
) -> list[Any]:
    """Run `body(*arguments)` on `world_size` ranks; returns each rank's value, or fails with the first rank's traceback."""
    context = _forks() if backend == "gloo" else multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=_child, args=(body, n, world_size, backend, store, dict(os.environ), answers, arguments))
            for n in range(world_size)
        ]
        for process in ranks:
            process.start()
        found: dict[int, tuple[str, Any]] = {}
        end = time.monotonic() + timeout
        try:
            while len(found) < world_size:
                try:
                    rank, answer = answers.get(timeout=0.2)
                except queue.Empty:
                    lost = [n for n, process in enumerate(ranks) if process.exitcode is not None and n not in found]
                    if time.monotonic() > end:
                        pytest.fail(f"ranks {sorted(set(range(world_size)) - set(found))} hang after {timeout:.0f} s")
                    if lost and answers.empty():
                        pytest.fail(f"rank {lost[0]} ended with exit code {ranks[lost[0]].exitcode}")
                    continue
                found[rank] = answer
                if answer[0] == "error":
                    break
        finally:
            for process in ranks:
                process.join(timeout=5 if len(found) == world_size else 0.1)
                if process.is_alive():
                    process.kill()
                    process.join()
            answers.close()
    for kind, value in found.values():
        if kind == "error":
            pytest.fail(value, pytrace=False)
        if kind == "skip":
            pytest.skip(value)
    return [pickle.loads(found[n][1]) for n in range(world_size)]
