"""The one way to run a stage: read inputs, return if nothing changed, work, publish, write the receipt last.

A stage may be repeated, resumed or started twice without harm. It runs in its own process group.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline import __version__
from pipeline.chain import StageSpec, config_digest, current_receipt, for_variant, inputs_of, read_receipt, stage, write_receipt
from pipeline.claim import fence
from pipeline.config import RunConfig, read_run
from pipeline.decode import decode, digest
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef, Manifest, Receipt
from pipeline.storage import absolute, hash_file, join, read_bytes

__all__ = ["Job", "Result", "read_manifest", "read_record", "read_verified", "run_stage"]

log = logging.getLogger("unlearn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage is given: the run's configuration and folder, and its place in the process group."""

    spec: StageSpec
    config: RunConfig
    folder: str
    rank: int = 0
    world_size: int = 1

    def path(self, *parts: str) -> str:
        """URI of a file of the run."""
        return join(self.folder, *parts)

    @property
    def home(self) -> str:
        """Folder of what the stage publishes: the run's, or in a comparison the method's."""
        return self.path(self.own(""))

    def own(self, uri: str) -> str:
        """A file in `home`, relative to the run's folder."""
        return f"methods/{self.spec.variant}/{uri}".rstrip("/") if self.spec.variant else uri

    @property
    def first(self) -> bool:
        """Whether this process is the one that publishes."""
        return self.rank == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a stage hands to the runner: the files it published, relative to the run folder, and facts to record."""

    outputs: tuple[str, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_record(job: Job, cls: type[Any], name: str) -> Any:
    """Decode a JSON record of the run whose digest the stage that wrote it put on its receipt."""
    for spec_name in (*job.spec.needs, job.spec.name):
        receipt = read_receipt(job.folder, spec_name)
        for ref in receipt.outputs if receipt else ():
            if ref.uri == name:
                return decode(cls, json.loads(read_verified(job, ref)), where=job.path(name), error=IntegrityError)
    raise StorageError(f"{job.path(name)}: no finished stage wrote it", "run the chain from its start")


def read_verified(job: Job, ref: FileRef) -> bytes:
    """The bytes of a published file, as its receipt names them; IntegrityError for others."""
    uri = job.path(ref.uri)
    if hash_file(uri).sha256 != ref.sha256:
        raise IntegrityError(f"{uri}: not the bytes that its receipt names", "restore the file, or remove its receipt")
    return read_bytes(uri)


def read_manifest(job: Job) -> Manifest:
    """The run's manifest, checked against its receipt."""
    manifest: Manifest = read_record(job, Manifest, "manifest.json")
    return manifest


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_stage(name: str, folder: str, *, rank: int = 0, world_size: int = 1) -> Receipt | None:
    """Run one stage on this process of its group.

    Returns:
        The receipt: the old one when nothing changed, the new one on rank 0, None on the other ranks.

    Raises:
        StorageError: a stage that this one reads has not run.
    """
    folder = absolute(folder)
    config = read_run(folder)
    spec = stage(name, config)
    receipt = current_receipt(config, folder, spec)
    if receipt is not None:
        log.info("%s: nothing to do", name)
        return receipt
    inputs = inputs_of(folder, spec)
    if inputs is None:
        raise StorageError(f"{folder}: {name}: a stage before it has not run", f"run first: {', '.join(spec.needs)}")
    started = _now()
    job = Job(spec=spec, config=for_variant(config, spec.variant), folder=folder, rank=rank, world_size=world_size)
    result: Result = importlib.import_module(f"pipeline.stages.{spec.module}").run(job)
    if not job.first:
        return None
    outputs = tuple(dataclasses.replace(hash_file(job.path(uri)), uri=uri) for uri in sorted(result.outputs))
    receipt = Receipt(
        stage=name,
        inputs=inputs,
        outputs=outputs,
        config_digest=config_digest(config, spec),
        code_version=f"i2i-unlearn {__version__}, python {platform.python_version()}",
        world_size=world_size,
        started_at=started,
        ended_at=_now(),
        facts=dict(result.facts),
    )
    fence()
    write_receipt(folder, receipt)
    log.info("%s: done, outputs %s", name, digest(outputs)[:12])
    return receipt
