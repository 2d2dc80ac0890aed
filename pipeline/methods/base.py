"""What a method is: a loss for each of its phases. A loss sees global means, so that its sign agrees on every rank.

A method's section in a run file names its phases: `forget` (phase 1, over forget shards), `retain` (phase 2, over retain
shards, with or without forget images beside them), and `calibration` where it needs the level lambda. A phase that is not
in the section does not take place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.config import NotNegative, NotNegativeFloat, Positive, PositiveFloat
from pipeline.data.stream import Batch, to_tensor
from pipeline.data.tasks.base import Task
from pipeline.models.base import ImageModel, Want
from pipeline.records import record

__all__ = [
    "JointConfig",
    "LossContext",
    "Losses",
    "Method",
    "PairedConfig",
    "PhasePlan",
    "RetainConfig",
    "Views",
    "group_means",
    "joint_losses",
    "mean_loss",
    "mean_square",
    "plain_loss",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """One step's losses. total: this rank's share, fp32 [] · measures: global means · samples: in the global batch,
    times the gradients that were taken of each."""

    total: Tensor
    measures: Mapping[str, float]
    samples: int


def _no_model() -> ImageModel:
    raise RuntimeError("no model in this context")


Views = tuple[Tensor, Tensor, Tensor, Tensor]
"""Visible and true images, region and draws; see `ImageModel.forward`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossContext:
    """What a loss needs from outside: the task, the device, an exact sum over ranks, and the original.

    shape: the module that is trained, for `distance` and `random_prediction` alone: its weights may be partitioned ·
    teacher: the original, frozen; loaded at the first call · shadow: the model that calibration trained without the forget
    images, the same way; it stands in for a retrained model on the groups of `shadowed`.
    """

    task: Task
    device: torch.device
    world_size: int
    sum: Callable[[Tensor], Tensor]
    shape: Callable[[], ImageModel] = _no_model
    teacher: Callable[[], ImageModel] = _no_model
    shadow: Callable[[], ImageModel] = _no_model
    shadowed: frozenset[int] = frozenset()

    def views(self, *batches: Batch) -> Views:
        """Visible and true images, region and draws of one or more batches, joined; see `ImageModel.forward`."""
        images = torch.cat([to_tensor(batch.images, self.device) for batch in batches])
        draws = torch.cat([torch.from_numpy(batch.draws) for batch in batches]).to(self.device)
        visible, region = self.task.degrade(images, draws)
        return visible, images, region, draws

    def per_sample(self, model: nn.Module, *batches: Batch, want: Want = "loss") -> tuple[Tensor, ...]:
        """What the model gives for one or more batches in a single forward pass; fp32 [n, ...] each."""
        found: Tensor = model(*self.views(*batches), want).float()
        return torch.split(found, [len(batch.weights) for batch in batches])

    def with_predictions(
        self, model: nn.Module, *batches: Batch
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Views, ...]]:
        """Of each batch its losses, fp32 [n], the model's predictions, fp32 [n, ...], and views.

        One forward pass where the model can: ZeRO 3 then gathers its weights once.
        """
        views, sizes = self.views(*batches), [len(batch.weights) for batch in batches]
        if self.shape().gives_both:
            found, predicted = model(*views, "both")
        else:
            found, predicted = model(*views, "loss"), model(*views, "prediction")
        parts = zip(*(torch.split(view, sizes) for view in views), strict=True)
        return torch.split(found.float(), sizes), torch.split(predicted.float(), sizes), tuple(parts)

    def weights(self, batch: Batch) -> Tensor:
        """Weights of a batch's samples, fp32 [n]."""
        return torch.from_numpy(batch.weights).to(self.device)


Loss = Callable[[nn.Module, Any], Losses]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase of a method, as the stages carry it out.

    reads: streams in the order in which the loss gets their batches (alone, or as a tuple) · batch_sizes: global, one a stream
    · passes: over the first stream, or `share`: of the samples of retraining · trains: the modules that move, all without it ·
    start: from the weights of the phase before, from random ones, or from those of training that have seen no forget image,
    `latest` slices of it at most · as_training: with batch size, learning rate and warm-up of the run's training · prepare: is
    offered one pass of forget batches before the first step, may move parameters or put hooks on them, and returns the sample
    gradients it took · bounds: largest allowed value of measures · levels: the level to reach of each group, and `reached` how
    much of it ends phase 1 · retain_floor: phase 1 goes back to its last good state where unseen retained images lose more than
    this factor of the original's loss · momentum: beta_1 of AdamW · optimizer: AdamW, or plain steps
    (`pipeline.engine.fused.FusedAscent`) with `step_noise` on each weight and at most `ball` away from where the phase starts ·
    noise: standard deviation of Gaussian noise on each weight at the end.
    """

    loss: Loss
    reads: tuple[Literal["forget", "retain"], ...]
    batch_sizes: tuple[int, ...]
    learning_rate: float
    momentum: float = 0.9
    clip: float = 1.0
    decay: bool = True
    warmup_steps: int = 0
    passes: int | None = None
    share: float | None = None
    trains: Callable[[ImageModel], Iterable[nn.Module]] | None = None
    start: Literal["before", "random", "rewind"] = "before"
    latest: int | None = None
    as_training: bool = False
    prepare: Callable[[ImageModel, Iterator[Batch]], int] | None = None
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    levels: Sequence[float | None] = ()
    reached: float = 1.0
    retain_floor: float | None = None
    probe_steps: int = 6
    optimizer: Literal["adamw", "ascent"] = "adamw"
    step_noise: float = 0.0
    ball: float | None = None
    noise: float = 0.0


class Method(Protocol):
    """The phases of a method; asked only for those that its section names."""

    def forgetting(self) -> PhasePlan:
        """Phase 1."""
        ...

    def retention(self) -> PhasePlan:
        """Phase 2."""
        ...


@record
class RetainConfig:
    """A phase over retained images alone."""

    share: PositiveFloat = 0.15
    """Length: samples, as a share of those of retraining; at least 1 step."""
    batch_size: Positive = 128
    """Global batch of retained images."""
    learning_rate: PositiveFloat = 5e-4
    """Peak of AdamW's cosine schedule."""
    warmup_steps: NotNegative = 5
    """Linear rise to the peak."""
    clip: PositiveFloat = 1.0
    """Largest global gradient norm."""

    def plan(self, loss: Loss, **more: Any) -> PhasePlan:
        """The phase with this loss, which gets a batch of retained images."""
        return PhasePlan(
            loss=loss,
            reads=("retain",),
            batch_sizes=(self.batch_size,),
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            clip=self.clip,
            share=self.share,
            **more,
        )


@record
class PairedConfig:
    """A phase that reads retained and forget images side by side."""

    share: PositiveFloat = 0.15
    """Length: samples of both streams, as a share of those of retraining; at least 1 step."""
    batch_size: Positive = 96
    """Global batch of retained images."""
    forget_batch_size: Positive = 32
    """Global batch of forget images beside it."""
    learning_rate: PositiveFloat = 5e-4
    """Peak of AdamW's cosine schedule."""
    warmup_steps: NotNegative = 5
    """Linear rise to the peak."""
    clip: PositiveFloat = 1.0
    """Largest global gradient norm."""

    def plan(self, loss: Loss, **more: Any) -> PhasePlan:
        """The phase with this loss, which gets (retained, forgotten)."""
        return PhasePlan(
            loss=loss,
            reads=("retain", "forget"),
            batch_sizes=(self.batch_size, self.forget_batch_size),
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            clip=self.clip,
            share=self.share,
            **more,
        )


@record
class JointConfig(PairedConfig):
    """The same, with a weight between the two terms that is set beforehand."""

    forget_weight: NotNegativeFloat = 1.0
    """Alpha, the weight of the forget term."""


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


def mean_loss(losses: Tensor, batch: Batch, context: LossContext) -> tuple[Tensor, float, int]:
    """This rank's share of the mean over a global batch, that mean, and how many samples it is of.

    The share is scaled so that the average of the ranks' gradients is the gradient of the global mean.
    """
    weight = context.weights(batch)
    summed = context.sum(torch.stack([(losses.detach() * weight).sum(), weight.sum()]))
    count = max(1.0, float(summed[1]))
    return (losses * weight).sum() * (context.world_size / count), float(summed[0]) / count, int(summed[1])


def mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of each sample, fp32 [B], of two tensors [B, ...]."""
    return (first.float() - second.float()).square().flatten(1).mean(1)


def joint_losses(context: LossContext, kept: Tensor, retained: Batch, lost: Tensor, forgotten: Batch, weight: float) -> Losses:
    """mean of `kept` over the retained batch + weight * mean of `lost` over the forgotten one; fp32 [n] each.

    The two indicators are two batches, so that no label can swap them.
    """
    keep, keep_mean, keep_count = mean_loss(kept, retained, context)
    lose, lose_mean, lose_count = mean_loss(lost, forgotten, context)
    measures = {"retain_loss": keep_mean, "forget_loss": lose_mean}
    return Losses(total=keep + weight * lose, measures=measures, samples=keep_count + lose_count)


def plain_loss(context: LossContext) -> Loss:
    """The model's own training loss, averaged over the global batch: for training, shadows and plain retention."""

    def loss(model: nn.Module, batch: Batch) -> Losses:
        (losses,) = context.per_sample(model, batch)
        total, mean, samples = mean_loss(losses, batch, context)
        return Losses(total=total, measures={"loss": mean}, samples=samples)

    return loss
