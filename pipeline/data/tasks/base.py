"""A task is the degrading operator tau and the region in which success is judged.

Shapes: B images, C channels, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Task"]


class Task(Protocol):
    """Hides part of each image. A pure function of the images: equal images are degraded equally on every rank."""

    def degrade(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Degrade fp32 images in [0, 1].

        Returns:
            What the model sees, fp32 [B, C, H, W], and the judged region, bool [B, 1, H, W].
        """
        ...
