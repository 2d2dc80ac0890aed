"""Li, Hsu, Chen & Marculescu, ICLR 2024 (arXiv 2402.00351): the encoder takes forget images for Gaussian noise.

It gives for them what the original's encoder gives for noise, and for retained images what it gave before.
Only the encoder moves; the decoder still holds what it learnt. Its target is noise, not a retrained model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data.stream import Batch
from pipeline.draws import normal
from pipeline.methods.base import JointConfig, LossContext, Losses, PhasePlan, joint_losses, mean_square
from pipeline.records import record

__all__ = ["Config", "LiEtAl", "build"]


@record
class Config:
    """One phase that moves the encoder only."""

    retain: JointConfig = JointConfig(forget_weight=0.2)


class LiEtAl:
    """L = mean |E(r) - E0(r)|^2 + alpha * mean |E(f) - E0(n)|^2 (Eq. 10 with Sigma = I); n is a Gaussian image."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def terms(self, model: nn.Module, batch: tuple[Batch, Batch]) -> tuple[Tensor, Tensor]:
        """Both squared distances of (retained, forgotten), fp32 [n] each."""
        retained, forgotten = batch
        own, moved = self._context.per_sample(model, retained, forgotten, want="features")
        _, images, region, draws = self._context.views(forgotten)
        with torch.no_grad():
            teacher = self._context.teacher()
            (before,) = self._context.per_sample(teacher, retained, want="features")
            noise = _gaussian_images(images, draws)
            visible, _ = self._context.task.degrade(noise, draws)
            aim = teacher(visible, noise, region, draws, "features")
        return mean_square(own, before), mean_square(moved, aim)

    def loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """The loss of (retained, forgotten)."""
        kept, lost = self.terms(model, batch)
        return joint_losses(self._context, kept, batch[0], lost, batch[1], self._config.retain.forget_weight)

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(self.loss, trains=lambda model: model.encoder())


def _gaussian_images(images_BCHW: Tensor, draws_B: Tensor) -> Tensor:
    """Gaussian images with mean and deviation of each image, clamped to [0, 1]; fp32 [B, C, H, W]."""
    noise = normal(draws_B, images_BCHW[0].numel(), purpose=93).view_as(images_BCHW)
    flat = images_BCHW.flatten(1)
    mean, deviation = (value[:, None, None, None] for value in (flat.mean(1), flat.std(1)))
    return (mean + deviation * noise).clamp(0, 1)


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> LiEtAl:
    """Build the method from a decoded configuration."""
    return LiEtAl(config, context)
