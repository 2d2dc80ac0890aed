"""The masked patch loss for a GPU, in Triton: a program a patch, sums in fp32, and nothing kept for the way back."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["narrow", "patch_errors", "patch_slopes"]


@triton.jit
def narrow(value):
    """To bf16, to nearest, ties to even; by bits, because the interpreter cuts them off."""
    bits = value.to(tl.uint32, bitcast=True)
    rounded = tl.where(value != value, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _apart(x, t, row, place, here, width, NORMAL: tl.constexpr):
    """Prediction less target of a patch, fp32."""
    target = tl.load(t + row * width + place, here, 0.0)
    if NORMAL:
        mean = tl.sum(target) / width
        centred = tl.where(here, target - mean, 0.0)
        target = centred / tl.sqrt(tl.sum(centred * centred) / (width - 1) + 1e-6)
    return tl.load(x + row * width + place, here, 0.0).to(tl.float32) - target


@triton.jit
def _errors(x, t, hidden, weight, out, width, NORMAL: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(hidden + row) == 0:
        tl.store(out + row, 0.0)
    else:
        place = tl.arange(0, WIDE)
        here = place < width
        apart = tl.where(here, _apart(x, t, row, place, here, width, NORMAL), 0.0)
        square = apart * apart
        if weight is not None:
            square = square * tl.load(weight + place, here, 0.0)
        tl.store(out + row, tl.sum(square) / width)


@triton.jit
def _slopes(x, t, hidden, weight, factors, out, width, NORMAL: tl.constexpr, WIDE: tl.constexpr, LOW: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDE)
    here = place < width
    if tl.load(hidden + row) == 0:
        tl.store(out + row * width + place, tl.zeros((WIDE,), out.dtype.element_ty), here)
    else:
        slope = _apart(x, t, row, place, here, width, NORMAL) * tl.load(factors + row)
        if weight is not None:
            slope = slope * tl.load(weight + place, here, 0.0)
        tl.store(out + row * width + place, narrow(slope) if LOW else slope, here)


def patch_errors(prediction: Tensor, target: Tensor, hidden: Tensor, weight: Tensor | None, normal: bool) -> Tensor:
    """See `Kernels.patch_errors`."""
    out = torch.empty(len(prediction), device=prediction.device)
    if len(out):
        _errors[(len(out),)](
            prediction, target, hidden.to(torch.uint8), weight, out, prediction.shape[1], **_form(prediction, normal)
        )
    return out


def patch_slopes(
    prediction: Tensor, target: Tensor, hidden: Tensor, factors: Tensor, weight: Tensor | None, normal: bool
) -> Tensor:
    """See `Kernels.patch_slopes`."""
    out, width = torch.empty_like(prediction), prediction.shape[1]
    if len(out):
        given = (prediction, target, hidden.to(torch.uint8), weight, factors)
        _slopes[(len(out),)](*given, out, width, LOW=out.dtype == torch.bfloat16, **_form(prediction, normal))
    return out


def _form(prediction: Tensor, normal: bool) -> dict[str, Any]:
    return {"NORMAL": normal, "WIDE": triton.next_power_of_2(prediction.shape[1])}
