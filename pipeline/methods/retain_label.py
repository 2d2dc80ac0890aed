"""Retain Label, a baseline of Li et al. (arXiv 2402.00351): forget images get the original's answers for retained ones.

Each is trained towards what the original predicts for a retained image of the same batch, beside the plain loss of those.
Its released code weights the wrong images, so that forget images were left untouched. Here the two kinds come as two
batches. Which retained image stands in depends on the number of ranks, for a rank pairs within its own part of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pipeline.data.stream import Batch
from pipeline.methods.base import JointConfig, LossContext, Losses, PhasePlan, joint_losses
from pipeline.records import record

__all__ = ["Config", "RetainLabel", "build"]


@record
class Config:
    """One phase."""

    retain: JointConfig = JointConfig()


class RetainLabel:
    """L = mean loss of retained images + alpha * mean distance of forget predictions to retained images' ones."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """The loss of (retained, forgotten)."""
        retained, forgotten = batch
        (kept,) = self._context.per_sample(model, retained)
        views = self._context.views(forgotten)
        predicted = model(*views, "prediction").float()
        with torch.no_grad():
            theirs = self._context.teacher()(*self._context.views(retained), "prediction").float()
        real = torch.nonzero(self._context.weights(retained)).flatten()  # padding is no image
        if not len(real):  # nobody to stand in on this rank: its forget images wait for another step
            forgotten = dataclasses.replace(forgotten, weights=np.zeros_like(forgotten.weights))
            real = torch.arange(len(theirs), device=theirs.device)
        partner = real[torch.arange(len(predicted), device=real.device) % len(real)]
        lost = self._context.shape().distance(predicted, theirs[partner], views[2])
        return joint_losses(self._context, kept, retained, lost, forgotten, self._config.retain.forget_weight)

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(self.loss)


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> RetainLabel:
    """Build the method from a decoded configuration."""
    return RetainLabel(config, context)
