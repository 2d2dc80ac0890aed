"""The one place that chooses an implementation, once a process, and says which in the log."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

from pipeline.errors import ConfigError
from pipeline.kernels.build import BuildError, built
from pipeline.kernels.cpu import Cpu
from pipeline.kernels.reference import Kernels, Reference

__all__ = ["choose"]

log = logging.getLogger("unlearn")


def choose(device: torch.device, wanted: str = "auto") -> Kernels:
    """Kernels for tensors on a device.

    Args:
        device: of the tensors.
        wanted: `engine.kernels`. auto: C++ on a CPU, Triton on a GPU, and plain torch where there is no compiler or no Triton.

    Raises:
        ConfigError: what is wanted cannot work here.
    """
    return _chosen(device.type, wanted)


@functools.cache
def _chosen(kind: str, wanted: str) -> Kernels:
    found, why = (Reference(), "") if wanted == "reference" else _on_gpu(wanted) if kind == "cuda" else _on_cpu(wanted)
    log.info("kernels: %s%s", found.name, f" ({why})" if why else "")
    return found


def _on_cpu(wanted: str) -> tuple[Kernels, str]:
    if wanted == "triton":
        raise ConfigError("engine.kernels: triton compiles for GPUs, and the weights are on a CPU", "set engine.kernels=auto")
    try:
        return Cpu(built()), ""
    except (BuildError, OSError) as fault:
        if wanted == "cpu":
            cure = "install g++, or set engine.kernels=reference, which is slower"
            raise ConfigError(f"engine.kernels: the kernels do not compile: {fault}", cure) from None
        return Reference(), f"slower than compiled ones: {fault}"


def _on_gpu(wanted: str) -> tuple[Kernels, str]:
    if wanted == "cpu":
        raise ConfigError("engine.kernels: cpu, and the weights are on a GPU", "set engine.kernels=auto")
    if importlib.util.find_spec("triton") is not None:
        from pipeline.kernels.triton_update import Triton

        return Triton(), ""
    if wanted == "triton":
        raise ConfigError(
            "engine.kernels: triton is not installed", "pip install 'i2i-unlearn[kernels]', or set engine.kernels=auto"
        )
    return Reference(), "slower than compiled ones: triton is not installed"
