"""Add Gaussian noise, anew for each sample at each step, and ask for the clean image."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from pipeline.draws import normal
from pipeline.records import record

__all__ = ["Config", "Denoise", "build"]

PURPOSE = 102
"""Of `pipeline.draws`: the noise is independent of what else is made from the same draw."""


@record
class Config:
    """The noise."""

    sigma: Annotated[float, Gt(0), Le(1)] = 0.2
    """Standard deviation before clamping, where black is 0 and white is 1."""


class Denoise:
    """The task; see `pipeline.data.tasks.base.Task`. The whole image is judged."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Add N(0, sigma^2) to every value and clamp to [0, 1]; see `Task.degrade`."""
        num, channels, height, width = images_BCHW.shape
        noise = normal(draws_B.to(images_BCHW.device), channels * height * width, PURPOSE).view_as(images_BCHW)
        region = torch.ones(num, 1, height, width, dtype=torch.bool, device=images_BCHW.device)
        return (images_BCHW + self.config.sigma * noise).clamp(0, 1), region


def build(config: Config) -> Denoise:
    """Build the task from a decoded configuration."""
    return Denoise(config)
