"""`cpu.cpp` from Python: addresses of tensors go in, sums come out. Threads are torch's number; it changes no bit."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.kernels.counter import Draw

__all__ = ["Cpu"]

CIPHERS = {"philox": 1, "chacha20": 2}
LONG, FLOAT, PLACE = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class _Draw(ctypes.Structure):
    _fields_ = [("cipher", ctypes.c_int32), ("key", ctypes.c_uint32 * 8), ("step", ctypes.c_uint64)]


class Cpu:
    """`Kernels` on the CPU.

    Args:
        library: what `build.built` made.
    """

    name = "cpu"

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def normal(self, draw: Draw, start: int, count: int) -> Tensor:
        """Numbers of places, fp32 [count]; see `counter.normal`."""
        out = torch.empty(count)
        self._call("normal", ctypes.byref(_draw(draw)), LONG(start), LONG(count), torch.get_num_threads(), _place(out))
        return out

    def square(self, gradient: Tensor, *, start: int) -> Tensor:
        """See `Kernels.square`."""
        out = torch.empty((), dtype=torch.float64)
        size = (LONG(start), LONG(len(gradient)), torch.get_num_threads())
        self._call("square", _place(gradient, low=True), _is_low(gradient), *size, _place(out))
        return out

    def move(
        self,
        weights: Tensor,
        gradient: Tensor | None,
        *,
        start: int,
        anchor: Tensor | None = None,
        copy: Tensor | None = None,
        rho: float = 1.0,
        pull: float = 0.0,
        scale: float = 0.0,
        draw: Draw | None = None,
        apart: bool = True,
    ) -> Tensor:
        """See `Kernels.move`."""
        out, drawn = torch.empty(3, dtype=torch.float64), _draw(draw)
        places = (_place(weights), _place(gradient, low=True), _is_low(gradient), _place(anchor), _place(copy, low=True))
        numbers = (FLOAT(rho), FLOAT(pull), FLOAT(scale), ctypes.byref(drawn), int(apart))
        self._call("move", *places, LONG(start), LONG(len(weights)), *numbers, torch.get_num_threads(), _place(out))
        ctypes.memset(ctypes.byref(drawn), 0, ctypes.sizeof(drawn))  # a secret key stays where it belongs
        return out

    def project(
        self, weights: Tensor, *, start: int, anchor: Tensor | None = None, copy: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """See `Kernels.project`."""
        out = torch.empty((), dtype=torch.float64)
        size = (LONG(start), LONG(len(weights)), FLOAT(factor), torch.get_num_threads())
        self._call("project", _place(weights), _place(anchor), _place(copy, low=True), *size, _place(out))
        return out

    def patch_errors(self, prediction: Tensor, target: Tensor, hidden: Tensor, *, weight: Tensor | None, normal: bool) -> Tensor:
        """See `Kernels.patch_errors`."""
        out = torch.empty(len(prediction))
        size = (LONG(prediction.shape[0]), LONG(prediction.shape[1]), int(normal), torch.get_num_threads())
        self._call("patch_errors", *_patches(prediction, target, hidden, weight), *size, _place(out))
        return out

    def patch_slopes(
        self, prediction: Tensor, target: Tensor, hidden: Tensor, factors: Tensor, *, weight: Tensor | None, normal: bool
    ) -> Tensor:
        """See `Kernels.patch_slopes`."""
        out = torch.empty_like(prediction)
        size = (LONG(prediction.shape[0]), LONG(prediction.shape[1]), int(normal), torch.get_num_threads())
        given = (*_patches(prediction, target, hidden, weight), _place(factors))
        self._call("patch_slopes", *given, *size, _place(out, low=True))
        return out

    def _call(self, name: str, *given: Any) -> None:
        function = getattr(self._library, f"unlearn_{name}")
        function.restype = None
        function(*given)


def _draw(draw: Draw | None) -> _Draw:
    made = _Draw()
    if draw is not None:
        made.cipher, made.step = CIPHERS[draw.cipher], draw.step
        key = draw.key if isinstance(draw.key, bytes) else (ctypes.c_char * len(draw.key)).from_buffer(draw.key)
        ctypes.memmove(made.key, key, len(draw.key))
    return made


def _patches(prediction: Tensor, target: Tensor, hidden: Tensor, weight: Tensor | None) -> tuple[Any, ...]:
    if hidden.dtype != torch.bool or not hidden.is_contiguous():
        raise ValueError(f"a kernel for a contiguous mask was given {hidden.dtype}")
    places = (_place(target), PLACE(hidden.data_ptr()), _place(weight))
    return (_place(prediction, low=True), _is_low(prediction), *places)


def _is_low(tensor: Tensor | None) -> int:
    return int(tensor is not None and tensor.dtype == torch.bfloat16)


def _place(tensor: Tensor | None, *, low: bool = False) -> Any:
    """Address of a tensor that the library reads or writes without looking at its kind."""
    if tensor is None:
        return PLACE(None)
    kinds = (torch.float32, torch.float64, torch.bfloat16) if low else (torch.float32, torch.float64)
    if tensor.dtype not in kinds or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"a kernel for contiguous fp32 on the CPU was given {tensor.dtype} on {tensor.device}")
    return PLACE(tensor.data_ptr())
