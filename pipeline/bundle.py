"""The files of a release: what of a run folder is published, and under which names. Nothing in it tells a key or a subject.

<version>/config.json, model.safetensors, README.md   the weights, in the layout that the Hugging Face Hub reads
<version>/pretrained/                                  the same in the layout of the model's own library, where it has one
<version>/report.json, report.html, audit.*            what was measured
<version>/receipts/, manifest.json                     how it came about; the manifest without shards' names and keys' digests
<version>/forgotten.json                               keyed digests of the forgotten keys, where a secret was given
<version>/approval.json                                who let it pass that the verdict did not, where somebody had to
<version>/model.sig                                    the OpenSSF signature of all files above
<version>/statement.dsse.json                          the signed statement about all files above; written last
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import read_receipt
from pipeline.decode import canonical, decode, digest
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef, Manifest, Receipt
from pipeline.storage import exists, filesystem, hash_file, join, list_files, open_read, publish, publish_bytes, read_bytes

__all__ = [
    "FORGOTTEN",
    "STATEMENT_FILE",
    "WEIGHTS_SIGNATURE",
    "copy_file",
    "hash_files",
    "is_bundle",
    "names_below",
    "public_manifest",
    "published_names",
    "read_receipts",
    "read_run_manifest",
    "stage_files",
    "version_name",
]

STATEMENT_FILE, WEIGHTS_SIGNATURE, FORGOTTEN = "statement.dsse.json", "model.sig", "forgotten.json"
WEIGHTS = "weights/"
REPORTS = ("report.json", "report.html")
AUDIT = ("audit.json", "audit.html")
BLOCK = 1 << 20


def is_bundle(folder: str) -> bool:
    """Whether a folder is a release, whole or not, and no run folder."""
    signed = exists(join(folder, STATEMENT_FILE)) or exists(join(folder, WEIGHTS_SIGNATURE))
    return signed and not exists(join(folder, "config.yaml"))


def read_run_manifest(folder: str) -> Manifest:
    """The manifest of a run. Raises StorageError or IntegrityError, with its path."""
    uri = join(folder, "manifest.json")
    try:
        return decode(Manifest, json.loads(read_bytes(uri)), where=uri, error=IntegrityError)
    except ValueError:
        raise IntegrityError(f"{uri}: changed: not a manifest", "restore it, or run again") from None


def read_receipts(folder: str) -> dict[str, Receipt]:
    """All receipts below a folder, by stage. Raises IntegrityError where one was changed."""
    names = [uri.rsplit("/", 1)[-1].removesuffix(".json") for uri in list_files(join(folder, "receipts"), ".json")]
    return {name: receipt for name in names if (receipt := read_receipt(folder, name)) is not None}


def public_manifest(manifest: Manifest) -> dict[str, Any]:
    """The manifest as it may be published: counts and digests of contents; no address, no digest of keys.

    Names of shards can be names of people, and a digest of few keys tells whoever guesses them that they were guessed.
    """
    splits = []
    for split in manifest.splits:
        told: dict[str, Any] = {"name": split.name, "samples": split.samples, "shards": len(split.shards)}
        told["bytes"] = sum(shard.bytes for shard in split.shards)
        if split.name not in ("original", "forget"):
            told["contents"] = digest(sorted(shard.sha256 for shard in split.shards))
        splits.append(told)
    same = ("run_id", "batch_digest", "requests", "source", "source_digest", "classes", "seed", "groups", "quarantined")
    return {
        **{name: getattr(manifest, name) for name in same},
        **{"shards_clean": manifest.shards_clean, "shards_rewritten": manifest.shards_rewritten, "splits": splits},
        **{"manifest_digest": digest(manifest), "schema": "public-manifest/1"},
    }


def published_names(release: Receipt) -> dict[str, FileRef]:
    """Name in the release -> the run's file, of all that the release stage of a run wrote."""
    return {ref.uri.removeprefix(WEIGHTS): ref for ref in release.outputs if ref.uri.startswith(WEIGHTS) or ref.uri in REPORTS}


def stage_files(folder: str, target: Path, more: Mapping[str, bytes]) -> list[FileRef]:
    """Copy what is published of a run into a local folder.

    Args:
        folder: the run folder.
        target: an empty local folder.
        more: further files, by name.

    Returns:
        Every file that lies there now, by its name in the release.

    Raises:
        StorageError: the run has not been released by its own release stage.
        IntegrityError: a file is not what its receipt says.
    """
    receipts = read_receipts(folder)
    if "release" not in receipts:
        raise StorageError(f"{folder}: the run has not ended", "run it to its end first")
    refs = []
    for name, recorded in published_names(receipts["release"]).items():
        copied = copy_file(join(folder, recorded.uri), str(target / name))
        if (copied.sha256, copied.bytes) != (recorded.sha256, recorded.bytes):
            raise IntegrityError(f"{join(folder, recorded.uri)}: not the bytes that its receipt names", "restore the file")
        refs.append(dataclasses.replace(copied, uri=name))
    for name in (*AUDIT, *(f"receipts/{stage}.json" for stage in receipts)):
        if exists(join(folder, name)):
            refs.append(dataclasses.replace(copy_file(join(folder, name), str(target / name)), uri=name))
    own = {"manifest.json": canonical(public_manifest(read_run_manifest(folder))), **more}
    for name, content in own.items():
        refs.append(dataclasses.replace(publish_bytes(str(target / name), content), uri=name))
    return sorted(refs, key=lambda ref: ref.uri)


def copy_file(source: str, target: str) -> FileRef:
    """Copy one file, whole or not at all; returns what was written."""
    with open_read(source) as stream, publish(target) as out:
        while block := stream.read(BLOCK):
            out.write(block)
    return out.ref


def version_name(run_id: str, files: list[FileRef]) -> str:
    """What a release is called: its run, and digits of the digest of its files. Equal files have an equal name."""
    return f"{run_id}-{digest(sorted((ref.uri, ref.sha256) for ref in files))[:8]}"


def names_below(folder: str) -> dict[str, str]:
    """Address of every file below a folder, by its name in it; none where there is no folder."""
    start = f"{filesystem(folder)[1].rstrip('/')}/"  # stores list the same place under more than one spelling
    found = {filesystem(uri)[1].removeprefix(start): uri for uri in list_files(folder)} if exists(folder) else {}
    return dict(sorted(found.items()))


def hash_files(folder: str) -> dict[str, str]:
    """sha256 of every file below a folder, by its name in it."""
    return {name: hash_file(uri).sha256 for name, uri in names_below(folder).items()}
