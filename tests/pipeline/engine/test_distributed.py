"""Sums and gathers agree on every rank, also the probes built on them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ImagesConfig
from pipeline.data.stream import ImageReader
from pipeline.data.tasks.center_crop import CenterCrop, Config
from pipeline.engine.distributed import group, join_group, leave_group
from pipeline.engine.probe import sample_losses
from tests.pipeline.data.test_stream import make_samples
from tests.support.distributed import run_distributed


def _body(folder: str) -> tuple[list[float], list[int], dict[int, list[float]]]:
    ranks = group()
    summed = ranks.sum(torch.tensor([1.0, ranks.rank])).tolist()
    gathered = ranks.gather(ranks.rank * 10)
    ranks.barrier()
    own = Path(folder, str(ranks.rank))
    reader = ImageReader(make_samples(own, 11), folder=str(own), size=8, channels=1, images=ImagesConfig())
    calls = []

    def model(visible: torch.Tensor, target: torch.Tensor, region: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        calls.append(len(target))
        return target.flatten(1).mean(1) * 255

    found = {}
    for rows in (np.array([], dtype=np.int64), np.array([4]), np.arange(11)):
        losses = sample_losses(model, reader, rows, task=CenterCrop(Config()), group=ranks, batch_size=2)
        found[len(rows)] = losses.tolist()
    assert len(set(map(str, ranks.gather(calls)))) == 1, "ranks must make the same forward passes"
    reader.close()
    return summed, gathered, found


@pytest.mark.distributed
def test_sums_gathers_and_probes_agree_on_two_ranks(tmp_path: Path) -> None:
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    first, second = run_distributed(_body, 2, str(tmp_path))
    assert first == second
    summed, gathered, found = first
    assert summed == [2.0, 1.0]
    assert gathered == [0, 10]
    assert found[0] == []
    assert found[1] == pytest.approx([4.0])
    assert found[11] == pytest.approx([float(n) for n in range(11)])


def _fails() -> None:
    if group().rank == 1:
        raise RuntimeError("rank one broke")
    group().barrier()


def _hangs() -> None:
    if group().rank == 1:
        import time

        time.sleep(60)


@pytest.mark.distributed
def test_the_harness_brings_back_tracebacks_and_ends_hangs() -> None:
    with pytest.raises(pytest.fail.Exception, match="rank one broke"):
        run_distributed(_fails, 2)
    with pytest.raises(pytest.fail.Exception, match=r"ranks \[1\] hang"):
        run_distributed(_hangs, 2, timeout=12)


def test_alone_without_a_process_group() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    try:
        ranks = join_group()
        assert (ranks.rank, ranks.world_size) == (0, 1)
        assert ranks.gather("x") == ["x"]
        assert ranks.sum(torch.tensor([2.0])).tolist() == [2.0]
        ranks.barrier()
        signal.raise_signal(signal.SIGUSR1)
        assert ranks.leaving
    finally:
        leave_group()
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def _busy_body() -> tuple[list[float], list[float]]:
    ranks = group()
    for _ in range(3):
        ranks.mark()
        time.sleep(0.2 if ranks.rank == 1 else 0.0)
        ranks.sum(torch.zeros(1))  # here rank 0 waits, which is not its own work
        time.sleep(0.1)
        ranks.sum(torch.zeros(1))
    return ranks.busy(), ranks.busy()


@pytest.mark.distributed
def test_own_work_counts_up_to_the_first_sum_and_only_once() -> None:
    answers = run_distributed(_busy_body)
    assert answers[0] == answers[1]
    (first, second), again = answers[0]
    assert first < 0.3 < 0.6 <= second < 1.5
    assert again == [0.0, 0.0]
