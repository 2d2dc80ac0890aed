"""What a release states: an in-toto Statement about every published file, and what the report says, copied, never judged anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.decode import digest, plain
from pipeline.records import FileRef, Receipt, record

__all__ = ["PREDICATE", "STATEMENT", "Lineage", "build", "contradictions", "subjects"]

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:i2i-unlearn:predicate:unlearning:1"


@record
class Lineage:
    """Whose data the released model holds no more, by the digests of batches.

    line: the model line · version: folder of this release · parent: sha256 of the weights that it was made from, where these are
    a release of the same line · batches: its own, and those of other releases whose forgotten images it holds no more or never
    saw · note: why other batches were not looked at, if they were not
    """

    line: str
    version: str
    parent: str | None
    batches: tuple[str, ...]
    note: str = ""


def build(
    files: Iterable[FileRef],
    report: Mapping[str, Any],
    receipts: Mapping[str, Receipt],
    *,
    lineage: Lineage,
    released_at: str,
    forgotten: Mapping[str, Any],
    ledger: Mapping[str, Any] | None = None,
    approval: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The statement.

    Args:
        files: every published file, by its name in the release.
        report: report.json, as plain data.
        receipts: of the run's stages, by stage.
        lineage: see there.
        released_at: UTC, ISO 8601.
        forgotten: `count` and `secret` of the keyed digests, or a `note` that says why they were not computed.
        ledger: `seq` and `hash` of the head of the ledger's history; None: none was given.
        approval: who let a release pass that the verdict does not, and why; None: nobody had to.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": ref.uri, "digest": {"sha256": ref.sha256}} for ref in sorted(files, key=lambda ref: ref.uri)],
        "predicateType": PREDICATE,
        "predicate": {
            **_copied(report, receipts),
            "lineage": plain(lineage),
            "releasedAt": released_at,
            "forgotten": dict(forgotten),
            "ledger": dict(ledger) if ledger else None,
            "approval": dict(approval) if approval else None,
        },
    }


def _copied(report: Mapping[str, Any], receipts: Mapping[str, Receipt]) -> dict[str, Any]:
    asked, claims, provenance = report["asked"], report["claims"], report["provenance"]
    release = receipts.get("release")
    return {
        "run": {
            "id": report["run_id"],
            "name": report["name"],
            "batchDigest": asked["batch_digest"],
            "requests": asked["requests"],
            "images": asked["images"],
        },
        "claim": {"tier": claims["tier"], "words": claims["words"], "headline": list(report["headline"])},
        "verdict": {"outcome": report["verdict"]["outcome"], "words": report["verdict"]["words"]},
        "certificate": report["certificate"],
        "weights": {"sha256": provenance["weights"]["sha256"], "bytes": provenance["weights"]["bytes"]},
        "manifest": {"sha256": provenance["manifest_digest"], "source": provenance["source_digest"]},
        "receipts": [
            {"stage": name, "sha256": digest(receipt), "outputs": digest(receipt.outputs), "inputs": dict(receipt.inputs)}
            for name, receipt in sorted(receipts.items())
        ],
        "codeVersion": release.code_version if release else None,
    }


def contradictions(statement: Mapping[str, Any], report: Mapping[str, Any], receipts: Mapping[str, Receipt]) -> list[str]:
    """The fields of a statement that say something else than the report and the receipts beside it; empty: it agrees."""
    predicate = statement.get("predicate")
    if statement.get("_type") != STATEMENT or statement.get("predicateType") != PREDICATE or not isinstance(predicate, Mapping):
        return ["predicateType"]
    try:
        copied = _copied(report, receipts)
    except (KeyError, TypeError, AttributeError):
        return ["report"]
    return [name for name, value in copied.items() if predicate.get(name) != value]


def subjects(statement: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of each file that a statement names; empty where it names none in the right form."""
    try:
        return {str(item["name"]): str(item["digest"]["sha256"]) for item in statement["subject"]}
    except (KeyError, TypeError):
        return {}
