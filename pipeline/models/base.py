"""What the pipeline asks of a model: a loss per sample to train on, and a completed image to judge.

Shapes: B images, C channels, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

__all__ = ["ImageModel", "paste"]


class ImageModel(nn.Module, abc.ABC):
    """An image-to-image model. `forward` is the training loss, so that an engine can wrap the whole computation."""

    image_size: int
    channels: int
    training_buffers: tuple[str, ...] = ()
    """Names of buffers that carry statistics of training data; they must be declared, for later checks."""

    @abc.abstractmethod
    def forward(self, visible_BCHW: Tensor, target_BCHW: Tensor, region_B1HW: Tensor) -> Tensor:
        """Training loss of each sample.

        Args:
            visible_BCHW: degraded images, fp32 in [0, 1].
            target_BCHW: true images, fp32 in [0, 1].
            region_B1HW: bool, True where the task hides and success is judged.

        Returns:
            fp32 [B], each at least 0.
        """

    @abc.abstractmethod
    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor) -> Tensor:
        """The model's answer, fp32 [B, C, H, W] in [0, 1], with the known pixels of `visible_BCHW` put back."""

    @abc.abstractmethod
    def bottleneck(self) -> tuple[nn.Module, ...]:
        """The modules through which all content passes; a shadow model resets them."""


def paste(answer_BCHW: Tensor, visible_BCHW: Tensor, region_B1HW: Tensor) -> Tensor:
    """`answer` inside the region, `visible` outside it."""
    return torch.where(region_B1HW, answer_BCHW, visible_BCHW)
