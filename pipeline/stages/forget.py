"""Phase 1: gradient ascent on forget shards to the level lambda, under a guard, each image seen equally often."""

from __future__ import annotations

import numpy as np

from pipeline import component
from pipeline.engine.backend import OptimizerConfig
from pipeline.engine.checkpoint import TrainState, save_weights
from pipeline.engine.guard import Guard, Verdict
from pipeline.records import Calibration
from pipeline.stages.phase import Phase, choose
from pipeline.stages.runner import Job, Result, read_record

__all__ = ["active_levels", "run"]

PROBE_IMAGES = 512
"""Images per group in a probe: enough for a mean within a few per cent, cheap beside a pass."""


def active_levels(calibration: Calibration) -> list[float | None]:
    """Lambda of each group, in the manifest's order; None where the images looked unseen from the start."""
    return [None if level.already_unseen else level.level for level in calibration.levels]


def run(job: Job) -> Result:
    """Ascend, and publish the weights of the last good state with the reason for stopping."""
    phase = Phase(job, "forget")
    calibration: Calibration = read_record(job, Calibration, "calibration.json")
    settings = component.decode_config("method", job.config.method).ascent
    method = component.build("method", job.config.method, active_levels(calibration), phase.context)
    levels = active_levels(calibration)
    model = phase.loaded("train", "original")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    forget = phase.samples("forget")
    forget = forget.take(np.isin(forget.groups, [number for number, level in enumerate(levels) if level is not None]))
    weights = "checkpoints/forgotten/model.safetensors"
    if not len(forget):
        if job.first:
            save_weights({name: tensor.cpu() for name, tensor in model.state_dict().items()}, job.folder, "forgotten")
        outcome = phase.finish(TrainState(), "every group already looks unseen to the original", parameters=parameters)
        return Result(outputs=(phase.outputs()[0], weights), facts=phase.facts(outcome))

    feed = phase.feed(model, (forget, settings.batch_size))
    per_pass = feed.streams[0].steps_per_pass
    optimizer = OptimizerConfig(
        learning_rate=settings.learning_rate, steps=settings.passes * per_pass, decay=False, clip=settings.clip
    )
    reader = phase.reader(forget, model)
    probes = {n: choose(forget, phase.seed, PROBE_IMAGES, forget.groups == n) for n, lv in enumerate(levels) if lv is not None}
    unseen = phase.samples("calibration")
    classes = [label for group in phase.manifest.groups if group.kind == "class" for label in group.labels]
    watch = phase.reader(unseen, model)
    watched = choose(unseen, phase.seed, PROBE_IMAGES, ~np.isin(unseen.labels, classes))
    backend = phase.backend(model, feed, optimizer)
    floor = settings.retain_floor * calibration.retain_error

    def probe(done: int) -> Verdict | None:
        """Look at the retain floor now and then, and after each pass whether every group has reached its level."""
        end_of_pass = done % per_pass == 0
        if not end_of_pass and done % settings.probe_steps:
            return None
        with backend.evaluating() as engine:
            if len(watched) and (retained := float(phase.losses(engine, watch, watched).mean())) > floor:
                return Verdict(act="back", reason=f"retain floor: unseen retained loss {retained:.4g} above {floor:.4g}")
            if not end_of_pass:
                return Verdict(act="go")
            means = {number: float(phase.losses(engine, reader, rows).mean()) for number, rows in probes.items()}
        if all(means[number] >= settings.reached * level for number, level in enumerate(levels) if level is not None):
            return Verdict(act="stop", reason="reached lambda")
        return Verdict(act="go")

    bounds = {f"forget_loss_{n}": settings.runaway * level for n, level in enumerate(levels) if level is not None}
    steps = settings.passes * per_pass
    state, reason = phase.fit(backend, feed, method.forget_loss, steps=steps, guard=Guard(bounds=bounds, probe=probe))
    full = backend.weights()
    if job.first:
        save_weights(full, job.folder, "forgotten")
    passes = -(-state.step // per_pass)
    coverage = feed.streams[0].coverage("forget", passes=passes, seen=state.seen[0], digest=state.digests[0])
    outcome = phase.finish(state, reason, parameters=parameters, coverage=(coverage,))
    backend.close()
    return Result(outputs=phase.outputs(weights), facts=phase.facts(outcome))
