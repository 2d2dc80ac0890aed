"""Masked patch loss in one pass each way: MAE's mean squared error of hidden patches, normalised by patch or not.

Plain torch keeps four to six tensors of the size of the prediction, and makes as many passes over all patches; here hidden
patches are read twice, and only the gradient is written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.kernels.choose import choose
from pipeline.kernels.reference import Kernels, Reference

__all__ = ["patch_loss"]


def patch_loss(
    prediction: Tensor,
    target: Tensor,
    hidden: Tensor,
    *,
    weight: Tensor | None = None,
    normal: bool = False,
    kernels: Kernels | None = None,
) -> Tensor:
    """Mean over a sample's hidden patches of the mean squared error of each (arXiv 2111.06377, section 3).

    Args:
        prediction: fp32 or bf16 [B, L, D].
        target: fp32 [B, L, D]; gets no gradient.
        hidden: bool [B, L]; a sample without a hidden patch has no loss: NaN.
        weight: fp32 [D], of each square; None: 1.
        normal: whether targets are brought to mean 0 and variance 1 in each patch.
        kernels: what computes; None: what is chosen for the device.

    Returns:
        fp32 [B].
    """
    if torch.compiler.is_compiling() or type(prediction) is not Tensor or prediction.is_meta:
        # A compiler sees into plain torch and fuses that itself; a tracer's tensors have no memory that a library could read.
        return _forward(prediction, target, hidden, weight, normal, Reference())
    found: Tensor = _PatchLoss.apply(prediction, target, hidden, weight, normal, kernels or choose(prediction.device))
    return found


def _forward(prediction: Tensor, target: Tensor, hidden: Tensor, weight: Tensor | None, normal: bool, kernels: Kernels) -> Tensor:
    flat = (prediction.flatten(0, 1), target.flatten(0, 1), hidden.flatten())
    return kernels.patch_errors(*flat, weight=weight, normal=normal).view_as(hidden).sum(1) / hidden.sum(1)


class _PatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, target: Tensor, hidden: Tensor, weight: Tensor | None, normal: bool, kernels: Kernels
    ) -> Tensor:
        prediction, target, hidden = prediction.contiguous(), target.contiguous(), hidden.contiguous()
        ctx.save_for_backward(prediction, target, hidden, weight)
        ctx.normal, ctx.kernels = normal, kernels
        return _forward(prediction, target, hidden, weight, normal, kernels)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target, hidden, weight = ctx.saved_tensors
        factors = (slope.float() * (2.0 / prediction.shape[2]) / hidden.sum(1))[:, None].expand_as(hidden)
        flat = (prediction.flatten(0, 1), target.flatten(0, 1), hidden.flatten(), factors.flatten().contiguous())
        found = ctx.kernels.patch_slopes(*flat, weight=weight, normal=ctx.normal)
        return found.view_as(prediction), None, None, None, None, None
