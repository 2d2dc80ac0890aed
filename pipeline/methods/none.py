"""Nothing is done: the original model, as the far end of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.methods.base import LossContext
from pipeline.records import record

__all__ = ["Config", "Nothing", "build"]


@record
class Config:
    """No phase."""


class Nothing:
    """A method without phases."""


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> Nothing:
    """Build the method from a decoded configuration."""
    return Nothing()
