"""The page of an audit: the ROC curves of what was found, and the pictures beside it.

No image that was to be forgotten is shown, so an erasure has nothing to remove from the page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.acts.audit_store import PLANTED, picture_name
from pipeline.evaluation.likelihood_ratio import roc
from pipeline.findings import Audit, Series
from pipeline.report import audit_page
from pipeline.report.audit_page import Drawn
from pipeline.stages.runner import Job, read_manifest
from pipeline.storage import exists, publish_bytes, read_bytes

__all__ = ["PAGE", "publish_page"]

PAGE = "audit.html"


def publish_page(job: Job, audit: Audit, series: Sequence[Series], *, planted: bool) -> None:
    """Publish `audit.html`; `planted`: with the picture of planted images, if there is one."""
    names = {group.name: picture_name(number) for number, group in enumerate(read_manifest(job).groups)}
    images = {group: read_bytes(job.path(name)) for group, name in names.items() if exists(job.path(name))}
    shown = read_bytes(job.path(PLANTED)) if planted and exists(job.path(PLANTED)) else None
    text = audit_page.render(audit, [_drawn(item) for item in series], images, shown)
    publish_bytes(job.path(PAGE), text.encode())


def _drawn(series: Series) -> Drawn:
    if not series.own or not series.other:
        return Drawn(series=series, rates=None)
    members = np.repeat([True, False], [len(series.own), len(series.other)])
    return Drawn(series=series, rates=roc(np.array([*series.own, *series.other]), members))
