"""What a finished run made, read from its manifest and receipts: models, what each began as, and which shards each saw."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launch.local import read_report
from pipeline.chain import read_receipt
from pipeline.decode import decode
from pipeline.errors import IntegrityError
from pipeline.records import Manifest, Receipt
from pipeline.storage import join, read_bytes

if TYPE_CHECKING:
    from pipeline.ledger.lineage import Made

__all__ = ["made_by", "stage_seconds"]

# Stage, the weights that it leaves, what they are called, and the splits that it trained on and made the model forget.
MODELS = (
    ("train", "checkpoints/original/model.safetensors", "original", "original", ""),
    ("retrain", "checkpoints/retrained/model.safetensors", "retrained", "retain", ""),
    ("forget", "checkpoints/forgotten/model.safetensors", "forgotten", "", "forget"),
    ("certify", "checkpoints/certified/model.safetensors", "certified", "retain", "forget"),
    ("retain", "checkpoints/unlearned/model.safetensors", "unlearned", "retain", "forget"),
)
STAGES = ("shard", "train", "retrain", "calibrate", "forget", "certify", "retain", "evaluate", "release")


def made_by(folder: str) -> tuple[Made, ...]:
    """The models of a finished run, each after the one that it began as.

    An original that was given to the run saw nothing here, so it has no shards; where another run made it, the ledger knows it
    from there. A reference that was given is left out.

    Raises:
        IntegrityError: manifest, report or a receipt was changed.
        StorageError: one of them cannot be read.
    """
    from pipeline.config import read_run
    from pipeline.ledger.lineage import Made, Seen

    manifest, config = _manifest(folder), read_run(folder)
    verdict = str((read_report(folder).get("verdict") or {}).get("outcome", ""))
    given = {"train": config.original != "train", "retrain": config.reference != "retrain"}

    # The source's own shards that held what was forgotten, too: once the run's index is erased, only this says which.
    kept = {ref.uri for ref in manifest.split("retain").shards}
    touched = [ref for ref in manifest.split("original").shards if ref.uri not in kept]

    def seen(split: str, role: str) -> tuple[Seen, ...]:
        shards = manifest.split(split).shards if split else ()
        found = {(join(folder, ref.uri), ref.sha256) for ref in (*shards, *(touched if split == "forget" else ()))}
        return tuple(Seen(uri=uri, version="", sha256=sha256, role=role) for uri, sha256 in sorted(found))  # type: ignore[arg-type]

    models: list[Made] = []
    before: str | None = None
    for stage, uri, kind, trained, forgotten in MODELS:
        receipt = read_receipt(folder, stage)
        sha256 = _outputs(receipt).get(uri)
        if receipt is None or sha256 is None or (stage == "retrain" and given[stage]):
            continue
        began = stage in ("train", "retrain")
        models.append(
            Made(
                model_id=sha256,
                kind="given" if given.get(stage) else kind,
                uri=join(folder, uri),
                made_at=receipt.ended_at,
                verdict="",
                parent=None if began else before,
                seen=() if given.get(stage) else (*seen(trained, "trained"), *seen(forgotten, "forgotten")),
            )
        )
        before = before if stage == "retrain" else sha256
    # Of a method without phase 2 the released weights are those of an earlier one.
    return tuple(dataclasses.replace(model, verdict=verdict) if model.model_id == before else model for model in models)


def _outputs(receipt: Receipt | None) -> Mapping[str, str]:
    return {ref.uri: ref.sha256 for ref in receipt.outputs} if receipt else {}


def _manifest(folder: str) -> Manifest:
    uri = join(folder, "manifest.json")
    try:
        content = json.loads(read_bytes(uri))
    except ValueError:
        raise IntegrityError(f"{uri}: not a manifest", "remove receipts/shard.json and run again") from None
    return decode(Manifest, content, where=uri, error=IntegrityError)


def stage_seconds(folder: str) -> float | None:
    """Seconds that the stages of a run took, by its receipts; None where it has none, or they cannot be read."""
    from datetime import datetime

    total, found = 0.0, False
    for stage in STAGES:
        try:
            receipt = read_receipt(folder, stage)
            if receipt:
                span = datetime.fromisoformat(receipt.ended_at) - datetime.fromisoformat(receipt.started_at)
                total, found = total + span.total_seconds(), True
        except (IntegrityError, ValueError):
            return None
    return total if found else None
