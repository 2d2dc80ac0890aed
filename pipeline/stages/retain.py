"""Phase 2: ZeRO fine-tuning on retain shards, with forget images beside them where the method has a use for them."""

from __future__ import annotations

from pipeline.stages.runner import Job, Result
from pipeline.stages.unlearning import carry_out, open_method

__all__ = ["run"]


def run(job: Job) -> Result:
    """Fine-tune and publish the unlearned model."""
    opened = open_method(job)
    return carry_out(opened, opened.method.retention(), weights="unlearned", guard=None)
