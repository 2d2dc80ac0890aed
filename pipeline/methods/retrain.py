"""Training anew on retained images, from other random weights than the reference: what two retrained models differ by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pipeline.config import PositiveFloat
from pipeline.methods.base import LossContext, PhasePlan, plain_loss
from pipeline.privacy.exactness import Declarable
from pipeline.records import record

__all__ = ["Config", "Retrain", "build"]


@record
class RetrainingConfig:
    """Training as the run's `train` section says."""

    share: PositiveFloat = 1.0
    """Length, as a share of retraining."""


@record
class Config:
    """One phase from random weights."""

    retain: RetrainingConfig = RetrainingConfig()
    declared: Mapping[Declarable, str] = dataclasses.field(default_factory=dict)
    """Who answers for what is not measured: NAME by `inputs` (weights made elsewhere hold no forgotten image) or `settings`."""


class Retrain:
    """The exact method, and the measure of all others' cost."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def retention(self) -> PhasePlan:
        """The whole method; batch size and learning rate are those of the run's training."""
        return PhasePlan(
            loss=plain_loss(self._context),
            reads=("retain",),
            batch_sizes=(0,),
            learning_rate=0.0,
            share=self._config.retain.share,
            start="random",
            as_training=True,
        )


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> Retrain:
    """Build the method from a decoded configuration."""
    return Retrain(config, context)
