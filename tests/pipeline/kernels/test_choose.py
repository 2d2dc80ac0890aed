"""One implementation is chosen, once, and said; what cannot work is one message."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.kernels import choose as chosen
from pipeline.kernels.build import BuildError
from pipeline.kernels.choose import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    chosen._chosen.cache_clear()
    yield
    chosen._chosen.cache_clear()


def no_compiler() -> None:
    raise BuildError("no C++ compiler here")


def test_without_a_compiler_the_reference_runs_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chosen, "built", no_compiler)
    with caplog.at_level(logging.INFO, logger="unlearn"):
        assert [choose(CPU).name for _ in range(3)] == ["reference"] * 3
    assert [record.message for record in caplog.records] == [
        "kernels: reference (slower than compiled ones: no C++ compiler here)"
    ]
    with pytest.raises(ConfigError, match=r"engine\.kernels.*no C\+\+ compiler"):
        choose(CPU, "cpu")


def test_what_is_asked_for_is_given_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(CPU, "reference").name == choose(GPU, "reference").name == "reference"
    for device, wanted in ((CPU, "triton"), (GPU, "cpu")):
        with pytest.raises(ConfigError, match=r"engine\.kernels"):
            choose(device, wanted)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose(GPU).name == "reference"
    with pytest.raises(ConfigError, match="not installed"):
        choose(GPU, "triton")
