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
from pipeline.engine.distributed import group, join_group, leave_group, lost_peers
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


def test_alone_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
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
        alarms: list[int] = []
        monkeypatch.setattr(signal, "alarm", alarms.append)
        signal.raise_signal(signal.SIGTERM)
        assert alarms == []
        ranks._parent = -1
        signal.raise_signal(signal.SIGTERM)
        assert alarms == [30], "whose agent died may save, and no more"
    finally:
        leave_group()
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


Busy = list[tuple[float, float]]


def _busy_body() -> tuple[Busy, Busy]:
    ranks = group()
    for _ in range(3):
        ranks.mark()
        time.sleep(0.1 if ranks.rank == 1 else 0.0)
        ranks.fed()
        time.sleep(0.1 if ranks.rank == 1 else 0.0)
        ranks.sum(torch.zeros(1))  # here rank 0 waits, which is not its own work
        time.sleep(0.1)
        ranks.sum(torch.zeros(1))
    return ranks.busy(), ranks.busy()


@pytest.mark.distributed
def test_own_work_counts_up_to_the_first_sum_and_only_once() -> None:
    answers = run_distributed(_busy_body)
    assert answers[0] == answers[1]
    ((first_fed, first), (second_fed, second)), again = answers[0]
    assert first_fed <= first <= second - 0.3 and second >= 0.6
    assert 0.3 <= second_fed <= second - 0.3
    assert again == [(0.0, 0.0), (0.0, 0.0)]


GLOO = "[/src/third_party/gloo/gloo/transport/tcp/"
NCCL = "NCCL error in: /src/ProcessGroupNCCL.cpp:77, remote process exited or there was a network error"
LOST = [
    RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:927. This is typically caused by"),
    RuntimeError(f"{GLOO}pair.cc:537] Read error [127.0.0.1]:30644: Connection reset by peer."),
    RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"),
    RuntimeError(f"[enforce fail at {GLOO[1:]}pair.cc:801] state_ >= CONNECTED. 1 vs 4. Pair is not connected"),
    torch.distributed.DistStoreError("Timed out after 4 seconds waiting for clients. 1/2 clients joined."),
    torch.distributed.DistBackendError(NCCL),
]
BUGS = [
    ValueError("ours"),
    RuntimeError("cannot restore the store: timed out"),
    RuntimeError(f"[enforce fail at {GLOO[1:]}pair.cc:446] op.preamble.length <= op.nbytes. 24 vs 8"),
    torch.distributed.DistBackendError("NCCL error: invalid usage. Duplicate GPU detected : rank 0 and rank 1"),
    ConnectionResetError("Connection reset by peer"),
]


@pytest.mark.parametrize(("fault", "expected"), [*((fault, True) for fault in LOST), *((fault, False) for fault in BUGS)])
def test_a_peer_that_is_gone_is_told_from_a_bug(fault: Exception, expected: bool) -> None:
    assert lost_peers(fault) is expected


def _limit() -> str:
    join_group(timeout_seconds=70)  # ranks that start side by side on a busy machine can be seconds apart
    made = torch.distributed.new_group([0, 1])
    torch.distributed.barrier(made)  # who leaves while the other still connects would be taken for a crash
    return str(made._get_backend(torch.device("cpu")).options._timeout)


@pytest.mark.distributed
def test_groups_that_libraries_make_have_the_time_limit_too() -> None:
    assert run_distributed(_limit) == ["0:01:10", "0:01:10"]
