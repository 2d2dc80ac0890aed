"""The retrained models of a run's shadow runs: how far trainings without the images lie apart is seen in them.

Attacking with shadow runs names them in `audit/shadows.json`; every later audit of the same weights takes their retrained models
along.
"""

from __future__ import annotations

import logging

import torch

from pipeline.acts.audit_store import written_part
from pipeline.chain import stage
from pipeline.config import read_run
from pipeline.errors import UnlearnError
from pipeline.evaluation.summary import REFERENCE
from pipeline.models.base import ImageModel
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.runner import Job
from pipeline.storage import join

__all__ = ["other_trainings"]

log = logging.getLogger("unlearn")


def other_trainings(job: Job, weights_sha256: str, device: torch.device) -> tuple[list[ImageModel], list[str]]:
    """Retrained models of the shadow runs that attacked these weights, ready to answer, and the sha256 of their weights.

    A shadow run that was removed since is logged and left out.

    Raises:
        IntegrityError: what names them is not JSON.
    """
    content = written_part(job, "shadows") or {}
    models, marks = [], []
    for name in content.get("shadows", ()) if content.get("weights_sha256") == weights_sha256 else ():
        folder = join(job.folder.rpartition("/")[0], str(name).rpartition("/")[2])
        try:
            config = read_run(folder)
            shadow = Job(spec=stage("evaluate", config), config=config, folder=folder)
            found, digests = load_subjects(shadow, device, only=(REFERENCE,))
        except UnlearnError as error:
            log.warning("audit: left out a shadow run's retrained model: %s", error)
            continue
        if REFERENCE in found:
            models.append(found[REFERENCE])
            marks.append(digests[REFERENCE])
    return models, marks
