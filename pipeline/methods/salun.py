"""SalUn (Fan et al., ICLR 2024, arXiv 2310.12508): only the weights move in which the forget loss is steepest.

They move towards noisy labels on forget images, and by the plain loss on retained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pipeline.config import PositiveFloat
from pipeline.data.stream import Batch
from pipeline.methods import noisy_label
from pipeline.methods.base import JointConfig, LossContext, PhasePlan, plain_loss
from pipeline.models.base import ImageModel
from pipeline.records import record

__all__ = ["Config", "SalUn", "build"]


@record
class Config:
    """One phase."""

    retain: JointConfig = JointConfig()
    salient_share: PositiveFloat = 0.5
    """Share of all weights that may move."""


class SalUn:
    """`noisy_label`'s loss under a mask: the `salient_share` of all weights with the largest |gradient of the forget loss|."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context

    def saliency(self, model: ImageModel, batches: Iterator[Batch]) -> int:
        """Put a hook on every moving parameter that clears the gradient outside the mask; returns the gradients it took."""
        moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
        summed, samples = [torch.zeros_like(parameter) for parameter in moving], 0
        for batch in batches:
            losses = plain_loss(self._context)(model, batch)
            parts = torch.autograd.grad(losses.total, moving, allow_unused=True)
            summed = [place if part is None else place + part for place, part in zip(summed, parts, strict=True)]
            samples += losses.samples
        sizes = [self._context.sum(place).abs().float() for place in summed]
        flat = torch.cat([size.flatten() for size in sizes])
        allowed = min(len(flat), max(1, round(self._config.salient_share * len(flat))))
        threshold = torch.kthvalue(flat, len(flat) - allowed + 1).values
        for parameter, size in zip(moving, sizes, strict=True):
            salient = (size >= threshold) & (size > 0)  # where many have no gradient, the threshold itself is 0
            parameter.register_hook(_masked(salient.to(parameter.device)))
        return samples

    def retention(self) -> PhasePlan:
        """The whole method."""
        noisy = noisy_label.NoisyLabel(noisy_label.Config(retain=self._config.retain), self._context)
        return self._config.retain.plan(noisy.loss, prepare=self.saliency)


def _masked(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> SalUn:
    """Build the method from a decoded configuration."""
    return SalUn(config, context)
