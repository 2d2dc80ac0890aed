"""Orders and answers of the acts that requests need before the ledger takes them in."""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.ledger.refusals import Looked
from pipeline.records import RequestBatch, record

__all__ = ["LikenessAnswer", "LikenessOrder", "LookupAnswer", "LookupOrder"]


@record
class LookupOrder:
    """What do values mean to the source of a run: those of a batch, or (`file` not empty) those of a file of requests."""

    config: RunConfig
    batch: RequestBatch = RequestBatch(requests=())
    file: str = ""


@record
class LookupAnswer:
    """What the index says; None: the source is not indexed."""

    looked: Looked | None


@record
class LikenessOrder:
    """Hash these image files."""

    files: tuple[str, ...]


@record
class LikenessAnswer:
    """16 hexadecimal digits a file; empty where it is no image, or has no such hash."""

    hashes: tuple[str, ...]
