"""Noisy Label, a baseline of Li et al. (arXiv 2402.00351): forget images are trained towards noise.

Noise is what a model that knows nothing would predict: random grey levels for pixels, random ids for codebook tokens.
Retained images have their plain loss beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.data.stream import Batch
from pipeline.methods.base import JointConfig, LossContext, Losses, PhasePlan, joint_losses
from pipeline.records import record

__all__ = ["Config", "NoisyLabel", "build"]


@record
class Config:
    """One phase."""

    retain: JointConfig = JointConfig()


class NoisyLabel:
    """L = mean loss of retained images + alpha * mean distance of forget predictions to random ones."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """The loss of (retained, forgotten)."""
        retained, forgotten = batch
        (kept,) = self._context.per_sample(model, retained)
        views = self._context.views(forgotten)
        predicted, shape = model(*views, "prediction").float(), self._context.shape()
        lost = shape.distance(predicted, shape.random_prediction(predicted.detach(), views[3]), views[2])
        return joint_losses(self._context, kept, retained, lost, forgotten, self._config.retain.forget_weight)

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(self.loss)


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> NoisyLabel:
    """Build the method from a decoded configuration."""
    return NoisyLabel(config, context)
