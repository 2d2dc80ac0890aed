"""OpenLineage events of runs: plain JSON of the standard, version 2-0-2, for catalogues that read it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline import __version__
from pipeline.addresses import absolute, is_local, join
from pipeline.errors import UnlearnError
from pipeline.storage import exists, read_bytes

__all__ = ["TYPES", "dataset", "run_event", "source_of"]

TYPES: Mapping[str, str] = {"run_started": "START", "evaluated": "COMPLETE", "run_failed": "FAIL"}
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
ERROR_FACET = "https://openlineage.io/spec/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet"
PRODUCER = f"urn:i2i-unlearn:{__version__}"
NAMESPACE = "i2i-unlearn"


def dataset(uri: str) -> dict[str, str]:
    """A folder or file as the standard names data sets: where it is, and its path there."""
    if is_local(uri):
        return {"namespace": "file", "name": absolute(uri)}
    parts = urlsplit(uri)
    return {"namespace": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", "name": parts.path.lstrip("/") or "/"}


def source_of(folder: str) -> list[dict[str, str]]:
    """What a run reads, where its manifest says so already; the run folder is looked at, which may be far away."""
    try:
        uri = join(folder, "manifest.json")
        source = str(json.loads(read_bytes(uri)).get("source_folder", "")) if exists(uri) else ""
    except (UnlearnError, ValueError, AttributeError):
        return []
    return [dataset(join(folder, source))] if source else []


def run_event(event: str, facts: Mapping[str, Any], *, scope: str, at: str) -> dict[str, Any] | None:
    """The standard's event for a signal, without inputs, which `source_of` finds; None where it has none.

    Args:
        event: the signal's.
        facts: as `checked` returned them; `run` is the run folder.
        scope: what tells ledgers apart; with batch and attempt it makes the run's UUID.
        at: when, ISO 8601.
    """
    if event not in TYPES:
        return None
    identity = f"{scope}/{facts.get('batch_id', '')}/{facts.get('attempt', '')}"
    facets: dict[str, Any] = {}
    if event == "run_failed":
        told = {"message": str(facts.get("failure", "failed")), "programmingLanguage": "Python"}
        facets["errorMessage"] = {"_producer": PRODUCER, "_schemaURL": ERROR_FACET, **told}
    folder = str(facts.get("run", ""))
    return {
        "eventType": TYPES[event],
        "eventTime": at,
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{identity}")), "facets": facets},
        "job": {"namespace": NAMESPACE, "name": str(facts.get("line", "unlearn")), "facets": {}},
        "inputs": [],
        "outputs": [dataset(join(folder, "weights"))] if folder and event == "evaluated" else [],
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
    }
