"""The releases of a model line, as their signed statements tell them, and which of them may still hold deleted data."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.aliases import safe_name
from pipeline.bundle import FORGOTTEN, STATEMENT_FILE
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import record
from pipeline.signing import unseal
from pipeline.statement import PREDICATE, subjects
from pipeline.storage import absolute, exists, join, list_files, read_bytes

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

__all__ = ["Candidate", "Released", "holds", "line_folder", "named", "read_release", "releases"]


@record
class Released:
    """One release. `statement` is the sha256 of its statement's file; `batches` are those whose images it holds no more."""

    line: str
    version: str
    folder: str
    parent: str | None
    run_id: str
    batch: str
    requests: int
    weights: str
    batches: tuple[str, ...]
    verdict: str
    released_at: str
    statement: str
    key_ids: tuple[str, ...]
    forgotten: str
    """sha256 of its keyed digests; empty where it has none."""
    forgotten_words: str
    """How many there are, or why there are none."""


@record
class Candidate:
    """What is known of a release before it is published; see `Released`."""

    version: str
    weights: str
    batch: str
    batches: tuple[str, ...]


def line_folder(to: str, line: str) -> str:
    """The folder of a model line below a folder of releases. Raises ConfigError for a name that could not be a folder's."""
    return join(absolute(to), safe_name("line", line))


def releases(line: str, trusted: Sequence[SSlibKey] = ()) -> dict[str, Released]:
    """All complete releases of a line, by version.

    Args:
        line: folder of the line.
        trusted: keys of which one must have signed each; empty: signatures are not checked.

    Raises:
        IntegrityError: a statement was changed, or signed by another.
    """
    if not exists(line):
        return {}
    found = [uri.removesuffix(f"/{STATEMENT_FILE}") for uri in list_files(line, f"/{STATEMENT_FILE}")]
    found = [folder for folder in found if not folder.rsplit("/", 1)[-1].startswith(".")]  # not there yet
    return {item.version: item for item in (read_release(folder, trusted) for folder in found)}


def read_release(folder: str, trusted: Sequence[SSlibKey] = ()) -> Released:
    """What the statement of one release says. Raises as `releases` does."""
    uri = join(folder, STATEMENT_FILE)
    content = read_bytes(uri)
    opened = unseal(content, where=uri)
    key = next((key for key in trusted if key.keyid in opened.key_ids), None)
    if trusted:
        if key is None:
            cure = "name that key's public file with --trust, if it is one of yours"
            raise IntegrityError(f"{uri}: signed by {', '.join(opened.key_ids)}, which is not trusted here", cure)
        unseal(content, where=uri, key=key)
    try:
        predicate, version = opened.payload["predicate"], folder.rstrip("/").rsplit("/", 1)[-1]
        lineage = predicate["lineage"]
        if opened.payload["predicateType"] != PREDICATE or lineage["version"] != version:
            raise KeyError("lineage")
        return Released(
            line=lineage["line"],
            version=version,
            folder=folder,
            parent=lineage["parent"],
            run_id=predicate["run"]["id"],
            batch=predicate["run"]["batchDigest"],
            requests=predicate["run"]["requests"],
            weights=predicate["weights"]["sha256"],
            batches=tuple(lineage["batches"]),
            verdict=predicate["verdict"]["outcome"],
            released_at=predicate["releasedAt"],
            statement=hashlib.sha256(content).hexdigest(),
            key_ids=opened.key_ids,
            forgotten=subjects(opened.payload).get(FORGOTTEN, ""),
            forgotten_words=str(predicate["forgotten"].get("note") or predicate["forgotten"]["count"]),
        )
    except (KeyError, TypeError):
        raise IntegrityError(f"{uri}: not the statement of this release", "restore the release") from None


def named(known: Mapping[str, Released], version: str, line: str) -> Released:
    """The release of this version. Raises ConfigError where the line has none."""
    if version not in known:
        some = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"{version}: no release of {line}", f"its releases: {some}")
    return known[version]


def holds(target: Released | Candidate, batches: Collection[str]) -> tuple[str, ...]:
    """Of some batches, by their digests, those whose images a release may still hold; sorted."""
    return tuple(sorted({*batches} - {"", *target.batches}))
