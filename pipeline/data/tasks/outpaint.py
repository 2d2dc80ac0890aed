"""Hide the border, keep the centre, and ask for the border back (outpainting)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from pipeline.config import Share
from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["Config", "Outpaint", "build"]


@record
class Config:
    """The hidden border."""

    hidden_share: Share = 0.75
    """Share of the image's area that is hidden; the sides of the kept centre are rounded to whole pixels."""
    fill: Annotated[float, Ge(0), Le(1)] = 0.5
    """Grey level shown in place of the hidden pixels, 0 to 1."""


class Outpaint:
    """The task; see `pipeline.data.tasks.base.Task`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the border; see `Task.degrade`. Raises ConfigError for images with a side of one pixel."""
        num, _, height, width = images_BCHW.shape
        if min(height, width) < 2:
            raise ConfigError(f"task: outpaint: images of {width} x {height} pixels have no border", "use larger images")
        share = (1 - self.config.hidden_share) ** 0.5
        kept_h, kept_w = (min(max(1, round(extent * share)), extent - 1) for extent in (height, width))
        top, left = (height - kept_h) // 2, (width - kept_w) // 2
        region = torch.ones(num, 1, height, width, dtype=torch.bool, device=images_BCHW.device)
        region[:, :, top : top + kept_h, left : left + kept_w] = False
        return images_BCHW.masked_fill(region, self.config.fill), region


def build(config: Config) -> Outpaint:
    """Build the task from a decoded configuration."""
    return Outpaint(config)
