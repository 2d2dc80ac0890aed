"""Erase a finished run's images from their source, and write the proof, or say what that would do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.chain import read_receipt, stage
from pipeline.config import read_run
from pipeline.data.cache import RangeCache
from pipeline.data.erase import Erasing
from pipeline.decode import canonical, decode, digest
from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.orders import EraseOrder, ErasurePlan
from pipeline.records import Erasure, Gone, record
from pipeline.stages.release import render_again
from pipeline.stages.runner import Job, read_manifest
from pipeline.storage import absolute, exists, is_local, join, lock, publish_bytes, read_bytes, relative, remove_tree

__all__ = ["PROOF", "run"]

PROOF = "erasure.json"
JOURNAL = "erasure-plan.json"
NEEDED = "release"


@record
class _Journal:
    started_at: str
    planned: tuple[Gone, ...]


def run(order: EraseOrder) -> ErasurePlan | Erasure:
    """Plan or do.

    Raises:
        ConfigError: the run has not ended, or was erased before.
        StorageError: a retention lock holds an object; nothing was touched.
        IntegrityError: a shard is not the one that the run cut, or something is still there afterwards.
    """
    folder = absolute(order.folder)
    job = _finished(folder)
    erasing = Erasing(folder, job.config, read_manifest(job))
    if not order.do:
        return _plan(erasing, job)
    with lock(folder):
        return _erase(erasing, job)


def _erase(erasing: Erasing, job: Job) -> Erasure:
    folder, manifest = job.folder, erasing.manifest
    before = _begun(folder)
    begun = before or _Journal(started_at=_now(), planned=erasing.plan())
    _refuse_locked(erasing.locks(begun.planned))
    if before is None:
        # An erasure that is broken off and repeated must prove what its first attempt removed, too.
        publish_bytes(join(folder, JOURNAL), canonical(begun))
    stones = erasing.tombstones()
    replaced = erasing.put_rest()
    packed = erasing.publish_generation()
    report = render_again(job, without=erasing.pictures)
    uploads = erasing.remove(begun.planned)
    ranges = _purge(job, dict.fromkeys((*(swap.old.uri for swap in erasing.swaps), *(item.uri for item in begun.planned))))
    swept = erasing.sweep(packed, begun.planned, stones)
    swept = {**swept, "temporary_parts": _remove_parts(folder, erasing.source_folder)}
    proof = Erasure(
        run_id=manifest.run_id,
        batch_digest=manifest.batch_digest,
        source=manifest.source,
        generation=packed.generation,
        images=len(stones.keys),
        removed=tuple(dataclasses.replace(item, uri=relative(item.uri, folder, job.config.output)) for item in begun.planned),
        replaced=(*(dataclasses.replace(ref, uri=relative(ref.uri, folder, job.config.output)) for ref in replaced), report),
        uploads_aborted=uploads,
        cached_ranges=ranges,
        swept=swept,
        remaining=_remaining(erasing, job) + tuple(erasing.elsewhere(stones)),
        started_at=begun.started_at,
        ended_at=_now(),
    )
    publish_bytes(join(folder, PROOF), canonical({"erasure": proof, "sha256": digest(proof)}))
    remove_tree(join(folder, JOURNAL))
    return proof


def _refuse_locked(locked: Sequence[str]) -> None:
    if locked:
        more = f" and {len(locked) - 1} more" if len(locked) > 1 else ""
        uri, _, date = locked[0].rpartition(": ")
        message = f"cannot erase before {date}: {uri}{more}: held by the store's object lock"
        raise StorageError(message, "come back after that date; nothing was touched")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _finished(folder: str) -> Job:
    if exists(join(folder, PROOF)):
        raise ConfigError(f"{folder}: erased already; {PROOF} is the proof", "nothing is to be done")
    if not exists(join(folder, "config.yaml")):
        raise ConfigError(f"{folder}: no run lies here", "name a run folder, the one that `unlearn run` printed")
    # The output folder is where the run lies now: it may have been moved or copied since it was written down.
    config = dataclasses.replace(read_run(folder), output=join(folder, ".."))
    if config.methods:
        raise ConfigError(f"{folder}: a comparison, which releases no model", "erase with the run whose model is released")
    if read_receipt(folder, NEEDED) is None:
        raise ConfigError(f"{folder}: the run has not ended, and needs these images to unlearn them", "run it to its end first")
    return Job(spec=stage(NEEDED, config), config=config, folder=folder)


def _begun(folder: str) -> _Journal | None:
    """What an erasure that was broken off had planned."""
    uri = join(folder, JOURNAL)
    return decode(_Journal, json.loads(read_bytes(uri)), where=uri, error=IntegrityError) if exists(uri) else None


def _plan(erasing: Erasing, job: Job) -> ErasurePlan:
    begun = _begun(job.folder)
    planned = begun.planned if begun else erasing.plan()
    return ErasurePlan(
        replaced=tuple(swap.old.uri for swap in erasing.swaps if swap.rest is not None),
        removed=tuple(swap.old.uri for swap in erasing.swaps if swap.rest is None),
        versions=len(planned),
        bytes=sum(item.bytes for item in planned),
        images=erasing.manifest.split("forget").samples,
        locked=erasing.locks(planned),
        remaining=_remaining(erasing, job),
    )


def _remaining(erasing: Erasing, job: Job) -> tuple[str, ...]:
    """What holds the images, or what was learned from them, and is not removed here."""
    left = list(erasing.unlisted())
    if aside := len(erasing.packed().quarantine):
        left.append(f"{aside} faulty shards or samples that were set aside: whose images they hold is not known")
    if erasing.swaps and not any(swap.in_place or swap.target == swap.old.uri for swap in erasing.swaps):
        left.append(f"the files that source '{job.config.source['component']}' was packed from: remove the images there")
    weights = [name for name in ("original", "forgotten") if exists(job.path("checkpoints", name, "model.safetensors"))]
    if exists(job.path("checkpoints", "original", "slice-1", "model.safetensors")):
        weights.append("original/slice-*")
    if weights:
        left.append(f"checkpoints/{' and '.join(weights)}: weights of models that saw the images")
    planted = job.path("audit", "planted.json")
    if exists(planted):
        twin = json.loads(read_bytes(planted)).get("twin", "")
        left.append(f"{twin}: the planted twin of this run holds changed copies of the images: remove it and its packed source")
    return tuple(left)


def _purge(job: Job, uris: Iterable[str]) -> int:
    folder = job.config.reading.cache_folder
    return RangeCache(folder, job.config.reading.cache_bytes).purge(uris) if folder and Path(folder).is_dir() else 0


def _remove_parts(*folders: str) -> int:
    """Remove what writers that were killed left behind."""
    count = 0
    for folder in filter(is_local, folders):
        for path in [*Path(folder).rglob(".*.part"), *Path(folder).rglob(".spool")]:
            count += 1
            shutil.rmtree(path) if path.is_dir() else os.unlink(path)
    return count
