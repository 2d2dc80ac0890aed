"""SCRUB (Kurmanji et al., NeurIPS 2023, arXiv 2302.09880): a student disobeys its teacher on forget images only.

The teacher is the original. Phase 1 takes the maximising steps, over forget shards; phase 2 the minimising ones. (The paper
alternates passes of both kinds; with one maximising pass the order is the same.) The student starts as its teacher's copy,
where their distance is least and has no gradient. Dropout or batch statistics would lead away from there; a model need have
neither, so phase 1 sets out from weights a thousandth beside the teacher's. (This is ours, not the paper's.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline.config import NotNegativeFloat, Positive, PositiveFloat
from pipeline.data.stream import Batch
from pipeline.draws import normal
from pipeline.methods.base import LossContext, Losses, PhasePlan, RetainConfig, mean_loss
from pipeline.models.base import ImageModel
from pipeline.records import record

__all__ = ["Config", "Scrub", "build"]

STEP_ASIDE = 1e-3
"""Deviation of the student's first weights from its teacher's, as a share of a tensor's root mean square."""


@record
class DisobeyConfig:
    """Phase 1."""

    passes: Positive = 1
    """Passes over the forget images."""
    batch_size: Positive = 128
    """Global batch."""
    learning_rate: PositiveFloat = 3e-4
    """AdamW, constant."""
    clip: PositiveFloat = 1.0
    """Largest global gradient norm."""


@record
class ObeyConfig(RetainConfig):
    """Phase 2."""

    teacher_weight: NotNegativeFloat = 1.0
    """Weight of the distance to the teacher, beside the plain loss."""


@record
class Config:
    """Disobey, then obey."""

    forget: DisobeyConfig = DisobeyConfig()
    retain: ObeyConfig = ObeyConfig()


class Scrub:
    """Phase 1: L = - mean d(student, teacher) on forget images. Phase 2: L = mean (loss + alpha * d) on retained ones."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def _distance(self, model: nn.Module, batch: Batch) -> Tensor:
        views = self._context.views(batch)
        with torch.no_grad():
            theirs = self._context.teacher()(*views, "prediction").float()
        return self._context.shape().distance(model(*views, "prediction").float(), theirs, views[2])

    def disobey(self, model: nn.Module, batch: Batch) -> Losses:
        """Phase 1's loss of a batch of forget images."""
        total, mean, samples = mean_loss(self._distance(model, batch), batch, self._context)
        return Losses(total=-total, measures={"distance": mean}, samples=samples)

    def obey(self, model: nn.Module, batch: Batch) -> Losses:
        """Phase 2's loss of a batch of retained images."""
        (plain,) = self._context.per_sample(model, batch)
        losses = plain + self._config.retain.teacher_weight * self._distance(model, batch)
        total, mean, samples = mean_loss(losses, batch, self._context)
        return Losses(total=total, measures={"loss": mean}, samples=samples)

    def step_aside(self, model: ImageModel, batches: Iterator[Batch]) -> int:
        """Move the weights a little, the same on every rank; looks at no batch and takes no gradient."""
        del batches
        for number, weights in enumerate(parameter for parameter in model.parameters() if parameter.requires_grad):
            noise = normal(torch.tensor([number], device=weights.device), weights.numel(), purpose=94).view_as(weights)
            with torch.no_grad():
                weights.add_(STEP_ASIDE * weights.square().mean().sqrt() * noise)
        return 0

    def forgetting(self) -> PhasePlan:
        """Phase 1."""
        forget = self._config.forget
        return PhasePlan(
            loss=self.disobey,
            reads=("forget",),
            batch_sizes=(forget.batch_size,),
            learning_rate=forget.learning_rate,
            clip=forget.clip,
            decay=False,
            passes=forget.passes,
            prepare=self.step_aside,
        )

    def retention(self) -> PhasePlan:
        """Phase 2."""
        return self._config.retain.plan(self.obey)


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> Scrub:
    """Build the method from a decoded configuration."""
    return Scrub(config, context)
