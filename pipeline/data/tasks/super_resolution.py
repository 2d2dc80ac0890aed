"""Show the image at a fraction of its resolution and ask for the details (super-resolution)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from annotated_types import Ge
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["Config", "SuperResolution", "build"]


@record
class Config:
    """The loss of resolution."""

    factor: Annotated[int, Ge(2)] = 4
    """Squares of factor x factor pixels are averaged; divides the image's sides."""
    upsample: Literal["nearest", "bicubic"] = "nearest"
    """How the averages are brought back to the image's size; bicubic is clamped to 0 to 1."""


class SuperResolution:
    """The task; see `pipeline.data.tasks.base.Task`. The whole image is judged."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Average and scale up again; see `Task.degrade`. Raises ConfigError where the factor does not fit."""
        num, _, height, width = images_BCHW.shape
        factor = self.config.factor
        if height % factor or width % factor:
            message = f"task: super_resolution: images of {width} x {height} pixels do not fall into squares of {factor}"
            raise ConfigError(message, "write a task.factor that divides the model's image size")
        small = F.avg_pool2d(images_BCHW, factor)
        if self.config.upsample == "nearest":
            visible = small.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
        else:
            visible = F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
        region = torch.ones(num, 1, height, width, dtype=torch.bool, device=images_BCHW.device)
        return visible.clamp(0, 1), region


def build(config: Config) -> SuperResolution:
    """Build the task from a decoded configuration."""
    return SuperResolution(config)
