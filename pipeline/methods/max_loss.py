"""Max Loss, a baseline of Li et al. (arXiv 2402.00351): retain loss minus the weighted forget loss, whole model.

Nothing bounds the second term; gradients are clipped, and a loss that is not finite ends the phase at its last good state.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.data.stream import Batch
from pipeline.methods.base import JointConfig, LossContext, Losses, PhasePlan, joint_losses
from pipeline.records import record

__all__ = ["Config", "MaxLoss", "build"]


@record
class Config:
    """One phase."""

    retain: JointConfig = JointConfig(forget_weight=0.2)


class MaxLoss:
    """L = mean loss of retained images - alpha * mean loss of forget images."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """The loss of (retained, forgotten)."""
        kept, lost = self._context.per_sample(model, *batch)
        return joint_losses(self._context, kept, batch[0], lost, batch[1], -self._config.retain.forget_weight)

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(self.loss)


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> MaxLoss:
    """Build the method from a decoded configuration."""
    return MaxLoss(config, context)
