"""Stage release: the weights with their card, and the report as JSON and as a page. Loads no torch, prints nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chain import PHASES as METHOD_PHASES
from pipeline.chain import read_receipt, weights_before
from pipeline.data.samples import read_samples
from pipeline.data.slices import Slicing
from pipeline.decode import canonical
from pipeline.errors import IntegrityError, StorageError
from pipeline.findings import Exactness
from pipeline.privacy import exactness
from pipeline.privacy.certificate import judge
from pipeline.privacy.mechanism import certify_config
from pipeline.records import Calibration, Certificate, Evaluations, FileRef, NoisyMeasures, PhaseOutcome, Receipt
from pipeline.report import card, page
from pipeline.report.facts import PHASES, Evidence, build_facts
from pipeline.stages.ledger import known, order_file, settings_of
from pipeline.stages.runner import Job, Result, read_manifest, read_record
from pipeline.storage import HashingWriter, exists, open_read, publish, publish_bytes, read_bytes

__all__ = ["render_again", "run"]

BLOCK = 1 << 20


def run(job: Job) -> Result:
    """Publish `weights/`, `report.json` and `report.html`.

    Raises:
        StorageError: a stage before this one has not run.
        IntegrityError: a file is not what its receipt says.
    """
    receipts = {name: receipt for name in job.spec.needs if (receipt := read_receipt(job.folder, name)) is not None}
    published = {ref.uri: ref for receipt in receipts.values() for ref in receipt.outputs}
    phases = {name: read_record(job, PhaseOutcome, uri) for name in PHASES if (uri := f"phases/{name}.json") in published}
    weights = _copy_weights(job, published)
    evidence = Evidence(
        config=job.config,
        manifest=read_manifest(job),
        calibration=read_record(job, Calibration, "calibration.json") if "calibration.json" in published else None,
        evaluations=read_record(job, Evaluations, "evaluation.json"),
        phases=phases,
        receipts=receipts,
        weights=weights,
        certificate=_certificate(job, receipts),
        exactness=_exactness(job, receipts, weights),
    )
    facts = build_facts(evidence)
    material = _material(job, published)
    files = {
        "weights/config.json": canonical(job.config.model),
        "weights/README.md": card.render(facts).encode(),
        "report.json": canonical(facts),
        "report.html": page.render(facts, material).encode(),
    }
    for name, content in files.items():
        publish_bytes(job.path(name), content)
    outputs = ("weights/model.safetensors", *files, *_copy_exported(job, published))
    return Result(outputs=outputs, facts={"headline": facts["headline"]})


def _certificate(job: Job, receipts: Mapping[str, Receipt]) -> Certificate | None:
    """What the certified phase earned, or why it earned nothing; None: the run has none."""
    config = certify_config(job.config.method.get("certify"))
    if config is None or "certify" not in receipts:
        return None
    retain = receipts.get("retain")
    reads = () if retain is None else ("retain", *(["forget"] if retain.facts.get("reads_forget", True) else []))
    measures = read_record(job, NoisyMeasures, "certify.json")
    return judge(config, measures, read_manifest(job), retention_reads=reads)


def _exactness(job: Job, receipts: Mapping[str, Receipt], released: FileRef) -> Exactness | None:
    """Whether a method that trains without the forgotten samples did so; None: the run's method does not."""
    section = job.config.method
    route = exactness.ROUTES.get(section["component"])
    if route is None:
        return None
    manifest, order = read_manifest(job), known(job, "retain", order_file("unlearned"))
    retained = receipts.get("retain")
    found = exactness.Found(
        order=order,
        original=known(job, "train", order_file("original")),
        sets=Slicing(read_samples(job.folder, manifest, "retain"), seed=order.seed, slices=order.slices).sets if order else (),
        settings=settings_of(job.config),
        given=job.config.original != "train",
        inputs=exactness.named_inputs(job.config),
        declared=section.get("declared") or {},
        share=float((section.get("retain") or {}).get("share", 1.0)),
        reads_forget=retained is None or bool(retained.facts.get("reads_forget", True)),
        phases=[name for name in METHOD_PHASES if name in receipts],
        manifest=manifest,
        released=released.sha256,
    )
    return exactness.judge(route, found)


def render_again(job: Job, *, without: Collection[str]) -> FileRef:
    """Publish the page of a finished run once more, without some of its pictures, given as files of the run."""
    receipts = [receipt for name in (*job.spec.needs, job.spec.name) if (receipt := read_receipt(job.folder, name)) is not None]
    published = {ref.uri: ref for receipt in receipts for ref in receipt.outputs if ref.uri not in without}
    facts = json.loads(_content(job, published, "report.json"))
    ref = publish_bytes(job.path("report.html"), page.render(facts, _material(job, published)).encode())
    return dataclasses.replace(ref, uri="report.html")


def _material(job: Job, published: dict[str, FileRef]) -> page.Material:
    """What the page shows beside the facts."""
    return page.Material(
        errors=_errors(_content(job, published, "evaluation/errors.npz")),
        grids={
            uri.removeprefix("evaluation/grid_").removesuffix(".png"): _content(job, published, uri)
            for uri in published
            if uri.startswith("evaluation/grid_")
        },
        metrics={name: _metrics(job, name) for name in PHASES},
    )


def _copy_weights(job: Job, published: dict[str, FileRef]) -> FileRef:
    """Copy the unlearned weights; see `_copy_checked`."""
    return _copy_checked(job, published, _last_weights(job), "weights/model.safetensors")


def _copy_exported(job: Job, published: dict[str, FileRef]) -> list[str]:
    """Copy what the model's own library saved, to `weights/pretrained/`; nothing for a model without a library."""
    found = {uri: f"weights/{uri}" for uri in published if uri.startswith("pretrained/")}
    for uri, name in found.items():
        _copy_checked(job, published, uri, name)
    return list(found.values())


def _copy_checked(job: Job, published: dict[str, FileRef], uri: str, name: str) -> FileRef:
    """Copy a file in blocks, and compare the digest of what was copied; nothing appears if it differs."""
    with publish(job.path(name)) as out:
        _copy(job.path(uri), out)
        _check(job, published, uri, out.ref.sha256)
    return out.ref


def _last_weights(job: Job) -> str:
    """The weights of the method's last phase; of a method without one, the original's."""
    name = weights_before(job.spec)[1]
    return f"checkpoints/{name}/model.safetensors"


def _copy(uri: str, out: HashingWriter) -> None:
    with open_read(uri) as stream:
        while block := stream.read(BLOCK):
            out.write(block)


def _check(job: Job, published: dict[str, FileRef], uri: str, sha256: str) -> None:
    if uri not in published:
        raise StorageError(f"{job.path(uri)}: no finished stage wrote it", "run the chain from its start")
    if published[uri].sha256 != sha256:
        raise IntegrityError(f"{job.path(uri)}: not the bytes that its receipt names", "restore the file, or remove its receipt")


def _content(job: Job, published: dict[str, FileRef], uri: str) -> bytes:
    """A published file's bytes, checked against its receipt."""
    content = read_bytes(job.path(uri)) if uri in published else b""
    _check(job, published, uri, hashlib.sha256(content).hexdigest())
    return content


def _errors(content: bytes) -> dict[str, NDArray[np.float64]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _metrics(job: Job, stage: str) -> list[dict[str, Any]]:
    """Lines of a phase's metrics file; none where there is no file, for curves are no evidence."""
    uri = job.path("metrics", f"{stage}.jsonl")
    if not exists(uri):
        return []
    return [json.loads(line) for line in read_bytes(uri).decode().splitlines() if line.strip()]
