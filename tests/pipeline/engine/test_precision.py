"""Whether bf16 is worth its name on this device, told before steps are taken."""

from __future__ import annotations

import logging

import pytest
import torch

from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.distributed import group
from pipeline.engine.precision import emulated
from pipeline.models.autoencoder import Config, build
from tests.support.distributed import run_distributed

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OLD = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize("able", ["amx_bf16", "avx512_bf16", "bf16"])
@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_a_processor_is_slow_in_bf16_unless_it_has_instructions_for_it(
    able: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD, raising=False)
    told = emulated(precision, CPU)
    assert f"engine.precision: {precision}" in told
    assert "set engine.precision=fp32" in told
    assert not emulated("fp32", CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD | {able: True})
    assert not emulated(precision, CPU)


def test_a_torch_that_cannot_tell_accuses_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not emulated("bf16", CPU)


@pytest.mark.parametrize("able", [False, True])
def test_a_gpu_is_asked_for_what_it_has_not_for_what_torch_emulates(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or able)
    assert bool(emulated("autocast", GPU)) is not able
    assert not emulated("fp32", GPU)


def _told(precision: str) -> list[str]:
    torch.cpu.get_capabilities = lambda: OLD  # this process's own torch
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())  # type: ignore[method-assign]
    logging.getLogger("unlearn").addHandler(handler)
    model = build(Config(image_size=8, width=8, latent=8))
    optimizer = OptimizerConfig(learning_rate=1e-2, steps=1)
    Backend(model, engine=EngineConfig(precision=precision), optimizer=optimizer, micro_batch=1, group=group()).close()
    return [line for line in lines if "bf16 instructions" in line]


@pytest.mark.distributed
def test_the_engine_says_so_once_a_phase_and_nothing_of_fp32() -> None:
    assert len(run_distributed(_told, 1, "autocast")[0]) == 1
    assert run_distributed(_told, 1, "fp32")[0] == []
