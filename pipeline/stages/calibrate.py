"""Find the level lambda of each group of forget images, without ever looking at the retrained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline import component
from pipeline.decode import canonical
from pipeline.engine.backend import OptimizerConfig
from pipeline.engine.checkpoint import TrainState, save_weights
from pipeline.engine.guard import Guard
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.base import Interval, Resampling
from pipeline.evaluation.levels import held_out_weights, shadow_bracket
from pipeline.evaluation.membership import membership_auc
from pipeline.methods.base import plain_loss
from pipeline.models.base import ImageModel
from pipeline.records import Calibration, Group, GroupLevel
from pipeline.stages.phase import Phase, choose, retrain_steps
from pipeline.stages.runner import Job, Result
from pipeline.storage import publish_bytes

__all__ = ["run"]

RESAMPLES = 500
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Losses of one model: on each group's forget images, and on unseen images by label."""

    forget: list[np.ndarray]
    unseen: np.ndarray
    unseen_labels: np.ndarray
    retained: np.ndarray
    """bool over `unseen`: labels of which no whole class is forgotten"""


class Calibrator:
    """The images that calibration looks at, and the losses of a model on them."""

    def __init__(self, phase: Phase, model: ImageModel, limit: int) -> None:
        self.phase, self.groups = phase, phase.manifest.groups
        forget, unseen = phase.samples("forget"), phase.samples("calibration")
        if not len(unseen):
            raise ConfigError("calibration: the source has no unseen images", "give the source unseen images")
        self.readers = phase.reader(forget, model), phase.reader(unseen, model)
        self.rows = [choose(forget, phase.seed, limit, forget.groups == n) for n in range(len(self.groups))]
        self.forget_labels = [forget.labels[rows] for rows in self.rows]
        classes = [label for group in self.groups if group.kind == "class" for label in group.labels]
        wanted = np.isin(unseen.labels, classes)
        self.unseen = np.sort(np.concatenate([choose(unseen, phase.seed, limit, mask) for mask in (wanted, ~wanted)]))
        self.labels, self.retained = unseen.labels[self.unseen], ~wanted[self.unseen]
        if not self.retained.any():
            raise ConfigError("calibration: no unseen image of a retained class", "give the source more unseen images")

    def measure(self, model: Any) -> Measured:
        """Losses of a model on all of them."""
        return Measured(
            forget=[self.phase.losses(model, self.readers[0], rows) for rows in self.rows],
            unseen=self.phase.losses(model, self.readers[1], self.unseen),
            unseen_labels=self.labels,
            retained=self.retained,
        )


def run(job: Job) -> Result:
    """Measure the original, train a shadow if a class needs one, and publish `calibration.json` and the shadow."""
    phase = Phase(job, job.spec.module)
    config = component.decode_config("method", job.config.method)
    original = phase.loaded("train", "original")
    original.prepare_unlearning()  # lambda is a level of the loss that the phases will see
    calibrator = Calibrator(phase, original, config.calibration.samples)
    first = calibrator.measure(original)
    retain_error = float(first.unseen[first.retained].mean())
    state, shadow = TrainState(), None
    if config.level == "calibrate" and any(group.kind == "class" for group in phase.manifest.groups):
        state, shadow = _shadow(phase, original, calibrator, config.calibration.shadow_share)
    levels = tuple(
        _level(group, number, config, first, shadow, calibrator, job.config.seed)
        for number, group in enumerate(phase.manifest.groups)
    )
    if job.first:
        record = Calibration(levels=levels, retain_error=retain_error, sample_gradients=state.sample_gradients)
        publish_bytes(job.path(job.own("calibration.json")), canonical(record))
    reason = "shadow trained" if shadow else "no shadow needed"
    if already := [level.group for level in levels if level.already_unseen]:
        reason += f"; already unseen to the original: {', '.join(already)}"
    outcome = phase.finish(state, reason)
    files = phase.outputs(job.own("checkpoints/shadow/model.safetensors")) if shadow else phase.outputs()[:1]
    return Result(outputs=(job.own("calibration.json"), *files), facts=phase.facts(outcome))


def _shadow(phase: Phase, model: ImageModel, calibrator: Calibrator, share: float) -> tuple[TrainState, Measured]:
    """Reset the bottleneck, train on retained images for `share` of retraining, and measure."""
    torch.manual_seed(phase.seed)
    for part in model.bottleneck():
        model.reset(part)
    settings = phase.job.config.train
    feed = phase.feed(model, (phase.samples("retain"), settings.batch_size))
    steps = max(1, round(share * retrain_steps(phase.job, phase.manifest)))
    optimizer = OptimizerConfig(
        learning_rate=settings.learning_rate, steps=steps, warmup_steps=settings.warmup_steps, weight_decay=settings.weight_decay
    )
    backend = phase.backend(model, feed, optimizer)
    state, reason = phase.fit(backend, feed, plain_loss(phase.context), steps=steps, guard=Guard())
    if reason != "budget":
        raise CheckpointError(f"calibrate: the shadow's training failed: {reason}", "lower train.learning_rate")
    with backend.evaluating() as engine:
        measured = calibrator.measure(engine)
    full = backend.weights()
    if phase.job.first:
        save_weights(full, phase.job.home, "shadow")  # phase 2 asks it how unseen images are answered
    backend.close()
    return state, measured


def _level(
    group: Group, number: int, config: Any, first: Measured, shadow: Measured | None, calibrator: Calibrator, seed: int
) -> GroupLevel:
    """Lambda of one group, and whether its images already look unseen to the original."""
    forget = first.forget[number]
    resampling = Resampling(seed=seed, resamples=RESAMPLES, confidence=CONFIDENCE)
    same = np.isin(first.unseen_labels, group.labels) & (first.retained if group.kind == "images" else ~first.retained)
    weights = held_out_weights(first.unseen_labels[same], calibrator.forget_labels[number])
    reference: np.ndarray | None = None
    given = config.level if isinstance(config.level, float | Mapping) else None
    if given is not None:
        level = given if isinstance(given, float) else given.get(group.kind)
        if level is None:
            raise ConfigError(f"method.level: no number for groups of kind '{group.kind}'", f"add {group.kind}: NUMBER")
        low = high = level
        reference = first.unseen[same] if group.kind == "images" and same.any() else None
    elif group.kind == "images":
        if not same.any():
            raise ConfigError(
                f"method.level: no unseen image has a label of group '{group.name}'",
                "give the source more unseen images, or give a number",
            )
        reference = first.unseen[same]
        level = float(weights @ reference)
        spread = resampling.mean(reference, f"level {number}")
        low, high = level * spread.low / spread.value, level * spread.high / spread.value
    else:
        assert shadow is not None  # run() trained one for this kind
        retained = first.retained
        low, level, high = shadow_bracket(
            float(shadow.forget[number].mean()), float(shadow.unseen[retained].mean()), float(first.unseen[retained].mean())
        )
        reference = shadow.forget[number] * (level / float(shadow.forget[number].mean()))
    auc = membership_auc(forget, reference, resampling, f"unseen already {number}") if reference is not None else None
    return GroupLevel(
        group=group.name,
        method="shadow" if given is None and group.kind == "class" else "held_out" if given is None else "number",
        level=level,
        low=low,
        high=high,
        original_error=float(forget.mean()),
        auc=auc.value if auc else None,
        auc_low=auc.low if auc else None,
        auc_high=auc.high if auc else None,
        already_unseen=len(forget) >= config.calibration.min_samples and _unremarkable(auc, config.calibration.margin),
        samples=len(forget),
    )


def _unremarkable(auc: Interval | None, margin: float) -> bool:
    """Two-sided: the interval holds 0.5, or lies within the margin around it. Without a reference nothing is known."""
    if auc is None:
        return False
    return auc.low <= 0.5 <= auc.high or (auc.low >= 0.5 - margin and auc.high <= 0.5 + margin)
