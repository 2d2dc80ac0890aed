"""report.json: every fact of a run that may be published. Counts, groups and digests; no key, no subject, no request text.

The page, the card and the table on the terminal are drawn from these facts and from nothing else (pictures apart).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from pipeline.config import RunConfig
from pipeline.decode import digest, plain
from pipeline.findings import Exactness
from pipeline.privacy.gaussian import tight_epsilon
from pipeline.records import Calibration, Certificate, Evaluations, FileRef, Manifest, MetricResult, PhaseOutcome, Receipt
from pipeline.report.claims import claims
from pipeline.report.headline import headline
from pipeline.report.verdict import judge, report_figures

__all__ = ["FURTHER", "SPLITS", "SUBJECTS", "Evidence", "asked", "build_facts", "versions"]

SUBJECTS = ("original", "unlearned", "retrained")
PHASES = ("train", "retrain", "calibrate", "forget", "certify", "retain")
UNLEARNING = ("calibrate", "forget", "certify", "retain")
FURTHER = ("kid_", "fd_", "fid_", "clip_", "cosine_", "lpips_like_", "class_score_", "inception_score")
"""Beginnings of the names of the extractors' figures, which a run may have besides."""
DELTA = 1e-5
"""Of the statement of closeness."""
VERSIONS = ("torch", "deepspeed", "accelerate", "torchmetrics", "numpy")

SPLITS: Mapping[str, str] = {
    "forget": "forgotten",
    "unseen": "unseen, same kind",
    "retain": "kept, trained on",
    "unseen_retain": "kept kinds, unseen",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the facts are drawn from. `phases` and `receipts` hold what exists; retraining may be absent."""

    config: RunConfig
    manifest: Manifest
    calibration: Calibration | None
    evaluations: Evaluations
    phases: Mapping[str, PhaseOutcome]
    receipts: Mapping[str, Receipt]
    weights: FileRef
    certificate: Certificate | None = None
    """None: the run has no certified phase."""
    exactness: Exactness | None = None
    """None: the run's method does not train without the samples."""


def build_facts(evidence: Evidence) -> dict[str, Any]:
    """All facts as plain JSON data; a figure that was not computed is None with a note."""
    manifest, config = evidence.manifest, evidence.config
    facts: dict[str, Any] = {
        "schema": "report/1",
        "run_id": manifest.run_id,
        "name": config.name,
        "asked": asked(manifest),
        "done": _done(evidence),
        "levels": [plain(level) for level in evidence.calibration.levels] if evidence.calibration else [],
        "splits": dict(SPLITS),
        "table": _table(evidence.evaluations),
        "distance": _distance(evidence.evaluations),
        "membership": _membership(evidence.evaluations),
        "utility": _utility(evidence.evaluations),
        "cost": _cost(evidence),
        "certificate": plain(evidence.certificate) if evidence.certificate else None,
        "closeness": _closeness(evidence),
        "exactness": plain(evidence.exactness) if evidence.exactness else None,
        "figures": [
            {"subject": item.subject, **plain(result)} for item in evidence.evaluations.evaluations for result in item.results
        ],
        "confidence": config.evaluation.confidence,
    }
    facts["claims"] = claims(facts)
    verdict = judge(config.verdict, report_figures(facts))
    facts["verdict"] = {**plain(verdict), "words": verdict.words}
    facts |= headline(facts)
    facts["provenance"] = _provenance(evidence)
    return facts


def asked(manifest: Manifest) -> dict[str, Any]:
    """What the requests of a batch named."""
    groups = [
        {
            "name": group.name,
            "kind": group.kind,
            "samples": group.samples,
            "labels": [manifest.classes[label] for label in group.labels if 0 <= label < len(manifest.classes)],
        }
        for group in manifest.groups
    ]
    return {
        "requests": manifest.requests,
        "images": sum(group.samples for group in manifest.groups),
        "groups": groups,
        "splits": {split.name: split.samples for split in manifest.splits},
        "shards_clean": manifest.shards_clean,
        "shards_rewritten": manifest.shards_rewritten,
        "batch_digest": manifest.batch_digest,
    }


def _done(evidence: Evidence) -> dict[str, Any]:
    # What was done counts, not what was asked for: with no group left to forget, a guarded run reads no forget image.
    retained = evidence.receipts.get("retain")
    reads = retained is not None and bool(retained.facts["reads_forget"])
    excludes = "phase 2 reads forget images, which excludes the certified route" if reads else ""
    beside = "guarded" if evidence.config.method["component"] == "decouple" else "joint"
    return {
        "component": {part: getattr(evidence.config, part)["component"] for part in ("source", "model", "task", "method")},
        "retention": {"mode": "none" if retained is None else beside if reads else "plain", "excludes": excludes},
        "phases": [_told(evidence.phases[name]) for name in PHASES if name in evidence.phases],
        "engine": plain(evidence.config.engine),
    }


def _told(phase: PhaseOutcome) -> dict[str, Any]:
    """A phase without the digests of what it read: one of few keys tells whoever guesses them that they were guessed."""
    bare = [{name: value for name, value in plain(item).items() if "digest" not in name} for item in phase.coverage]
    return {**plain(phase), "coverage": bare}


def _find(evaluations: Evaluations, subject: str, name: str, split: str, group: str) -> MetricResult | None:
    evaluation = evaluations.subject(subject)
    return evaluation.find(name, split, group) if evaluation else None


def _brief(result: MetricResult | None) -> dict[str, Any]:
    """A figure without its address."""
    if result is None:
        return {"value": None, "low": None, "high": None, "note": "not computed"}
    return {"value": result.value, "low": result.low, "high": result.high, "note": result.note}


def _places(evaluations: Evaluations, name: str) -> list[tuple[str, str]]:
    """Splits and groups for which a figure is listed, in order."""
    found = [(r.split, r.group) for item in evaluations.evaluations for r in item.results if r.name == name]
    return list(dict.fromkeys(found))


def _table(evaluations: Evaluations) -> list[dict[str, Any]]:
    """The four-split table: region error of each subject. `n` is the number of images measured."""
    rows = []
    for split, group in _places(evaluations, "error_region"):
        found = {subject: _find(evaluations, subject, "error_region", split, group) for subject in SUBJECTS}
        row: dict[str, Any] = {"split": split, "group": group, "label": SPLITS[split]}
        row["n"] = max((result.samples for result in found.values() if result), default=0)
        for subject, result in found.items():
            brief = _brief(result)
            row[subject] = {"error": brief["value"], "low": brief["low"], "high": brief["high"], "note": brief["note"]}
        rows.append(row)
    return rows


def _distance(evaluations: Evaluations) -> list[dict[str, Any]]:
    """KS distance to the retrained model's errors. `detectable` is what chance alone can reach at this n."""
    rows = []
    for split, group in _places(evaluations, "ks"):
        limit = _find(evaluations, "unlearned", "ks_detectable", split, group)
        row: dict[str, Any] = {"split": split, "group": group, "n": limit.samples if limit else 0}
        row["detectable"] = limit.value if limit else None
        rows.append(row | {s: _brief(_find(evaluations, s, "ks", split, group)) for s in ("original", "unlearned")})
    return rows


def _membership(evaluations: Evaluations) -> list[dict[str, Any]]:
    """Two-sided membership. `power` says whether the test finds the images in the original, where they are."""
    rows = []
    for split, group in _places(evaluations, "membership"):
        row: dict[str, Any] = {"group": group}
        for subject in SUBJECTS:
            result = _find(evaluations, subject, "membership", split, group)
            away = _find(evaluations, subject, "membership_distance", split, group)
            row[subject] = {**_brief(result), "distance": away.value if away else None, "n": result.samples if result else 0}
        row["power"] = row["original"]["note"] == "looks trained on"
        rows.append(row)
    return rows


def _utility(evaluations: Evaluations) -> dict[str, Any]:
    """Error on unseen images of kept kinds over the retrained model's."""
    return {s: _brief(_find(evaluations, s, "error_ratio", "unseen_retain", "")) for s in ("original", "unlearned")}


def _cost(evidence: Evidence) -> dict[str, Any]:
    """Sample gradients and seconds of calibration and both phases, beside retraining."""
    spent = [item for name, item in evidence.phases.items() if name in UNLEARNING]
    phases = [{"phase": item.phase, "sample_gradients": item.sample_gradients, "seconds": item.seconds} for item in spent]
    gradients, seconds = sum(item.sample_gradients for item in spent), sum(item.seconds for item in spent)
    retrain = evidence.phases.get("retrain")
    known = bool(retrain and retrain.sample_gradients)
    return {
        "phases": phases,
        "sample_gradients": gradients,
        "seconds": seconds,
        "retrain_sample_gradients": retrain.sample_gradients if retrain and known else None,
        "retrain_seconds": retrain.seconds if retrain and known else None,
        "share": gradients / retrain.sample_gradients if retrain and known else None,
        "note": "" if known else "not computed: this run retrained no model",
    }


def _closeness(evidence: Evidence) -> dict[str, float] | None:
    """How close the ascended weights with their noise are to the original's with the same; None: they got no noise, or no epsilon
    may be named. Two normal distributions `moved` apart (Balle & Wang 2018, theorem 8), exact for these two models."""
    losses = evidence.phases["forget"].losses if "forget" in evidence.phases else {}
    withheld = evidence.certificate is not None and not evidence.certificate.granted
    if not losses.get("noise") or withheld:
        return None
    moved, noise = losses["moved"], losses["noise"]
    return {"moved": moved, "noise": noise, "delta": DELTA, "epsilon": tight_epsilon(moved / noise, DELTA)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{package: _version(package) for package in VERSIONS}}


def _provenance(evidence: Evidence) -> dict[str, Any]:
    receipts = [
        {
            "stage": receipt.stage,
            "digest": digest(receipt),
            "world_size": receipt.world_size,
            "code_version": receipt.code_version,
            "ended_at": receipt.ended_at,
        }
        for receipt in evidence.receipts.values()
    ]
    return {
        "weights": {"sha256": evidence.weights.sha256, "bytes": evidence.weights.bytes},
        "parameters": max((item.parameters for item in evidence.phases.values()), default=0),
        "source_digest": evidence.manifest.source_digest,
        "manifest_digest": digest(evidence.manifest),
        "seed": evidence.manifest.seed,
        "receipts": receipts,
        "versions": versions(),
    }
