"""Hide a centred square and ask for it back (inpainting)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from pipeline.config import Share
from pipeline.records import record

__all__ = ["CenterCrop", "Config", "build"]


@record
class Config:
    """Centre crop."""

    hidden_share: Share = 0.25
    """Share of the image's area that is hidden; the square's side is rounded to whole pixels."""
    fill: Annotated[float, Ge(0), Le(1)] = 0.5
    """Grey level shown in place of the hidden pixels, 0 to 1."""


class CenterCrop:
    """The task; see `pipeline.data.tasks.base.Task`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the centred square; see `Task.degrade`."""
        num, _, height, width = images_BCHW.shape
        side_h, side_w = (max(1, round(extent * self.config.hidden_share**0.5)) for extent in (height, width))
        top, left = (height - side_h) // 2, (width - side_w) // 2
        region = torch.zeros(num, 1, height, width, dtype=torch.bool, device=images_BCHW.device)
        region[:, :, top : top + side_h, left : left + side_w] = True
        return images_BCHW.masked_fill(region, self.config.fill), region


def build(config: Config) -> CenterCrop:
    """Build the task from a decoded configuration."""
    return CenterCrop(config)
