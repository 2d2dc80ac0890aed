"""What a worker is told to attack: a finished run, its planted twin, or both beside shadow runs."""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.records import record

__all__ = ["AuditOrder", "PlantedOrder", "ShadowsOrder"]


@record
class AuditOrder:
    """Attack the models of a finished run, with at most `samples` forget images of each group."""

    config: RunConfig
    folder: str
    samples: int


@record
class PlantedOrder:
    """Score what was planted in `twin`, the twin of the finished run in `folder`, with at most `samples` images an attack."""

    folder: str
    twin: str
    samples: int


@record
class ShadowsOrder:
    """Attack the models of a finished run with those of the runs in the folders `shadows`, on at most `samples` images of each
    group."""

    folder: str
    shadows: tuple[str, ...]
    samples: int
