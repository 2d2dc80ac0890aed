"""The controllable framework of Feng et al., ICLR 2025 (arXiv 2408.01689): a dynamic-barrier update of two objectives.

Utility falls as little as the wanted progress of forgetting allows. Its epsilon is a dial, **not** a privacy parameter.

f1 (forgetting) and f2 (utility) are the two terms of `li_et_al`. Each step goes along d = grad f2 + w * grad f1 with
w = max(0, (psi - <grad f1, grad f2>) / |grad f1|^2). The paper's control functions could not be read: psi = control *
|grad f1|^2 is our choice, so that f1 falls at least at `control` times the rate of plain descent on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.config import PositiveFloat
from pipeline.data.stream import Batch
from pipeline.errors import ConfigError
from pipeline.methods import li_et_al
from pipeline.methods.base import LossContext, Losses, PairedConfig, PhasePlan, joint_losses, mean_loss
from pipeline.records import record

__all__ = ["Config", "EpsConstrained", "build"]


@record
class Config:
    """One phase that moves the encoder only."""

    retain: PairedConfig = PairedConfig()
    control: PositiveFloat = 0.5
    """Wanted progress of forgetting in each step, as a share of what plain descent on it would make."""


class EpsConstrained:
    """Two gradients are kept, so memory grows by twice the moving weights; ZeRO 3 partitions them and is refused."""

    def __init__(self, config: Config, context: LossContext) -> None:
        self._config, self._context = config, context
        self._terms = li_et_al.LiEtAl(li_et_al.Config(), context).terms

    def loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """The loss of (retained, forgotten)."""
        weight = self._weight(batch)
        kept, lost = self._terms(model, batch)
        losses = joint_losses(self._context, kept, batch[0], lost, batch[1], weight)
        return Losses(total=losses.total, measures={**losses.measures, "weight": weight}, samples=2 * losses.samples)

    def _weight(self, batch: tuple[Batch, Batch]) -> float:
        """w of this step, from a forward pass of its own beside the engine.

        DeepSpeed begins a step's reduction with the first gradient that is taken of its engine's answers, whatever it is of.
        """
        bare = self._context.shape()
        moving = [parameter for parameter in bare.parameters() if parameter.requires_grad]
        if any(hasattr(parameter, "ds_id") for parameter in moving):
            raise ConfigError("method: eps_constrained needs whole gradients; ZeRO 3 partitions them", "set engine.zero_stage=2")
        kept, lost = self._terms(bare, batch)
        utility, _, _ = mean_loss(kept, batch[0], self._context)
        forgetting, _, _ = mean_loss(lost, batch[1], self._context)
        first, second = (self._whole(objective, moving) for objective in (forgetting, utility))
        length = float(first @ first)
        psi = self._config.control * length
        return max(0.0, (psi - float(first @ second)) / length) if length > 0 else 0.0

    def _whole(self, objective: Tensor, moving: list[nn.Parameter]) -> Tensor:
        """The gradient over all ranks as one vector, fp64."""
        parts = torch.autograd.grad(objective, moving, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(weights) if part is None else part for part, weights in zip(parts, moving, strict=True)]
        return self._context.sum(torch.cat([part.float().flatten() for part in flat])) / self._context.world_size

    def retention(self) -> PhasePlan:
        """The whole method."""
        return self._config.retain.plan(self.loss, trains=lambda model: model.encoder())


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> EpsConstrained:
    """Build the method from a decoded configuration."""
    return EpsConstrained(config, context)
