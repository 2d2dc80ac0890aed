"""Phase 1: over forget shards, for our method gradient ascent to the level lambda under a guard, each image seen equally
often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.data.samples import Samples
from pipeline.data.stream import Feed
from pipeline.engine.backend import Backend
from pipeline.engine.guard import Guard, Verdict
from pipeline.methods.base import PhasePlan
from pipeline.models.base import ImageModel
from pipeline.stages.phase import choose
from pipeline.stages.runner import Job, Result
from pipeline.stages.unlearning import Opened, carry_out, open_method

__all__ = ["run"]

PROBE_IMAGES = 512
"""Images per group in a probe: enough for a mean within a few per cent, cheap beside a pass."""
FLOOR_IMAGES = 256
"""Unseen retained images, looked at oftener, and for a loss that may be a multiple of what it was."""


def run(job: Job) -> Result:
    """Publish the weights of the last good state with the reason for stopping."""
    opened = open_method(job)
    plan = opened.method.forgetting()
    return carry_out(opened, plan, weights="forgotten", guard=lambda *given: _guard(opened, plan, *given))


def _guard(opened: Opened, plan: PhasePlan, model: ImageModel, feed: Feed, forget: Samples) -> Callable[[Backend], Guard]:
    """A guard that looks at the retain floor now and then, and after each pass whether every group has reached its level."""
    phase, levels = opened.phase, {n: level for n, level in enumerate(plan.levels) if level is not None}
    reader = phase.reader(forget, model)
    probes = {number: choose(forget, phase.seed, PROBE_IMAGES, forget.groups == number) for number in levels}
    unseen = phase.samples("calibration")
    classes = [label for group in phase.manifest.groups if group.kind == "class" for label in group.labels]
    watch = phase.reader(unseen, model)
    watched = choose(unseen, phase.seed, FLOOR_IMAGES, ~np.isin(unseen.labels, classes))
    per_pass = feed.streams[0].steps_per_pass
    floor = plan.retain_floor * opened.calibration.retain_error if plan.retain_floor and opened.calibration else None

    def armed(backend: Backend) -> Guard:
        def probe(done: int) -> Verdict | None:
            end_of_pass = done % per_pass == 0
            if not end_of_pass and done % plan.probe_steps:
                return None
            with backend.evaluating() as engine:
                if floor is not None and len(watched):
                    retained = float(phase.losses(engine, watch, watched).mean())
                    if retained > floor:
                        return Verdict(act="back", reason=f"retain floor: unseen retained loss {retained:.4g} above {floor:.4g}")
                if not end_of_pass:
                    return Verdict(act="go")
                means = {number: float(phase.losses(engine, reader, rows).mean()) for number, rows in probes.items()}
            if levels and all(means[number] >= plan.reached * level for number, level in levels.items()):
                return Verdict(act="stop", reason="reached lambda")
            return Verdict(act="go")

        return Guard(bounds=plan.bounds, probe=probe)

    return armed
