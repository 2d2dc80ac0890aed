"""The bodies of the gloo tests, on NCCL and real GPUs."""

from __future__ import annotations

import tempfile

import pytest
import torch

from tests.pipeline.engine.test_backend import resume
from tests.support.distributed import run_distributed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_every_stage_and_precision_resumes_on_gpus() -> None:
    ranks = max(count for count in (1, 2, 3, 6) if count <= torch.cuda.device_count())
    with tempfile.TemporaryDirectory() as folder:
        answers = run_distributed(resume, ranks, folder, backend="nccl")[0]
    for name, (expected, resumed, saved) in answers.items():
        assert all(torch.allclose(expected[key], resumed[key], atol=1e-5) for key in expected), name
        assert any(not torch.equal(expected[key], saved[key]) for key in expected), name
