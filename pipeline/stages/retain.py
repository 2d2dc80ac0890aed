"""Phase 2: ZeRO fine-tuning on retain shards, with or without a guard that holds the forget loss near lambda."""

from __future__ import annotations

import numpy as np

from pipeline import component
from pipeline.engine.backend import OptimizerConfig
from pipeline.engine.checkpoint import save_weights
from pipeline.engine.guard import Guard
from pipeline.records import Calibration
from pipeline.stages.forget import active_levels
from pipeline.stages.phase import Phase, retrain_steps
from pipeline.stages.runner import Job, Result, read_record

__all__ = ["run"]


def run(job: Job) -> Result:
    """Fine-tune and publish the unlearned model."""
    phase = Phase(job, "retain")
    calibration: Calibration = read_record(job, Calibration, "calibration.json")
    settings = component.decode_config("method", job.config.method).retain
    levels = active_levels(calibration)
    method = component.build("method", job.config.method, levels, phase.context)
    loss, guarded = method.retention()
    model = phase.loaded("forget", "forgotten")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [(phase.samples("retain"), settings.batch_size)]
    if guarded:
        forget = phase.samples("forget")
        active = [number for number, level in enumerate(levels) if level is not None]
        parts.append((forget.take(np.isin(forget.groups, active)), settings.guard_batch_size))
    feed = phase.feed(model, *parts)
    steps = max(1, round(settings.share * retrain_steps(job, phase.manifest)))
    optimizer = OptimizerConfig(
        learning_rate=settings.learning_rate, steps=steps, warmup_steps=settings.warmup_steps, clip=settings.clip
    )
    backend = phase.backend(model, feed, optimizer)
    state, reason = phase.fit(backend, feed, loss, steps=steps, guard=Guard())
    full = backend.weights()
    if job.first:
        save_weights(full, job.folder, "unlearned")
    outcome = phase.finish(state, reason, parameters=parameters)
    backend.close()
    facts = {**phase.facts(outcome), "guarded": guarded}
    return Result(outputs=phase.outputs("checkpoints/unlearned/model.safetensors"), facts=facts)
