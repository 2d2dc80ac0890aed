"""Hide patches of a grid, chosen anew for each sample at each step, and ask for them back."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from pipeline.config import Positive, Share
from pipeline.draws import uniform
from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["Config", "RandomPatches", "build"]

PURPOSE = 101
"""Of `pipeline.draws`: the masks say nothing of what else is made from the same draw."""


@record
class Config:
    """The hidden patches."""

    hidden_share: Share = 0.25
    """Share of the patches that is hidden; their number is rounded, and the same in every image."""
    patch: Positive = 4
    """Side of a patch, in pixels; divides the image's sides."""
    fill: Annotated[float, Ge(0), Le(1)] = 0.5
    """Grey level shown in place of the hidden pixels, 0 to 1."""


class RandomPatches:
    """The task; see `pipeline.data.tasks.base.Task`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the patches that the draws choose; see `Task.degrade`. Raises ConfigError where patches do not fit."""
        num, _, height, width = images_BCHW.shape
        patch = self.config.patch
        rows, columns = height // patch, width // patch
        if height % patch or width % patch or rows * columns < 2:
            message = f"task: random_patches: images of {width} x {height} pixels do not fall into patches of {patch} x {patch}"
            raise ConfigError(message, "write a task.patch that divides the model's image size and is smaller")
        hidden = min(max(1, round(self.config.hidden_share * rows * columns)), rows * columns - 1)
        # Ranks and not a threshold, so that the number is exact; stable, so that equal numbers fall alike on any device.
        order = torch.argsort(uniform(draws_B.to(images_BCHW.device), rows * columns, PURPOSE), dim=1, stable=True)
        chosen = torch.zeros(num, rows * columns, dtype=torch.bool, device=images_BCHW.device)
        chosen.scatter_(1, order[:, :hidden], True)
        grid = chosen.view(num, 1, rows, columns)
        region = grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
        return images_BCHW.masked_fill(region, self.config.fill), region


def build(config: Config) -> RandomPatches:
    """Build the task from a decoded configuration."""
    return RandomPatches(config)
