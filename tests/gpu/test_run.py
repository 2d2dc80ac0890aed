"""The whole chain on GPUs: the same command, the same receipts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.chain import read_receipt
from tests.support.command import unlearn
from tests.support.runs import write_run_file

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(
    ("stage", "precision", "optimizer"), [(1, "bf16", "ascent"), (2, "autocast", "adamw"), (3, "fp32", "ascent")]
)
def test_a_run_ends_with_a_report_that_verifies(tmp_path: Path, stage: int, precision: str, optimizer: str) -> None:
    forget = {"optimizer": optimizer, "step_noise": 1e-6} if optimizer == "ascent" else {"optimizer": optimizer}
    file = write_run_file(tmp_path, engine={"zero_stage": stage, "precision": precision}, method={"forget": forget})
    done = unlearn("run", str(file), "--json")
    assert done.returncode in (0, 4), done.stderr
    folder = json.loads(done.stdout)["folder"]
    assert unlearn("verify", folder).returncode == 0
    receipt = read_receipt(folder, "forget")
    assert receipt is not None and receipt.world_size == torch.cuda.device_count()
