"""Phase 2: ZeRO fine-tuning on retain shards, with forget images beside them where the method has a use for them."""

from __future__ import annotations

from pipeline.stages.rewind import rewind
from pipeline.stages.runner import Job, Result
from pipeline.stages.unlearning import carry_out, open_method

__all__ = ["run"]


def run(job: Job) -> Result:
    """Fine-tune, or train from a proven start, and publish the unlearned model."""
    opened = open_method(job)
    plan = opened.method.retention()
    if plan.start == "rewind":
        return rewind(job, plan.latest)
    return carry_out(opened, plan, weights="unlearned", guard=None)
