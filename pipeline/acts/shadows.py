"""The attack with shadow runs on a finished run: is a model that forgot the images told from models that never saw them?

All models of all runs are asked about the same images under the same masks, those of the run under audit. What is found lies in
`audit/shadows.json`, where the audit takes it from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.audit_orders import ShadowsOrder
from pipeline.chain import read_receipt, stage
from pipeline.config import read_run
from pipeline.data.stream import ImageReader, to_tensor
from pipeline.decode import canonical, decode, digest
from pipeline.draws import draws_of_rows
from pipeline.errors import CheckpointError, ConfigError, IntegrityError
from pipeline.evaluation.base import Floats
from pipeline.evaluation.paired import score
from pipeline.evaluation.planted_scores import with_power
from pipeline.evaluation.shadow_scores import shadow_scores
from pipeline.evaluation.splits import SOURCES, Slice, choose
from pipeline.evaluation.summary import REFERENCE
from pipeline.findings import Finding, Found
from pipeline.models.base import ImageModel
from pipeline.privacy.mechanism import CertifyConfig, certify_config
from pipeline.stages.evaluate import load_subjects
from pipeline.stages.phase import Phase
from pipeline.stages.runner import Job, read_manifest
from pipeline.storage import exists, publish_bytes, read_bytes

__all__ = ["run"]

log = logging.getLogger("unlearn")

VERSION = "shadows/2"
"""Raised with every change to what is found, so that no older finding stands for a new one."""
SUBJECTS = ("original", "unlearned")
"""Models that were trained on the images; the original is the control."""

Errors = Mapping[str, Mapping[str, Floats]]
"""Of the models of one run: slice -> subject -> error of each image, fp64 [N]."""


def run(order: ShadowsOrder) -> Found:
    """Attack, and publish `audit/shadows.json`; nothing is done again for the same models.

    Raises:
        StorageError: a run has not got as far as its models.
        IntegrityError: weights are not those of their receipt.
        ConfigError: too few shadows, one that is not a shadow of this run, or no retrained model.
        CheckpointError: a model answers with values that are not finite.
    """
    jobs = [_job(order.folder), *map(_job, order.shadows)]
    phase = Phase(jobs[0], "audit")
    for job in jobs[1:]:
        _refuse_other(phase, job)
    uri = jobs[0].path("audit/shadows.json")
    receipts = [[read_receipt(job.folder, name) for name in job.spec.needs] for job in jobs]
    outputs = [[receipt.outputs if receipt else () for receipt in of_run] for of_run in receipts]
    mark = digest([VERSION, outputs, order.samples])
    if (kept := _kept(uri, mark)) is not None:
        log.info("shadows: up to date")
        return kept
    measured, weights = _measure_all(phase, jobs, order.samples)
    parts = {group.name: _of_group(phase, group.name, measured) for group in phase.manifest.groups}
    found = with_power(parts)
    names = [job.folder.rsplit("/", 1)[-1] for job in jobs[1:]]
    publish_bytes(uri, canonical({"mark": mark, "weights_sha256": weights, "shadows": names, "found": found}))
    return found


def _job(folder: str) -> Job:
    config = read_run(folder)
    return Job(spec=stage("evaluate", config), config=config, folder=folder)


def _refuse_other(phase: Phase, job: Job) -> None:
    """Raise ConfigError for a folder that is not the same run at another seed."""
    own, other, config = phase.manifest, read_manifest(job), phase.job.config
    same_images = other.batch_digest == own.batch_digest and other.split("forget").keys_digest == own.split("forget").keys_digest
    sections = ("source", "model", "task", "method", "train", "stream", "images")
    changed = [name for name in sections if getattr(job.config, name) != getattr(config, name)]
    if not same_images or changed or job.config.seed == config.seed:
        what = ", ".join(changed) or ("the seed is the same" if same_images else "other forget images")
        raise ConfigError(f"{job.folder}: not a shadow of this run: {what}", "remove it, or choose another name= or output=")


def _kept(uri: str, mark: str) -> Found | None:
    """What an earlier attack with the same models found."""
    if not exists(uri):
        return None
    try:
        content = json.loads(read_bytes(uri))
        return decode(Found, content["found"], where=uri, error=IntegrityError) if content["mark"] == mark else None
    except (ValueError, KeyError, TypeError, IntegrityError):
        return None  # whatever it is, it is made again


def _measure_all(phase: Phase, jobs: list[Job], samples: int) -> tuple[list[Errors], str]:
    """Errors of the models of each run, one run after the other in memory; and the sha256 of the attacked weights."""
    config = phase.job.config
    tables = {name: phase.samples(name) for name in SOURCES}
    tables["retain"] = tables["retain"].spread(samples, config.seed)
    chosen = choose(tables, phase.manifest.groups, seed=config.seed, max_samples=samples)
    slices = [item for item in chosen if item.split in ("forget", "unseen_retain")]
    readers: dict[str, ImageReader] = {}
    measured: list[Errors] = []
    attacked = ""
    try:
        for number, job in enumerate(jobs):
            models, marks = load_subjects(job, phase.group.device)
            if REFERENCE not in models:
                raise ConfigError(f"{job.folder}: no retrained model to compare with", "set reference=retrain, and run again")
            attacked = attacked or marks["unlearned"]
            for name in {item.source for item in slices} - set(readers):
                readers[name] = phase.reader(tables[name], models[REFERENCE])
            measured.append({item.name: _errors(phase, models, item, readers[item.source]) for item in slices})
            log.info("shadows: asked the models of run %d of %d", number + 1, len(jobs))
    finally:
        for reader in readers.values():
            reader.close()
    return measured, attacked


@torch.no_grad()
def _errors(phase: Phase, models: Mapping[str, ImageModel], item: Slice, reader: ImageReader) -> dict[str, Floats]:
    """Each model's error in the region of each image of a slice, fp64 [N]."""
    size, device = phase.job.config.evaluation.batch_size, phase.group.device
    parts: dict[str, list[Floats]] = {name: [np.empty(0)] for name in models}
    for start in range(0, len(item.indices), size):
        rows = item.indices[start : start + size]
        truth, drawn = to_tensor(reader.fetch(rows), device), torch.from_numpy(draws_of_rows(rows, phase.seed)).to(device)
        visible, region = phase.task.degrade(truth, drawn)
        for name, model in models.items():
            found = score(model.complete(visible, region, drawn).float(), truth, region)["error_region"]
            if not np.isfinite(found).all():
                raise CheckpointError(
                    f"shadows: the {name} model of a run answers with values that are not finite", "train it again, in fp32"
                )
            parts[name].append(found)
    return {name: np.concatenate(found) for name, found in parts.items()}


def _of_group(phase: Phase, group: str, measured: list[Errors]) -> Found:
    """Findings about the original, as the control, and about the unlearned models."""
    config = phase.job.config
    delta = (certify_config(config.method.get("certify")) or CertifyConfig()).delta

    def errors(item: str, subject: str) -> Floats:
        return np.stack([of_run[item][subject] for of_run in measured])

    forget, parts = f"forget/{group}", []
    if not errors(forget, REFERENCE).size:
        none = Finding(attack="shadows", group=group, subject="unlearned", measure="", says="not computed", note="no image")
        return Found(findings=(none,))
    for subject in SUBJECTS:
        kept = errors("unseen_retain", subject), errors("unseen_retain", REFERENCE)
        parts.append(
            shadow_scores(
                errors(forget, subject),
                errors(forget, REFERENCE),
                kept=kept if kept[0].size else None,
                group=group,
                subject=subject,
                delta=delta,
                confidence=config.evaluation.confidence,
            )
        )
    return Found(
        findings=tuple(f for part in parts for f in part.findings), series=tuple(s for part in parts for s in part.series)
    )
