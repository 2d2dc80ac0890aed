"""What a method is: a loss for each phase. A loss sees global means, so that its sign agrees on every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.stream import Batch, to_tensor
from pipeline.data.tasks.base import Task

__all__ = ["LossContext", "Losses", "group_means"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """One step's losses. total: this rank's share, fp32 [] · measures: global means · samples: in the global batch."""

    total: Tensor
    measures: Mapping[str, float]
    samples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossContext:
    """What a loss needs from outside: the task, the device, and an exact sum over ranks."""

    task: Task
    device: torch.device
    world_size: int
    sum: Callable[[Tensor], Tensor]

    def per_sample(self, model: nn.Module, *batches: Batch) -> tuple[Tensor, ...]:
        """Training losses of one or more batches in a single forward pass; fp32 [n] each."""
        images = torch.cat([to_tensor(batch.images, self.device) for batch in batches])
        visible, region = self.task.degrade(images)
        losses: Tensor = model(visible, images, region).float()
        return torch.split(losses, [len(batch.weights) for batch in batches])

    def weights(self, batch: Batch) -> Tensor:
        """Weights of a batch's samples, fp32 [n]."""
        return torch.from_numpy(batch.weights).to(self.device)


def group_means(losses: Tensor, batch: Batch, groups: int, context: LossContext) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of losses by group, on this rank with gradient, and over all ranks without.

    Args:
        losses: fp32 [n].
        groups: number of groups G; a sample of group -1 counts as group 0 of a batch without groups.

    Returns:
        This rank's sums [G] with gradient, global means [G] (fp64; 0 where a group has no sample), global counts [G].
    """
    index = torch.from_numpy(batch.groups).to(losses.device).clamp_min(0)
    weight = context.weights(batch)
    sums = torch.zeros(groups, device=losses.device).index_add(0, index, losses * weight)
    counts = torch.zeros(groups, device=losses.device).index_add(0, index, weight)
    total = context.sum(torch.cat([sums.detach(), counts]))
    return sums, total[:groups] / total[groups:].clamp_min(1), total[groups:]


def plain_loss(context: LossContext) -> Callable[[nn.Module, Any], Losses]:
    """The model's own training loss, averaged over the global batch: for training, shadows and plain retention."""

    def loss(model: nn.Module, batch: Batch) -> Losses:
        (losses,) = context.per_sample(model, batch)
        sums, means, counts = group_means(losses, dataclasses.replace(batch, groups=batch.groups * 0), 1, context)
        total = sums[0] * context.world_size / float(counts[0])
        return Losses(total=total, measures={"loss": float(means[0])}, samples=int(counts[0]))

    return loss
