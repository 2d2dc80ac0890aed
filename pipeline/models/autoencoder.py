"""Convolutional autoencoder with a dense bottleneck, for small images and for tests of everything else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models.base import ImageModel, Want, paste
from pipeline.records import record

__all__ = ["Autoencoder", "Config", "build"]


@record
class Config:
    """Convolutional autoencoder."""

    image_size: int = 32
    """Height and width in pixels; a power of two, at least 8."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for colour."""
    width: int = 32
    """Channels after the first convolution; doubled at each of the first two further halvings. A multiple of 8."""
    latent: int = 256
    """Size of the bottleneck vector."""


class Autoencoder(ImageModel):
    """Halves the image down to 4 x 4, squeezes it through a vector, and doubles it back.

    GroupNorm instead of BatchNorm: no buffer carries statistics of training images.
    """

    gives_both = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.image_size, self.channels = config.image_size, config.channels
        depth = int(math.log2(config.image_size)) - 2
        widths = [config.channels, *(config.width * 2 ** min(level, 2) for level in range(depth))]
        self.cells = (widths[-1], 4, 4)
        flat = math.prod(self.cells)
        down: list[nn.Module] = []
        for before, after in pairwise(widths):
            down += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        up: list[nn.Module] = []
        for before, after in pairwise(widths[::-1]):
            up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            up += [nn.GroupNorm(8, after), nn.SiLU()] if after != config.channels else []
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.squeeze, self.expand = nn.Linear(flat, config.latent), nn.Linear(config.latent, flat)

    def _code(self, visible_BCHW: Tensor) -> Tensor:
        code: Tensor = self.squeeze(self.down(_laid_out(visible_BCHW.to(self.squeeze.weight.dtype))).flatten(1))
        return code

    def _answer(self, visible_BCHW: Tensor) -> Tensor:
        code = self._code(visible_BCHW)
        cells = functional.silu(self.expand(code)).unflatten(1, self.cells)
        return torch.sigmoid(self.up(_laid_out(cells)).float())

    def forward(
        self, visible_BCHW: Tensor, target_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor, want: Want = "loss"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mean squared error in the region; the bottleneck vector as features; the whole answer as prediction."""
        if want == "features":
            return self._code(visible_BCHW).float()
        answer = self._answer(visible_BCHW)
        if want == "prediction":
            return answer
        loss = self.distance(answer, target_BCHW, region_B1HW)
        return (loss, answer) if want == "both" else loss

    def distance(self, prediction: Tensor, other: Tensor, region_B1HW: Tensor) -> Tensor:
        """Mean squared difference of images in the region, fp32 [B]."""
        squared = (prediction - other).square().mean(dim=1, keepdim=True)
        weight = region_B1HW.float()
        return (squared * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)

    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """The region filled in; see `ImageModel.complete`."""
        return paste(self._answer(visible_BCHW), visible_BCHW, region_B1HW)

    def encoder(self) -> tuple[nn.Module, ...]:
        """The convolutions and the layer that squeezes them."""
        return self.down, self.squeeze

    def bottleneck(self) -> tuple[nn.Module, ...]:
        """The two dense layers around the vector."""
        return self.squeeze, self.expand


def _laid_out(images_BCHW: Tensor) -> Tensor:
    # A processor's convolutions take 3 to 10 % less time with channels last; what a GPU's take was not measured.
    on_cpu = images_BCHW.device.type == "cpu"
    return images_BCHW.contiguous(memory_format=torch.channels_last) if on_cpu else images_BCHW


def build(config: Config) -> Autoencoder:
    """Build with random weights from torch's current generator. Raises ConfigError for sizes that cannot work."""
    size = config.image_size
    if size < 8 or size & (size - 1):
        raise ConfigError(f"model.image_size: {size} is not a power of two of at least 8", "write e.g. 32")
    if config.width < 8 or config.width % 8:
        raise ConfigError(f"model.width: {config.width} is not a multiple of 8", "write e.g. 32")
    if config.latent < 1:
        raise ConfigError(f"model.latent: {config.latent} must be at least 1", "write e.g. 256")
    return Autoencoder(config)
