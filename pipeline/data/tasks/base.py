"""A task is the degrading operator tau and the region in which success is judged.

Shapes: B images, C channels, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Task"]


class Task(Protocol):
    """Hides part of each image. A pure function of images and draws: the same on every rank."""

    def degrade(self, images_BCHW: Tensor, draws_B: Tensor) -> tuple[Tensor, Tensor]:
        """Degrade fp32 images in [0, 1].

        Args:
            images_BCHW: the images.
            draws_B: int64; where the operator is random, a function of the sample's draw (`pipeline.draws`).

        Returns:
            What the model sees, fp32 [B, C, H, W], and the judged region, bool [B, 1, H, W].
        """
        ...
