"""Decoupling and knowledge retention: ascend on forget images to the level lambda, then fine-tune on retained ones.

After arXiv 2502.04260. The level is that of images the model never saw, so forget images end as unseen ones do, no
better and no worse. Plain fine-tuning after the ascent brings forgotten images back, because retained images teach the
same completion; a guard during retention prevents it. (Lambda, guard, imitation and distillation are ours, not the paper's.)

A level fixes the mean of a class's errors and leaves their distribution open: easy images end too hard, hard ones too
easy. The shadow that gave the level never saw the class, so the guard has the model imitate its answers instead. Single
images, of which no shadow is made, are held at their level.

What the original answers on retained images is what they are to teach again, without the noise of single images: a phase 2
that distils it needs little more than half the samples of one that learns from true pixels (benchmarks/results/methods.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from pipeline.config import NotNegative, NotNegativeFloat, Positive, PositiveFloat
from pipeline.data.stream import Batch
from pipeline.errors import ConfigError
from pipeline.methods.base import LossContext, Losses, PhasePlan, Views, group_means, mean_loss, plain_loss
from pipeline.models.base import ImageModel
from pipeline.privacy.mechanism import CertifyConfig, certify_config, mechanism_of
from pipeline.records import record

__all__ = ["AscentConfig", "CalibrationConfig", "Config", "Decouple", "RetentionConfig", "build"]

AboveOne = Annotated[float, Gt(1)]


@record
class CalibrationConfig:
    """How lambda is found when it is not given."""

    shadow_share: PositiveFloat = 0.08
    """Length of the shadow's retain-only training, as a share of the steps of retraining."""
    margin: NotNegativeFloat = 0.05
    """A group is taken as unseen already when its AUC's interval holds 0.5 or lies within 0.5 +- margin ..."""
    min_samples: Positive = 100
    """... and it has at least this many images: with fewer the test finds nothing because it has no power."""
    samples: Positive = 2000
    """Images measured per group."""


@record
class AscentConfig:
    """Phase 1."""

    passes: Positive = 2
    """Most passes over the forget images; a pass is always finished, so that each is seen equally often."""
    batch_size: Positive = 128
    """Global batch."""
    optimizer: Literal["adamw", "ascent"] = "adamw"
    """adamw, or the paper's own step theta + eta clip(gradient), which depends on weights and gradient alone."""
    learning_rate: PositiveFloat = 3e-4
    """Constant. A step of `ascent` is at most learning_rate * clip long over all weights together, so it needs more: try 0.1."""
    clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    reached: NotNegativeFloat = 0.9
    """The phase ends after a pass when each group's loss is at least this share of its lambda."""
    retain_floor: AboveOne = 2.0
    """Return to the last good state when unseen retained images lose more than this factor of the original's loss."""
    runaway: AboveOne = 4.0
    """Return to the last good state when a batch's forget loss exceeds this multiple of lambda."""
    probe_steps: Positive = 6
    """Steps between looks at the retain floor."""
    step_noise: NotNegativeFloat = 0.0
    """Standard deviation of Gaussian noise on each weight at each step of `ascent`. It is repeatable, and protects nothing."""
    ball: PositiveFloat | None = None
    """Largest distance of the weights from the original at each step of `ascent`, in L2 norm over all of them; null: any."""
    noise: NotNegativeFloat = 0.0
    """Standard deviation of Gaussian noise on each ascended weight. It buys a statement of closeness to the original, which is
    not unlearning: see `pipeline.report.claims`."""

    def __post_init__(self) -> None:
        """Refuse what only `ascent` has."""
        if self.optimizer == "adamw" and (self.step_noise or self.ball is not None):
            name = "step_noise" if self.step_noise else "ball"
            raise ConfigError(
                f"method.forget.{name}: AdamW's steps have none", "set method.forget.optimizer=ascent, or leave it out"
            )


@record
class RetentionConfig:
    """Phase 2."""

    share: PositiveFloat | None = None
    """Length: samples of both streams, as a share of those of retraining; at least 1 step. null: 0.042 where retained images
    teach the original's answers alone, else 0.075."""
    batch_size: Positive = 96
    """Global batch of retained images."""
    guard_batch_size: Positive = 32
    """Global batch of forget images that the guard reads beside it."""
    guard_weight: NotNegativeFloat = 0.2
    """Beta, the weight of the distance of a group's mean loss from its lambda."""
    imitation_weight: NotNegativeFloat = 0.5
    """Gamma, the weight of the distance of the model's answers from the shadow's, on classes."""
    distillation: Annotated[float, Ge(0), Le(1)] = 1.0
    """Alpha, how much of what retained images teach is the original's answer to them; the rest is the true image. 0 saves a
    forward pass of the original and its memory. Nothing is distilled where `retention` is plain."""
    learning_rate: PositiveFloat = 1e-3
    """Peak of AdamW's cosine schedule."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.8
    """Beta_1 of AdamW. A phase of a few dozen steps has no time for a mean over more than a few of them."""
    warmup_steps: NotNegative = 5
    """Linear rise to the peak."""
    clip: PositiveFloat = 1.0
    """Largest global gradient norm."""


@record
class Config:
    """Decouple, then retain."""

    level: Literal["calibrate"] | PositiveFloat | Mapping[Literal["class", "images"], PositiveFloat] = "calibrate"
    """Lambda: `calibrate`, one number, or a number for each kind of group."""
    retention: Literal["guarded", "level", "plain"] = "guarded"
    """Phase 2. guarded: classes imitate the shadow, single images are held at lambda; level: all are held at lambda; plain:
    retained images alone. The first two read forget images during phase 2, which excludes a certificate."""
    calibration: CalibrationConfig = CalibrationConfig()
    forget: AscentConfig = AscentConfig()
    certify: Literal["off", "noisy_retain", "projected", False] | CertifyConfig | None = None
    """Noisy steps between the phases, which alone can earn a certificate: off, the name of a mechanism, or its settings. Needs
    `retention: plain`."""
    retain: RetentionConfig = RetentionConfig()

    def __post_init__(self) -> None:
        """Refuse a certified phase whose settings cannot work, or whose promise retention would break."""
        certified = certify_config(self.certify)
        if certified is None:
            return
        if self.retention != "plain":
            message = f"method.certify with retention: {self.retention}, which reads forget images after the certified phase"
            raise ConfigError(message, "set method.retention=plain, or method.certify=off")
        mechanism_of(certified)


class Decouple:
    """The two losses. `levels[g]` is lambda of group g, or None for a group that needs no forgetting."""

    def __init__(self, config: Config, levels: Sequence[float | None], context: LossContext) -> None:
        self.config, self._context = config, context
        self._levels = levels
        self._imitated = sorted(context.shadowed) if config.retention == "guarded" else []
        self._held = [None if number in self._imitated else level for number, level in enumerate(levels)]

    def _hold(self, losses: Tensor, batch: Batch, levels: Sequence[float | None]) -> tuple[Tensor, dict[str, float], int]:
        """sum over groups g with a level of |mean loss of g - lambda_g|, as this rank's share of the gradient.

        Below lambda this is gradient ascent, above it descent: the sign comes from the global mean.
        """
        sums, means, counts = group_means(losses, batch, len(levels), self._context)
        total, measures = losses.sum() * 0.0, {}
        for number, level in enumerate(levels):
            if level is None or not counts[number]:
                continue
            sign = 1.0 if float(means[number]) > level else -1.0
            total = total + sums[number] * (sign * self._context.world_size / float(counts[number]))
            measures[f"forget_loss_{number}"] = float(means[number])
        return total, measures, int(counts.sum())

    def _distance(self, theirs: ImageModel, predicted: Tensor, views: Views) -> Tensor:
        """d(model, a frozen model) of each image where training judges it, fp32 [n]."""
        with torch.no_grad():
            answers = theirs(*views, "prediction").float()
        shape = self._context.shape()
        return shape.distance(predicted, answers, shape.judged(views[2], views[3]))

    def _imitate(self, predicted: Tensor, views: Views, batch: Batch) -> tuple[Tensor, float, int]:
        """mean d(model, shadow) over the images of shadowed groups: this rank's share, the mean, and of how many images."""
        ours = dataclasses.replace(batch, weights=batch.weights * np.isin(np.maximum(batch.groups, 0), self._imitated))
        return mean_loss(self._distance(self._context.shadow(), predicted, views), ours, self._context)

    def forget_loss(self, model: nn.Module, batch: Batch) -> Losses:
        """Phase 1: ascent on every group below its lambda; a group that overshoots within a pass is held."""
        (losses,) = self._context.per_sample(model, batch)
        total, measures, samples = self._hold(losses, batch, self._levels)
        return Losses(total=total, measures=measures, samples=samples)

    def retain_loss(self, model: nn.Module, batch: tuple[Batch, Batch]) -> Losses:
        """Phase 2: L_kept + beta * sum over held g of |mean loss of g - lambda_g| + gamma * mean d(model, shadow).

        L_kept is the mean over retained images of (1 - alpha) loss + alpha d(model, original).
        """
        weights, context, passes = self.config.retain, self._context, 1
        if self._imitated or weights.distillation:
            losses, predicted, views = context.with_predictions(model, *batch)
            passes = 1 if context.shape().gives_both else 2
        else:
            losses = context.per_sample(model, *batch)
        total, mean, samples = mean_loss(losses[0], batch[0], context)
        measures, count = {"retain_loss": mean}, 0
        if weights.distillation:
            distance, far, _ = mean_loss(self._distance(context.teacher(), predicted[0], views[0]), batch[0], context)
            total, measures = torch.lerp(total, distance, weights.distillation), measures | {"distillation": far}
        if self._imitated:
            distance, far, count = self._imitate(predicted[1], views[1], batch[1])
            total, measures = total + weights.imitation_weight * distance, measures | {"imitation": far}
        if any(level is not None for level in self._held):
            guard, found, count = self._hold(losses[1], batch[1], self._held)
            total, measures = total + weights.guard_weight * guard, measures | found
        return Losses(total=total, measures=measures, samples=passes * (samples + count))

    def forgetting(self) -> PhasePlan:
        """Phase 1: ascent until each group has reached its lambda."""
        ascent = self.config.forget
        return PhasePlan(
            loss=self.forget_loss,
            reads=("forget",),
            optimizer=ascent.optimizer,
            step_noise=ascent.step_noise,
            ball=ascent.ball,
            noise=ascent.noise,
            batch_sizes=(ascent.batch_size,),
            learning_rate=ascent.learning_rate,
            decay=False,
            clip=ascent.clip,
            passes=ascent.passes,
            bounds={f"forget_loss_{n}": ascent.runaway * level for n, level in enumerate(self._levels) if level is not None},
            levels=self._levels,
            reached=ascent.reached,
            retain_floor=ascent.retain_floor,
            probe_steps=ascent.probe_steps,
        )

    def retention(self) -> PhasePlan:
        """Phase 2; it reads forget images where it is guarded and a group is there to guard."""
        retain = self.config.retain
        guarded = self.config.retention != "plain" and any(level is not None for level in self._levels)
        distils = guarded and retain.distillation == 1
        return PhasePlan(
            loss=self.retain_loss if guarded else plain_loss(self._context),
            reads=("retain", "forget") if guarded else ("retain",),
            batch_sizes=(retain.batch_size, retain.guard_batch_size) if guarded else (retain.batch_size,),
            learning_rate=retain.learning_rate,
            momentum=retain.momentum,
            warmup_steps=retain.warmup_steps,
            clip=retain.clip,
            share=retain.share or (0.042 if distils else 0.075),
        )


def build(config: Config, levels: Sequence[float | None], context: LossContext) -> Decouple:
    """Build the method from a decoded configuration."""
    return Decouple(config, levels, context)
