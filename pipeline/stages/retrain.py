"""Train the reference on retained images only: the model that unlearning is judged by, never seen by the phases."""

from __future__ import annotations

from pipeline.stages.runner import Job, Result
from pipeline.stages.train import train

__all__ = ["run"]


def run(job: Job) -> Result:
    """The retrained model: other initial weights and order than the original's, no forget image."""
    return train(job, weights="retrained", split="retain", given=job.config.reference)
