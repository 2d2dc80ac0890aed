"""Fused steps on GPUs: at every stage the weights of one process on a CPU, noise included."""

from __future__ import annotations

import pytest
import torch

from tests.pipeline.engine.test_fused import BALL, compare, grid
from tests.support.distributed import run_distributed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_weights_on_gpus_are_those_of_one_process_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # ten bits of a product are not what the CPU has
    ranks = max(count for count in (1, 2, 3, 6) if count <= torch.cuda.device_count())
    cases = [(stage, "fp32", ball) for stage in range(4) for ball in (None, BALL)]
    compare(cases, run_distributed(grid, ranks, cases, backend="nccl"))
