"""`unlearn verify`: hash what a run published and follow its receipts from stage to stage.

Works offline and without torch. It shows that nothing changed since the receipts were written; it cannot show who wrote
them, because nothing is signed yet.
"""

from __future__ import annotations

import json
from typing import Literal

import yaml

from launch.local import refuse_other_batch
from launch.retention import RETIRED, retired_files
from pipeline.chain import CHAIN, PHASES, chain_for, config_digest, read_receipt
from pipeline.config import RunConfig
from pipeline.decode import decode, digest
from pipeline.errors import ConfigError, IntegrityError, StorageError, UnlearnError
from pipeline.layers import SAFE_NAME
from pipeline.records import Erasure, FileRef, Manifest, Receipt, ShardRef, record
from pipeline.storage import absolute, exists, hash_file, is_local, join, list_files, read_bytes

__all__ = ["Findings", "verify"]

PROOF = "erasure.json"


@record
class Findings:
    """What was checked and everything that is wrong. `remote` shards lie on other storage and were not fetched; `erased` versions
    of files, and files `retired` by a keep policy, are rightly gone."""

    folder: str
    receipts: int
    files: int
    shards: int
    remote: int
    erased: int
    faults: tuple[str, ...]
    retired: int = 0
    schema: Literal["findings/1"] = "findings/1"


class _Hashes:
    """Hashes each file once, however many records name it, and words what is wrong with it."""

    def __init__(self, folder: str, erasure: Erasure | None, retired: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.seen: dict[str, FileRef | None] = {}
        self._gone = {join(folder, item.uri) for item in erasure.removed} if erasure else set()
        self._now = {join(folder, item.uri): item for item in erasure.replaced} if erasure else {}
        self._gone -= set(self._now)
        self._retired = {join(folder, name) for name in retired}

    def fault(self, ref: FileRef | ShardRef, said_by: str) -> str | None:
        uri = join(self.folder, ref.uri)
        if uri in self._gone:
            return f"{said_by}: {uri}: still there, although {PROOF} says that it was removed" if exists(uri) else None
        if uri in self._retired:
            return f"{said_by}: {uri}: still there, although {RETIRED} says that it was removed" if exists(uri) else None
        ref = self._now.get(uri, ref)
        if uri not in self.seen:
            try:
                self.seen[uri] = hash_file(uri)
            except StorageError:
                self.seen[uri] = None
        found = self.seen[uri]
        if found is None:
            return f"{said_by}: {uri}: missing or unreadable"
        if (found.sha256, found.bytes) != (ref.sha256, ref.bytes):
            return f"{said_by}: {uri}: changed"
        return None


def verify(folder: str) -> Findings:
    """Check a run folder against its own receipts and manifest.

    Raises:
        StorageError: there is no run in the folder.
    """
    folder = absolute(folder)
    if not exists(join(folder, "config.yaml")) and not exists(join(folder, "receipts")):
        raise StorageError(f"{folder}: no run lies here", "name a run folder, the one that `unlearn run` printed")
    config, faults = _config(folder)
    receipts = _receipts(folder, config, faults)
    erasure = _erasure(folder, faults)
    retired = _retired(folder, faults)
    hashes = _Hashes(folder, erasure, retired)
    for receipt in receipts.values():
        said_by = f"stage {receipt.stage}"
        faults += [fault for ref in receipt.outputs if (fault := hashes.fault(ref, said_by))]
    files = len(hashes.seen)
    shards, remote = _manifest(folder, hashes, faults)
    faults += _report_faults(folder, receipts)
    return Findings(
        folder=folder,
        receipts=len(receipts),
        files=files,
        shards=shards,
        remote=remote,
        erased=len(erasure.removed) if erasure else 0,
        retired=len(retired),
        faults=tuple(dict.fromkeys(faults)),
    )


def _erasure(folder: str, faults: list[str]) -> Erasure | None:
    """The proof of an erasure, if there was one: what it names is rightly gone."""
    uri = join(folder, PROOF)
    if not exists(uri):
        return None
    try:
        sealed = json.loads(read_bytes(uri))
        proof = decode(Erasure, sealed["erasure"], where=uri, error=IntegrityError)
        if digest(proof) == sealed["sha256"]:
            return proof
    except (ValueError, KeyError, TypeError, IntegrityError):
        pass
    faults.append(f"{uri}: changed: not the proof of an erasure")
    return None


def _retired(folder: str, faults: list[str]) -> tuple[str, ...]:
    try:
        return retired_files(folder)
    except IntegrityError as fault:
        faults.append(fault.message)
        return ()


def _config(folder: str) -> tuple[RunConfig | None, list[str]]:
    where = join(folder, "config.yaml")
    try:
        return decode(RunConfig, yaml.safe_load(read_bytes(where)), where=where), []
    except StorageError:
        return None, [f"{where}: missing or unreadable"]
    except (ConfigError, yaml.YAMLError, ValueError):
        return None, [f"{where}: changed: not the configuration of a run"]


def _receipts(folder: str, config: RunConfig | None, faults: list[str]) -> dict[str, Receipt]:
    """The intact receipts by stage; what is missing, unknown, changed or does not fit goes to `faults`."""
    found: dict[str, Receipt] = {}
    needed = chain_for(config) if config else CHAIN
    for spec in needed:
        try:
            receipt = read_receipt(folder, spec.name)
        except (IntegrityError, StorageError) as fault:
            faults.append(f"stage {spec.name}: {fault.message}")
            continue
        if receipt is None:
            faults.append(f"stage {spec.name}: no receipt; the stage has not run")
            continue
        found[spec.name] = receipt
        if config and receipt.config_digest != config_digest(config, spec):
            faults.append(f"stage {spec.name}: config.yaml differs from the configuration it ran with")
    for stage_name, receipt in found.items():
        for name, recorded in receipt.inputs.items():
            if name in found and digest(found[name].outputs) != recorded:
                faults.append(f"stage {stage_name}: was made from other outputs of stage {name}")
    for uri in list_files(join(folder, "receipts")):
        if not _of_a_stage(uri.rsplit("/", 1)[-1], compares=bool(config and config.methods)):
            faults.append(f"{uri}: not a receipt of any stage")
    return found


def _of_a_stage(file: str, *, compares: bool) -> bool:
    """Whether a receipt is called as one of a stage is; a comparison may have had methods that it has no more."""
    name, dot, variant = file.removesuffix(".json").partition(".")
    of_method = compares and name in PHASES and SAFE_NAME.fullmatch(variant)
    return file.endswith(".json") and (bool(of_method) if dot else any(name == spec.name for spec in CHAIN))


def _manifest(folder: str, hashes: _Hashes, faults: list[str]) -> tuple[int, int]:
    """Hash the index and every shard that the manifest names; returns how many were hashed and how many lie elsewhere."""
    uri = join(folder, "manifest.json")
    if not exists(uri):
        return 0, 0  # The receipt of stage shard, or its absence, has named this already.
    try:
        manifest = decode(Manifest, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
    except (IntegrityError, ValueError):
        faults.append(f"stage shard: {uri}: changed: not a manifest")
        return 0, 0
    refs: dict[str, ShardRef | FileRef] = {ref.uri: ref for split in manifest.splits for ref in split.shards}
    checked = 0
    for ref in (*refs.values(), *manifest.index):
        if not is_local(join(folder, ref.uri)) and is_local(folder):
            continue
        checked += isinstance(ref, ShardRef)
        if fault := hashes.fault(ref, "manifest"):
            faults.append(fault)
    try:
        refuse_other_batch(folder, manifest.batch_digest)
    except UnlearnError as refusal:
        faults.append(f"stage shard: {refusal.message}")
    return checked, len(refs) - checked


def _report_faults(folder: str, receipts: dict[str, Receipt]) -> list[str]:
    """Compare the digests that the report repeats in its `provenance` with the receipts."""
    uri = join(folder, "report.json")
    if "release" not in receipts or not exists(uri):  # An unfinished or missing release is named already.
        return []
    try:
        repeated = {entry["stage"]: entry["digest"] for entry in json.loads(read_bytes(uri))["provenance"]["receipts"]}
    except (ValueError, KeyError, TypeError):
        return [f"stage release: {uri}: changed: names no receipts"]
    differing = [name for name, value in repeated.items() if name not in receipts or value != digest(receipts[name])]
    return [f"stage release: {uri}: drawn from another receipt of stage {name} than lies here" for name in differing]
