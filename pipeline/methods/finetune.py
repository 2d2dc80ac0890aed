"""Fine-tuning on retained images alone, in the hope that the others fade."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.methods.base import LossContext, PhasePlan, RetainConfig, plain_loss
from pipeline.records import record

__all__ = ["Config", "Finetune", "build"]


@record
class Config:
    """Retention alone."""

    retain: RetainConfig = RetainConfig()


class Finetune:
    """The original's training loss on retained images."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(plain_loss(self._context))


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> Finetune:
    """Build the method from a decoded configuration."""
    return Finetune(config, context)
