"""`unlearn release`: publish a finished run as a signed folder, whole or not at all, and let an alias name it.

Equal releases have an equal name, so sending one twice changes nothing. The folder appears under its name when all of it is
there: locally by a rename, elsewhere by its statement, which is written last and without which nothing reads it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launch.gate import Approval, refuse_unfit
from launch.local import read_report
from launch.promote import Promotion, move, passed_on, refuse_held
from launch.released import Candidate, Released, line_folder, read_release, releases
from launch.staging import staging
from launch.verify import verify
from pipeline.aliases import safe_name
from pipeline.bundle import (
    FORGOTTEN,
    STATEMENT_FILE,
    WEIGHTS_SIGNATURE,
    copy_file,
    read_receipts,
    read_run_manifest,
    stage_files,
    version_name,
)
from pipeline.decode import canonical, digest, plain
from pipeline.errors import IntegrityError, StorageError
from pipeline.forgotten import Forgotten, clean_of, forgotten_of, read_forgotten
from pipeline.records import FileRef, Manifest, Receipt, ShardRef, record
from pipeline.signing import SigningKey, seal, sign_folder, verify_folder
from pipeline.statement import Lineage, build
from pipeline.storage import create_bytes, exists, hash_file, is_local, join, publish_bytes, read_bytes

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

    from pipeline.ledger.store import Ledger

__all__ = ["Outcome", "Wish", "release"]

WITHOUT = "not computed: no secret was given"
ERASED = "not computed: the run's images were erased before it was released"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of a release.

    to: folder or URI below which model lines lie · line: empty: the run's name · alias: to be moved to it; empty: none · secret:
    of the keyed digests; None: they are not computed · old_secrets: of earlier releases' digests · approval: of a person ·
    trusted: public keys of earlier releases, beside the own · by: who acts · now: UTC, ISO 8601
    """

    to: str
    key: SigningKey
    by: str
    now: str
    line: str = ""
    alias: str = ""
    secret: bytes | None = None
    old_secrets: tuple[bytes, ...] = ()
    approval: Approval | None = None
    trusted: tuple[SSlibKey, ...] = ()


@record
class Outcome:
    """What one `unlearn release` did. `new`: its folder was written now; `promotion`: what became of the alias that was named."""

    release: Released
    line: str
    known: Mapping[str, Released]
    new: bool
    approved: bool
    promotion: Promotion | None


def release(folder: str, wish: Wish, *, ledger: Ledger | None = None) -> Outcome:
    """Publish a finished run.

    Args:
        folder: the run folder.
        wish: what is wanted.
        ledger: whose history the statement names, and in which the release is written down.

    Raises:
        GateFailed: the verdict did not pass, and nobody let it.
        IntegrityError: the run is not what its receipts say.
        ConfigError: the release, or the alias, may not be.
        StorageError: a store refuses, or another host was at work on the same alias.
    """
    report = read_report(folder)
    needed = refuse_unfit(report, _audit(folder, report), wish.approval)
    found = verify(folder)
    if found.faults:
        lead = f"{folder}: not released, for it does not verify"
        raise IntegrityError("\n  ".join([lead, *found.faults]), "restore what is named, or run the chain again")
    name = safe_name("line", wish.line or str(report["name"]))
    wish, line = dataclasses.replace(wish, line=name), line_folder(wish.to, name)
    if wish.alias:
        safe_name("alias", wish.alias)
    manifest, receipts = read_run_manifest(folder), read_receipts(folder)
    trusted = (wish.key.public, *wish.trusted)
    known = releases(line, trusted)
    with staging(line) as stage:
        forgotten, note = _forgotten(folder, manifest, wish.secret)
        more = {FORGOTTEN: canonical(forgotten)} if forgotten else {}
        if needed and wish.approval:
            # Without its time: a release that is sent twice keeps its name.
            more["approval.json"] = canonical({"approver": wish.approval.approver, "reason": wish.approval.reason})
        files = stage_files(folder, stage, more)
        version = version_name(str(report["run_id"]), files)
        target, new = join(line, version), version not in known
        if new:
            lineage = _lineage(wish, folder, manifest, receipts, known, version)
            if wish.alias:
                # Before anything is published: what may not be named yet can be sent again, with what it lacked.
                weights = str(report["provenance"]["weights"]["sha256"])
                candidate = Candidate(version=version, weights=weights, batch=manifest.batch_digest, batches=lineage.batches)
                refuse_held(line, wish.alias, candidate, approval=wish.approval, ledger=ledger)
            stated: dict[str, Any] = {
                "lineage": lineage,
                "released_at": wish.now,
                "forgotten": {"count": len(forgotten.digests), "secret": forgotten.secret} if forgotten else {"note": note},
                "ledger": _head(ledger),
                "approval": plain(wish.approval) if needed and wish.approval else None,
            }
            new = _publish(stage, target, files, wish.key, lambda refs: build(refs, report, receipts, **stated))
    made = read_release(target, trusted)
    known = {**known, version: made}
    if ledger is not None:
        _record(ledger, folder, manifest, made)
    promotion = None
    if wish.alias:
        promotion = passed_on(line, wish.alias, version) or move(
            line, wish.alias, made, act="promoted", by=wish.by, now=wish.now, approval=wish.approval, ledger=ledger
        )
    if ledger is not None:
        # Only now: with an alias that may not move, the old model stays in force, and nothing counts as forgotten.
        _settle(ledger, made)
    return Outcome(release=made, line=line, known=known, new=new, approved=needed, promotion=promotion)


def _audit(folder: str, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The audit of these weights, or None where there was none."""
    uri = join(folder, "audit.json")
    if not exists(uri):
        return None
    try:
        found = json.loads(read_bytes(uri))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise IntegrityError(f"{uri}: changed: not an audit", "run `unlearn audit` again")
    if found.get("weights_sha256") != report["provenance"]["weights"]["sha256"]:
        raise IntegrityError(f"{uri}: of other weights than the report's", "run `unlearn audit` again, or remove the file")
    return found


def _forgotten(folder: str, manifest: Manifest, secret: bytes | None) -> tuple[Forgotten | None, str]:
    """The keyed digests of what the run forgot, or why there are none."""
    if secret is None:
        return None, WITHOUT
    if exists(join(folder, "erasure.json")):
        return None, ERASED
    return forgotten_of(folder, manifest, secret), ""


def _lineage(
    wish: Wish, folder: str, manifest: Manifest, receipts: Mapping[str, Receipt], known: Mapping[str, Released], version: str
) -> Lineage:
    """What the released weights were made from, and whose images they hold no more."""
    outputs = {ref.uri: ref.sha256 for ref in receipts["train"].outputs} if "train" in receipts else {}
    began = outputs.get("checkpoints/original/model.safetensors")
    parent = next((item for item in known.values() if item.weights == began), None)
    given = _original(folder) != "train"
    own, others, note = manifest.batch_digest, set[str](), ""
    if wish.secret is None or exists(join(folder, "erasure.json")):
        note = f"other batches were {WITHOUT if wish.secret is None else ERASED}"
    else:
        inherited = (parent.batches if parent else ()) if given else None
        earlier = _earlier_digests(item for item in known.values() if item.batch != own)
        for secret in (wish.secret, *wish.old_secrets):
            others |= set(clean_of(folder, manifest, secret, earlier, inherited=inherited))
    batches = (own, *sorted(others - {own}))
    return Lineage(line=wish.line, version=version, parent=parent.weights if parent else None, batches=batches, note=note)


def _earlier_digests(known: Iterable[Released]) -> dict[str, Forgotten]:
    """What each batch forgot, by all its releases together."""
    found: dict[str, Forgotten] = {}
    for item in known:
        if not item.forgotten:
            continue
        read = read_forgotten(join(item.folder, FORGOTTEN), item.forgotten)
        if read is None:
            raise IntegrityError(f"{join(item.folder, FORGOTTEN)}: missing", "restore the file")
        before = found.get(item.batch, read)
        # Made with two secrets they cannot be put together; nobody's digests are then the batch's.
        both = {*before.digests, *read.digests} if before.secret == read.secret else set[str]()
        found[item.batch] = Forgotten(secret=read.secret, digests=tuple(sorted(both)))
    return found


def _original(folder: str) -> str:
    uri = join(folder, "config.yaml")
    return str((yaml.safe_load(read_bytes(uri)) or {}).get("original", "train"))


def _publish(
    stage: Path, target: str, files: Sequence[FileRef], key: SigningKey, statement: Callable[[list[FileRef]], dict[str, Any]]
) -> bool:
    """Sign what lies in `stage` and let it appear at `target`; False: another host was first."""
    signature = stage / WEIGHTS_SIGNATURE
    sign_folder(str(stage), str(signature), key, leave_out=(WEIGHTS_SIGNATURE, STATEMENT_FILE))
    remote = join(target, WEIGHTS_SIGNATURE)
    if not is_local(target) and not create_bytes(remote, signature.read_bytes()):
        # Signatures are never equal twice; two hosts at the same release must agree on one.
        own = signature.read_bytes()
        copy_file(remote, str(signature))
        if verify_folder(str(stage), str(signature), key.public):
            signature.write_bytes(own)  # left by a release with another key that did not come to its end
            publish_bytes(remote, own)
    refs = [*files, dataclasses.replace(hash_file(str(signature)), uri=WEIGHTS_SIGNATURE)]
    envelope = seal(statement(refs), key)
    if is_local(target):
        publish_bytes(str(stage / STATEMENT_FILE), envelope)
        try:
            os.rename(stage, target)
        except OSError as fault:
            if fault.errno in (errno.ENOTEMPTY, errno.EEXIST) and exists(join(target, STATEMENT_FILE)):
                return False
            raise StorageError(f"{target}: {fault.strerror}", "remove what lies there, or choose another folder") from None
        return True
    for ref in files:
        copy_file(str(stage / ref.uri), join(target, ref.uri))
    return create_bytes(join(target, STATEMENT_FILE), envelope)


def _head(ledger: Ledger | None) -> dict[str, Any] | None:
    if ledger is None:
        return None
    with ledger.read() as tx:
        return {"seq": tx.seq, "hash": tx.hash}


def _record(ledger: Ledger, folder: str, manifest: Manifest, made: Released) -> None:
    from pipeline.ledger.releases import Model, record_model

    def there(split: str) -> tuple[ShardRef, ...]:
        return tuple(dataclasses.replace(ref, uri=join(folder, ref.uri)) for ref in manifest.split(split).shards)

    model = Model(
        model_id=made.weights,
        line=made.line,
        version=made.version,
        batch=made.batch,
        folder=folder,
        uri=made.folder,
        verdict=made.verdict,
        parent=made.parent,
        digests={"statement": made.statement, "manifest": digest(manifest)},
        trained=there("original"),
        forgotten=there("forget"),
    )
    with ledger.write() as tx:
        record_model(tx, model)


def _settle(ledger: Ledger, made: Released) -> None:
    from pipeline.ledger.releases import release_batch

    with ledger.write() as tx:
        release_batch(tx, made.batch, version=made.version, model_id=made.weights)
