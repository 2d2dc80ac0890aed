"""What attacks found, kept below `audit/` of a run: so that an audit goes on, and that further attacks add to it.

Attacks that cost a training of their own write `audit/planted.json` and `audit/shadows.json` when they are asked for, as
`{"weights_sha256": of the unlearned weights that were attacked, "found": a `Found`}`. Every later audit shows them, as long as
the weights are those.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from pipeline.decode import canonical, decode
from pipeline.errors import IntegrityError
from pipeline.findings import Found
from pipeline.records import record
from pipeline.stages.runner import Job
from pipeline.storage import exists, publish_bytes, read_bytes, remove_tree

__all__ = ["FURTHER", "PLANTED", "further_parts", "kept_part", "kept_picture", "picture_name", "written_part"]

log = logging.getLogger("unlearn")

FURTHER = ("planted", "shadows")
"""Parts that other commands write."""
PLANTED = "audit/planted.png"
"""What the part `planted` may bring: a picture of planted images with their completions, none of them one to be forgotten."""


@record
class _Part:
    mark: str
    found: Found


@record
class _Drawn:
    mark: str
    drawn: bool


def kept_part(job: Job, attack: str, number: int, mark: str, make: Callable[[], Found]) -> Found:
    """What an earlier audit found under the same mark, or what `make` finds now, which is then kept.

    Raises:
        IntegrityError: the file is not what an audit wrote.
    """
    uri = job.path(f"audit/{attack}-{number}.json")
    if _mark(uri) == mark:
        log.info("audit: %s, group %d: up to date", attack, number)
        return decode(_Part, _read(uri), where=uri, error=IntegrityError).found
    log.info("audit: %s, group %d", attack, number)
    found = make()
    publish_bytes(uri, canonical(_Part(mark=mark, found=found)))
    return found


def picture_name(number: int) -> str:
    """The picture of a group's kind, in the run folder. Groups go by number: their names come from others."""
    return f"audit/images-{number}.png"


def kept_picture(job: Job, number: int, mark: str, make: Callable[[], bytes | None]) -> None:
    """Publish a group's picture, unless one of the same mark is there; None of `make` leaves the group without one."""
    name, uri = job.path(picture_name(number)), job.path(f"audit/images-{number}.json")
    if _mark(uri) == mark and exists(name) == decode(_Drawn, _read(uri), where=uri, error=IntegrityError).drawn:
        return
    content = make()
    if content is not None:
        publish_bytes(name, content)
    elif exists(name):
        remove_tree(name)
    publish_bytes(uri, canonical(_Drawn(mark=mark, drawn=content is not None)))


def further_parts(job: Job, weights_sha256: str) -> dict[str, Found]:
    """What further attacks found in these weights, by name; what they found in others is logged as outdated and left out.

    Raises:
        IntegrityError: a file is not what such an attack writes.
    """
    parts = {}
    for name in FURTHER:
        content = written_part(job, name)
        if content is None:
            continue
        uri = job.path(f"audit/{name}.json")
        # Further fields are the writer's own: what a repeated attack need not do again.
        if content.get("weights_sha256") == weights_sha256:
            parts[name] = decode(Found, content.get("found"), where=uri, error=IntegrityError)
        else:
            log.warning("audit: %s is outdated: it attacked other weights than the run has now; left out", uri)
    return parts


def written_part(job: Job, name: str) -> dict[str, Any] | None:
    """What a further attack wrote, no fields where it is no mapping; None: nothing yet.

    Raises:
        IntegrityError: the file is not JSON.
    """
    uri = job.path(f"audit/{name}.json")
    if not exists(uri):
        return None
    content = _read(uri)
    return content if isinstance(content, dict) else {}


def _read(uri: str) -> object:
    try:
        return json.loads(read_bytes(uri))
    except ValueError:
        raise IntegrityError(f"{uri}: not JSON", "remove the file, and audit again") from None


def _mark(uri: str) -> str | None:
    """The mark of what lies there; None where nothing does, or nothing that an audit wrote."""
    content = _read(uri) if exists(uri) else None
    mark = content.get("mark") if isinstance(content, dict) else None
    return mark if isinstance(mark, str) else None
