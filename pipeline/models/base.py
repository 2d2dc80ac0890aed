"""What the pipeline asks of a model: a loss per sample to train on, and a completed image to judge.

Shapes: B images, C channels, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.draws import normal

__all__ = ["ImageModel", "Want", "certified_weights", "paste"]

Want = Literal["loss", "features", "prediction", "both"]


class ImageModel(nn.Module, abc.ABC):
    """An image-to-image model. All that needs weights passes through `forward`, so that an engine can wrap it."""

    image_size: int
    channels: int
    training_buffers: tuple[str, ...] = ()
    """Names of buffers that carry statistics of training data (batch statistics, codebook averages, EMA copies)."""
    probe_draws: int = 1
    """Draws whose losses are averaged where one number must stand for an image; above 1 where the loss is noisy."""
    gives_both: bool = False
    """Whether `forward` knows `both`; a model that does not is called twice."""

    @abc.abstractmethod
    def forward(
        self, visible_BCHW: Tensor, target_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor, want: Want = "loss"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The training loss of each sample, or what it is computed from.

        Args:
            visible_BCHW: degraded images, fp32 in [0, 1].
            target_BCHW: true images, fp32 in [0, 1].
            region_B1HW: bool, True where the task hides and success is judged.
            draws_B: int64; all randomness of a sample (mask, noise, timestep) is a function of its draw.
            want: `loss`: fp32 [B], each at least 0 · `features`: the encoder's output, fp32 [B, ...] ·
                `prediction`: what `distance` compares, fp32 [B, ...]; a function of the draws as the loss is · `both`: loss
                and prediction, where the model `gives_both`.
        """

    @abc.abstractmethod
    def complete(self, visible_BCHW: Tensor, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """The model's answer, fp32 [B, C, H, W] in [0, 1], with the known pixels of `visible_BCHW` put back."""

    @abc.abstractmethod
    def encoder(self) -> tuple[nn.Module, ...]:
        """The modules whose output is `features`; methods that move the encoder only train these."""

    @abc.abstractmethod
    def bottleneck(self) -> tuple[nn.Module, ...]:
        """The modules through which all content passes; a shadow model resets them."""

    def distance(self, prediction: Tensor, other: Tensor, region_B1HW: Tensor) -> Tensor:
        """How far a prediction is from another, fp32 [B]: the model's own measure, here the mean squared difference.

        A model that overrides `prediction` with something other than pixels says here how two of them compare. Needs no
        weights, so it may be called on the module inside an engine.
        """
        del region_B1HW
        return (prediction - other).square().flatten(1).mean(1)

    def judged(self, region_B1HW: Tensor, draws_B: Tensor) -> Tensor:
        """The pixels whose prediction training judges for these draws, bool [B, 1, H, W]; here the region.

        A model that hides other parts than the region in training says here which: of the rest no loss ever asked anything.
        """
        del draws_B
        return region_B1HW

    def random_prediction(self, prediction: Tensor, draws_B: Tensor) -> Tensor:
        """What a model that knows nothing would predict, of the shape of `prediction`: noise N(0.5, 0.25), clamped to [0, 1]."""
        noise = normal(draws_B, prediction[0].numel(), purpose=91).view_as(prediction)
        return (0.5 + 0.25 * noise).clamp(0, 1)

    def admit(self, region_B1HW: Tensor) -> None:
        """Raise ConfigError where the model cannot work on a task with such a region; asked before a run begins."""
        del region_B1HW

    def reset(self, module: nn.Module) -> None:
        """Give a module of `bottleneck` fresh random weights; a model whose library initialises otherwise overrides it."""
        for part in module.modules():
            if callable(again := getattr(part, "reset_parameters", None)):
                again()

    def prepare_unlearning(self) -> None:
        """Called on the original's weights before a phase of unlearning: freeze what is never unlearned."""

    def export(self, folder: Path) -> bool:
        """Write the weights as the model's own library saves them (`save_pretrained`); False if it has no such format."""
        del folder
        return False


def certified_weights(model: ImageModel, trains: Literal["all", "bottleneck"]) -> list[str]:
    """Names of the parameters that a certified phase puts noise on, in the model's order."""
    inside = {id(parameter) for module in model.bottleneck() for parameter in module.parameters()}
    return [name for name, parameter in model.named_parameters() if trains == "all" or id(parameter) in inside]


def paste(answer_BCHW: Tensor, visible_BCHW: Tensor, region_B1HW: Tensor) -> Tensor:
    """`answer` inside the region, `visible` outside it."""
    return torch.where(region_B1HW, answer_BCHW, visible_BCHW)
