"""Random Encoder, a baseline of Li et al. (arXiv 2402.00351): the encoder maps forget images to Gaussian noise.

The noise has mean and deviation of the original's output; on retained images the output is held at the original's.
Its released code weights the wrong images, so that forget images were left untouched. Here the two kinds come as two batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.data.stream import Batch
from pipeline.draws import normal
from pipeline.methods.base import JointConfig, LossContext, Losses, PhasePlan, joint_losses, mean_square
from pipeline.records import record

__all__ = ["Config", "RandomEncoder", "build"]


@record
class Config:
    """One phase that moves the encoder only."""

    retain: JointConfig = JointConfig(forget_weight=0.2)


class RandomEncoder:
    """L = mean |E(r) - E0(r)|^2 + alpha * mean |E(f) - z|^2, z ~ N(mean E0(f), var E0(f)); E0 is the original's encoder."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """The loss of (retained, forgotten)."""
        retained, forgotten = batch
        own, moved = self._context.per_sample(model, retained, forgotten, want="features")
        with torch.no_grad():
            before, aim = self._context.per_sample(self._context.teacher(), retained, forgotten, want="features")
        weight, flat = self._context.weights(forgotten), aim.flatten(1).double()
        sums = [(flat.sum(1) * weight).sum(), (flat.square().sum(1) * weight).sum(), weight.sum().double() * flat.shape[1]]
        total = self._context.sum(torch.stack(sums))
        mean = float(total[0] / total[2])
        deviation = max(0.0, float(total[1] / total[2]) - mean**2) ** 0.5
        draws = torch.from_numpy(forgotten.draws).to(aim.device)
        noise = mean + deviation * normal(draws, flat.shape[1], purpose=92).view_as(moved)
        kept, lost = mean_square(own, before), mean_square(moved, noise)
        return joint_losses(self._context, kept, retained, lost, forgotten, self._config.retain.forget_weight)

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(self.loss, trains=lambda model: model.encoder())


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> RandomEncoder:
    """Build the method from a decoded configuration."""
    return RandomEncoder(config, context)
