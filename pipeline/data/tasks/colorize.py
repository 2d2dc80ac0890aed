"""Show the brightness of colour images and ask for the colours (colourisation)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["Colorize", "Config", "build"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""


@record
class Config:
    """Nothing to choose."""


class Colorize:
    """The task; see `pipeline.data.tasks.base.Task`. The whole image is judged."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Put the luma into all channels; see `Task.degrade`. Raises ConfigError for images without colour."""
        num, channels, height, width = images_BCHW.shape
        if channels != 3:
            message = f"task: colorize: images of {channels} channel(s) have no colours to ask for"
            raise ConfigError(message, "set model.channels=3 with a source in colour, or choose another task")
        red, green, blue = (images_BCHW[:, place] * weight for place, weight in enumerate(LUMA))
        luma = (red + green + blue).clamp(0, 1)
        region = torch.ones(num, 1, height, width, dtype=torch.bool, device=images_BCHW.device)
        return luma[:, None].repeat(1, channels, 1, 1), region


def build(config: Config) -> Colorize:
    """Build the task from a decoded configuration."""
    return Colorize(config)
