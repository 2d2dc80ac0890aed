"""How much each stage does: optimizer steps, samples read, and images that pass through a model without a gradient.

Pure functions of the run's configuration, the facts of its phases and the counts of its data. What only the run can show, as an
ascent that reaches its level early, is given as the most it can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.chain import StageSpec
from pipeline.config import RunConfig
from pipeline.orders import MeasureAnswer, PhaseFacts
from pipeline.records import record

__all__ = ["Counts", "StageWork", "reads", "unknown_work", "work_of"]

PROBE_IMAGES = 512
"""Images per group that stage forget looks at (`pipeline.stages.forget`)."""
FLOOR_IMAGES = 256
"""Unseen retained images that it looks at now and then."""


@record
class Counts:
    """Images of a run's splits; `unseen` is of those that calibration and evaluation may use, None where it is not known."""

    forget: int
    retain: int
    groups: int
    unseen: int | None = None

    @property
    def original(self) -> int:
        """All that the original was trained on."""
        return self.forget + self.retain


@record
class StageWork:
    """What a stage does."""

    facts: PhaseFacts | None = None
    """Of its training phase; None: it trains nothing."""
    steps: int | None = 0
    """Of the optimizer; None: not known while the data is not indexed."""
    samples: int = 0
    """Of a step, on all ranks together."""
    splits: Mapping[str, tuple[int, int]] | None = None
    """What it reads step by step: split -> (its images, images of a step)."""
    measured: int = 0
    """Forward passes of an image for its loss."""
    look: int = 0
    """Images of the largest set whose losses are measured together."""
    completed: int = 0
    """Images completed, by all models together."""
    models: int = 0
    """Models that complete them, held side by side."""
    at_most: bool = False
    """The run may find that it needs less."""


def _steps_a_pass(samples: int, batch: int) -> int:
    return -(-samples // min(batch, samples)) if samples else 0


def retrain_steps(config: RunConfig, counts: Counts) -> int:
    """Optimizer steps of retraining: the measure of the other phases' lengths (`pipeline.stages.phase`)."""
    return config.train.epochs * math.ceil(counts.retain / config.train.batch_size)


def unknown_work(spec: StageSpec, config: RunConfig, answer: MeasureAnswer) -> StageWork:
    """The work of one stage while nothing is known of the data: what a step does, and not how many there are."""
    facts, given = {item.phase: item for item in answer.phases}, {"train": config.original, "retrain": config.reference}
    name = spec.module if spec.module in facts else "train"
    trains = spec.module in ("forget", "certify", "retain") or given.get(spec.module) == spec.module
    trains = trains or (spec.module == "calibrate" and "calibrate" in facts)
    if not trains:
        return StageWork(steps=None)
    return StageWork(facts=facts[name], steps=None, samples=sum(facts[name].batch_sizes))


def work_of(spec: StageSpec, config: RunConfig, answer: MeasureAnswer, counts: Counts) -> StageWork:
    """The work of one stage of a run."""
    facts, train = {item.phase: item for item in answer.phases}, config.train
    if spec.module in ("train", "retrain"):
        split, given = ("original", config.original) if spec.module == "train" else ("retain", config.reference)
        images = counts.original if spec.module == "train" else counts.retain
        if given != spec.module:
            return StageWork()
        steps = train.epochs * _steps_a_pass(images, train.batch_size)
        return _training(facts["train"], steps, {split: (images, min(train.batch_size, images))})
    if spec.module == "calibrate":
        return _calibration(config, answer, facts.get("calibrate"), counts)
    if spec.module == "forget" and "forget" in facts:
        return _forgetting(answer, facts["forget"], counts)
    if spec.module == "certify" and "certify" in facts:
        noisy = facts["certify"]
        return _training(noisy, noisy.steps or 0, {"retain": (counts.retain, min(noisy.batch_sizes[0], counts.retain))})
    if spec.module == "retain" and "retain" in facts:
        found = facts["retain"]
        total = (found.share or 0.0) * retrain_steps(config, counts) * train.batch_size
        sizes = {"original": counts.original, "retain": counts.retain, "forget": counts.forget}
        splits = {name: (sizes[name], min(size, sizes[name])) for name, size in zip(found.reads, found.batch_sizes, strict=True)}
        first, batch = next(iter(splits.values()))
        passes = found.passes * _steps_a_pass(first, batch) if found.passes else 0
        return _training(found, passes or max(1, round(total / sum(found.batch_sizes))), splits)
    if spec.module == "evaluate":
        limit, models = config.evaluation.max_samples, 2 + (config.reference != "none")
        unseen = counts.unseen if counts.unseen is not None else limit
        # Of every group its forget images and as many unseen ones, and of the rest retained and unseen ones.
        groups = min(counts.forget, counts.groups * limit) + counts.groups * min(unseen, limit)
        images = groups + min(counts.retain, limit) + min(unseen, limit)
        return StageWork(completed=images * models, models=models, at_most=True)
    return StageWork()


def _training(facts: PhaseFacts, steps: int, splits: Mapping[str, tuple[int, int]]) -> StageWork:
    return StageWork(facts=facts, steps=steps, samples=sum(batch for _, batch in splits.values()), splits=splits)


def _calibration(config: RunConfig, answer: MeasureAnswer, facts: PhaseFacts | None, counts: Counts) -> StageWork:
    if not answer.calibration:
        return StageWork()
    share, limit = answer.calibration["shadow_share"], int(answer.calibration["samples"])
    unseen = 2 * limit if counts.unseen is None else min(counts.unseen, 2 * limit)
    images = (min(counts.forget, counts.groups * limit) + unseen) * answer.draws
    look = max(unseen, min(counts.forget, limit))
    if facts is None:
        return StageWork(measured=images, look=look, at_most=True)
    steps, batch = max(1, round(share * retrain_steps(config, counts))), min(config.train.batch_size, counts.retain)
    return StageWork(
        facts=facts,
        steps=steps,
        samples=batch,
        splits={"retain": (counts.retain, batch)},
        measured=2 * images,
        look=look,
        at_most=True,
    )


def _forgetting(answer: MeasureAnswer, facts: PhaseFacts, counts: Counts) -> StageWork:
    batch = min(facts.batch_sizes[0], counts.forget)
    per_pass, passes = _steps_a_pass(counts.forget, batch), facts.passes or 1
    looks = passes * per_pass // facts.probe_steps if facts.probe_steps else 0
    unseen = FLOOR_IMAGES if counts.unseen is None else min(counts.unseen, FLOOR_IMAGES)
    groups = min(counts.forget, counts.groups * PROBE_IMAGES) if facts.leveled else 0
    return StageWork(
        facts=facts,
        steps=passes * per_pass,
        samples=batch,
        splits={"forget": (counts.forget, batch)},
        measured=(looks * unseen + passes * groups) * answer.draws,
        look=max(unseen if looks else 0, min(groups, PROBE_IMAGES)),
        at_most=facts.leveled,
    )


def reads(work: StageWork, *, image_bytes: int, cache_bytes: int, ranks: int) -> float:
    """Images that all ranks together decode. A rank keeps what it has decoded, up to a bound; lanes change ranks with every pass,
    so that of S images in E passes N ranks decode N S (1 - (1 - 1/N)^E) as expected value, and those beyond the bound anew."""
    total = 0.0
    for images, batch in (work.splits or {}).values():
        passes = (work.steps or 0) * batch / images if images else 0.0
        kept = min(1.0, cache_bytes / image_bytes / images) if images else 0.0
        once = ranks * (1 - (1 - 1 / ranks) ** passes) if passes >= 1 else passes
        total += images * (kept * min(once, passes) + (1 - kept) * passes)
    return total
