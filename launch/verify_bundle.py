"""`unlearn verify` of a release: from its files alone, offline, on any machine, without torch.

The statement's signature, the digest of every file it names, files that it does not name, the OpenSSF signature of the weights,
the chain of receipts, and the statement against the report.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.bundle import FORGOTTEN, STATEMENT_FILE, WEIGHTS_SIGNATURE, copy_file, hash_files, is_bundle, published_names
from pipeline.chain import read_receipt
from pipeline.decode import digest
from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.forgotten import is_forgotten, read_forgotten
from pipeline.ledger.pseudonyms import key_id
from pipeline.records import Receipt, record
from pipeline.signing import Opened, unseal, verify_folder
from pipeline.statement import contradictions, subjects
from pipeline.storage import absolute, exists, is_local, join, read_bytes

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

    from pipeline.ledger.store import Ledger

__all__ = ["ReleaseFindings", "answer_about_key", "is_release", "ledger_fault", "verify_release"]


@record
class ReleaseFindings:
    """What was checked of a release and everything that is wrong. `trusted`: the given key signed it; `weights_signature` says
    what became of the OpenSSF signature."""

    folder: str
    files: int
    receipts: int
    signed_by: tuple[str, ...]
    trusted: bool
    weights_signature: str
    words: str
    faults: tuple[str, ...]
    schema: Literal["release-findings/1"] = "release-findings/1"


def is_release(folder: str) -> bool:
    """Whether a folder is a release, whole or not, and no run folder. Raises StorageError where there is nothing."""
    return is_bundle(absolute(folder))


def ledger_fault(folder: str, ledger: Ledger) -> str:
    """Hold the end of the history that a release names against a ledger; empty: that entry is still what it was.

    Whoever rewrites a whole history, its end included, is found by this. The release should have been verified before.

    Raises:
        ConfigError: the release names no ledger.
    """
    from pipeline.ledger.history import entries

    head = unseal(read_bytes(join(absolute(folder), STATEMENT_FILE)), where=folder).payload["predicate"]["ledger"]
    if head is None:
        raise ConfigError(f"{folder}: was released without a ledger", "leave --ledger out")
    with ledger.read() as tx:
        found = entries(tx, after=head["seq"] - 1, limit=1)
    if found and (found[0]["seq"], found[0]["hash"]) == (head["seq"], head["hash"]):
        return ""
    return f"{ledger.name}: entry {head['seq']} of its history is not what it was when this was released"


def verify_release(folder: str, key: SSlibKey | None = None) -> ReleaseFindings:
    """Check a release against its own statement.

    Args:
        folder: of the release, on any storage.
        key: who must have signed it; None: the signature says who, and nothing is trusted.

    Raises:
        StorageError: the folder cannot be read.
    """
    folder = absolute(folder)
    uri = join(folder, STATEMENT_FILE)
    faults: list[str] = []
    there = hash_files(folder)
    opened = _open(uri, key, faults)
    named = subjects(opened.payload) if opened else {}
    if opened and not named:
        faults.append(f"{uri}: names no files")
    for name, sha256 in named.items():
        if name not in there:
            faults.append(f"{join(folder, name)}: missing")
        elif there[name] != sha256:
            faults.append(f"{join(folder, name)}: changed")
    if opened:
        strangers = sorted(there.keys() - named.keys() - {STATEMENT_FILE})
        faults += [f"{join(folder, name)}: a stranger: the statement does not name it" for name in strangers]
    receipts = _receipts(folder, there, faults)
    _chain(folder, there, receipts, faults)
    if opened:
        faults += _report(folder, uri, opened.payload, receipts)
    weights, fault = _weights(folder, there, key)
    return ReleaseFindings(
        folder=folder,
        files=len(named),
        receipts=len(receipts),
        signed_by=opened.key_ids if opened else (),
        trusted=bool(opened and opened.trusted),
        weights_signature=weights,
        words=_words(opened),
        faults=tuple(dict.fromkeys([*faults, *fault])),
    )


def _words(opened: Opened | None) -> str:
    """What the statement says may be claimed; empty where it says nothing."""
    try:
        return str(opened.payload["predicate"]["claim"]["words"]) if opened else ""
    except (KeyError, TypeError):
        return ""


def _open(uri: str, key: SSlibKey | None, faults: list[str]) -> Opened | None:
    if not exists(uri):
        faults.append(f"{uri}: missing: a release without its statement is none")
        return None
    content = read_bytes(uri)
    try:
        return unseal(content, where=uri, key=key)
    except IntegrityError as fault:
        faults.append(fault.message)
    try:
        return dataclasses.replace(unseal(content, where=uri), trusted=False)
    except IntegrityError:
        return None


def _receipts(folder: str, there: Mapping[str, str], faults: list[str]) -> dict[str, Receipt]:
    found: dict[str, Receipt] = {}
    for name in sorted(there):
        if not name.startswith("receipts/") or not name.endswith(".json"):
            continue
        stage = name.removeprefix("receipts/").removesuffix(".json")
        try:
            receipt = read_receipt(folder, stage)
        except (IntegrityError, StorageError) as fault:
            faults.append(fault.message)
            continue
        if receipt is not None:
            found[stage] = receipt
    return found


def _chain(folder: str, there: Mapping[str, str], receipts: Mapping[str, Receipt], faults: list[str]) -> None:
    """Each receipt against those that it was made from, and the published files against the last."""
    for stage, receipt in receipts.items():
        for name, recorded in receipt.inputs.items():
            if name not in receipts:
                faults.append(f"stage {stage}: was made from stage {name}, whose receipt is missing")
            elif digest(receipts[name].outputs) != recorded:
                faults.append(f"stage {stage}: was made from other outputs of stage {name}")
    if "release" not in receipts:
        faults.append(f"{join(folder, 'receipts', 'release.json')}: missing or changed: where the files come from is not known")
        return
    for name, ref in published_names(receipts["release"]).items():
        if there.get(name, ref.sha256) != ref.sha256:
            faults.append(f"{join(folder, name)}: not what stage release wrote")


def _report(folder: str, uri: str, statement: Mapping[str, Any], receipts: Mapping[str, Receipt]) -> list[str]:
    try:
        report = json.loads(read_bytes(join(folder, "report.json")))
    except (ValueError, StorageError):
        return [f"{join(folder, 'report.json')}: missing or changed: the statement cannot be held against it"]
    return [f"{uri}: its {name} is not what report and receipts say" for name in contradictions(statement, report, receipts)]


def _weights(folder: str, there: Mapping[str, str], key: SSlibKey | None) -> tuple[str, list[str]]:
    """What became of the OpenSSF signature, and what is wrong with it."""
    uri = join(folder, WEIGHTS_SIGNATURE)
    if WEIGHTS_SIGNATURE not in there:
        return "missing", [f"{uri}: missing"]
    if key is None:
        return "not checked: no key was given", []
    try:
        if is_local(folder):
            wrong = verify_folder(folder, uri, key)
        else:
            with tempfile.TemporaryDirectory(prefix="unlearn-") as scratch:  # the library reads local files only
                for name in there:
                    copy_file(join(folder, name), str(Path(scratch, name)))
                wrong = verify_folder(scratch, str(Path(scratch, WEIGHTS_SIGNATURE)), key)
    except ConfigError as fault:
        return f"not checked: {fault.message}", []
    return ("does not fit", [f"{uri}: {wrong}"]) if wrong else ("fits", [])


def answer_about_key(folder: str, secret: bytes, image_key: str) -> bool:
    """Whether an image is among those that a release forgot. The release should have been verified before.

    Raises:
        ConfigError: the release has no keyed digests, or they were made with another secret; the key is not named.
    """
    found = read_forgotten(join(absolute(folder), FORGOTTEN))
    if found is None:
        raise ConfigError(f"{folder}: has no keyed digests", "they are made at the release, where it is given a secret")
    answer = is_forgotten(found, secret, image_key)
    if answer is None:
        message = f"{folder}: its keyed digests were made with another secret ({found.secret}, and this one is {key_id(secret)})"
        raise ConfigError(message, "if that one was destroyed, nobody can tell any more")
    return answer
