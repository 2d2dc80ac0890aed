"""Going back to the last weights of training that saw no forgotten image, and training on from there on retained ones.

SISA within one model (Bourtoule et al. 2021, arXiv 1912.03817): with `train.slices` above 1 training keeps the weights after
each slice, and its data-order ledger shows by a digest which of them hold nothing of the forgotten images. The nearer to the
last slice these were, the less is trained again. Where the first slice holds one, this is retraining.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pipeline.config import NotNegative
from pipeline.methods.base import LossContext, PhasePlan, plain_loss
from pipeline.privacy.exactness import Declarable
from pipeline.records import record

__all__ = ["Config", "Rewind", "RewindingConfig", "build"]


@record
class RewindingConfig:
    """Training on, as the run's `train` section says."""

    latest: NotNegative | None = None
    """Go back at least to the end of this slice, and for 0 to random weights; null: no further than must be."""


@record
class Config:
    """One phase, from the rewind point."""

    retain: RewindingConfig = RewindingConfig()
    declared: Mapping[Declarable, str] = dataclasses.field(default_factory=dict)
    """Who answers for what is not measured: NAME by `inputs` (weights made elsewhere hold no forgotten image) or `settings`."""


class Rewind:
    """Exact, at a part of retraining's cost."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def retention(self) -> PhasePlan:
        """The whole method; its length is known when the ledger is read, and is that of retraining at most."""
        return PhasePlan(
            loss=plain_loss(self._context),
            reads=("retain",),
            batch_sizes=(0,),
            learning_rate=0.0,
            share=1.0,
            start="rewind",
            latest=self._config.retain.latest,
            as_training=True,
        )


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> Rewind:
    """Build the method from a decoded configuration."""
    return Rewind(config, context)
