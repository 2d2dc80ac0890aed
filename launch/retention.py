"""What still holds deleted data after a release, until when it is kept, and its removal.

`<line>/retention/<version>.json` names, for one release, the checkpoints of its run that still hold what it unlearned, and the
date. Earlier releases that hold it are found anew each time. A removal leaves `retired.json` in the run folder, so that
`unlearn verify` knows that the files are rightly gone.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from launch.released import Released
from pipeline.aliases import in_force, names
from pipeline.bundle import names_below
from pipeline.decode import canonical, decode, digest
from pipeline.errors import IntegrityError, StorageError
from pipeline.objects import remove, versions
from pipeline.records import record
from pipeline.storage import create_bytes, exists, join, publish_bytes, read_bytes

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["RETIRED", "Item", "Kept", "Retired", "holders", "keep", "kept", "retire", "retired_files"]

RETIRED = "retired.json"
CLEAN = ("unlearned", "retrain", "retrained")
"""Weights of a run that never saw the forgotten images, or are what was released."""
WEIGHTS = ("model.safetensors", "pretrained/")


@record
class Kept:
    """The keep policy of one release. `files` are relative to the run folder `run`; `kept_until` is a date (UTC)."""

    version: str
    batch: str
    run: str
    files: tuple[str, ...]
    kept_until: str
    schema: Literal["kept/1"] = "kept/1"


@record
class Item:
    """One thing that still holds deleted data. kind: `checkpoints` of a run, or `release`, an earlier one's weights · folder:
    where the files lie · held_for: the release that unlearned what it holds · alias: that names it now, so that it cannot go"""

    kind: Literal["checkpoints", "release"]
    folder: str
    version: str
    held_for: str
    files: tuple[str, ...]
    kept_until: str
    alias: str = ""


@record
class Retired:
    """Files of a run folder that were removed because they held deleted data."""

    files: tuple[str, ...]
    at: str
    by: str
    schema: Literal["retired/1"] = "retired/1"


def holders(run: str) -> tuple[str, ...]:
    """Files below a run's `checkpoints/` that saw the forgotten images, relative to the run folder."""
    return tuple(f"checkpoints/{name}" for name in names_below(join(run, "checkpoints")) if name.split("/")[0] not in CLEAN)


def keep(line: str, release: Released, run: str, *, days: int, now: str, ledger: Ledger | None = None) -> Kept:
    """Write down until when the checkpoints of a release's run are kept; what was written before stands.

    Args:
        line: folder of the model line.
        release: the release.
        run: its run folder.
        days: from `now` on.
        now: UTC, ISO 8601.
        ledger: in which the date is written down; the release must be in it.
    """
    until = (datetime.datetime.fromisoformat(now) + datetime.timedelta(days=days)).date().isoformat()
    made = Kept(version=release.version, batch=release.batch, run=run, files=holders(run), kept_until=until)
    uri = join(line, "retention", f"{release.version}.json")
    if not create_bytes(uri, canonical(made)):
        made = _read(uri)
    if ledger is not None:
        from pipeline.ledger.releases import record_kept

        with ledger.write() as tx:
            record_kept(tx, release.line, release.version, model_id=release.weights, kept_until=made.kept_until)
    return made


def _read(uri: str) -> Kept:
    content = read_bytes(uri)
    try:
        found = decode(Kept, json.loads(content), where=uri, error=IntegrityError)
    except ValueError:
        found = None
    if found is None or canonical(found) != content:
        raise IntegrityError(f"{uri}: changed: no keep policy", "restore the file")
    return found


def kept(line: str, known: Mapping[str, Released]) -> list[Item]:
    """All that still holds data that a release with a keep policy unlearned, the nearest date first.

    Args:
        line: folder of the model line.
        known: its releases, by version.
    """
    policies = [_read(uri) for uri in names_below(join(line, "retention")).values()]
    pointed = {change.version: name for name in names(line) if (change := in_force(line, name)) is not None}
    items = []
    for policy in sorted(policies, key=lambda policy: (policy.kept_until, policy.version)):
        left = tuple(name for name in policy.files if exists(join(policy.run, name)))
        same = {"held_for": policy.version, "kept_until": policy.kept_until}
        if left:
            items.append(Item(kind="checkpoints", folder=policy.run, version=policy.version, files=left, **same))
        for other in sorted(known.values(), key=lambda item: item.version):
            if other.version == policy.version or policy.batch in other.batches:
                continue
            files = tuple(name for name in names_below(other.folder) if name.startswith(WEIGHTS))
            if files and not any(item.folder == other.folder for item in items):
                alias = pointed.get(other.version, "")
                items.append(Item(kind="release", folder=other.folder, version=other.version, files=files, alias=alias, **same))
    return items


def retire(
    line: str, known: Mapping[str, Released], *, by: str, now: str, ledger: Ledger | None = None
) -> tuple[list[Item], list[Item]]:
    """Remove what is kept no longer, older versions on S3 too; what an alias names stays.

    Args:
        line: folder of the model line.
        known: its releases, by version.
        by, now: who acts, and when (UTC, ISO 8601).
        ledger: in which each removal is written down.

    Returns:
        What was removed, and what is due but named by an alias.

    Raises:
        StorageError: a file cannot be removed; what was removed before is written down.
    """
    due = [item for item in kept(line, known) if item.kept_until <= now[:10]]
    gone, stay = [item for item in due if not item.alias], [item for item in due if item.alias]
    for item in gone:
        if item.kind == "checkpoints":
            # Before the files: a removal that is cut short is known as one, and is gone on with.
            _note(item, by=by, now=now)
        for name in item.files:
            _remove(join(item.folder, name))
        if ledger is not None:
            from pipeline.ledger.releases import record_retired

            with ledger.write() as tx:
                model, whole = known[item.version], item.kind == "release"
                record_retired(tx, model.line, item.version, model_id=model.weights, files=len(item.files), weights=whole)
    return gone, stay


def _note(item: Item, *, by: str, now: str) -> None:
    before = retired_files(item.folder)
    made = Retired(files=tuple(sorted({*before, *item.files})), at=now, by=by)
    publish_bytes(join(item.folder, RETIRED), canonical({"retired": made, "sha256": digest(made)}))


def _remove(uri: str) -> None:
    for version in versions(uri):
        remove(version)
    if any(not version.marker for version in versions(uri)):
        raise StorageError(f"{uri}: still there after it was removed", "run the same command again")


def retired_files(run: str) -> tuple[str, ...]:
    """Files of a run that were removed by its keep policy. Raises IntegrityError where the note of them was changed."""
    uri = join(run, RETIRED)
    if not exists(uri):
        return ()
    try:
        sealed = json.loads(read_bytes(uri))
        made = decode(Retired, sealed["retired"], where=uri, error=IntegrityError)
        if digest(made) == sealed["sha256"]:
            return made.files
    except (ValueError, KeyError, TypeError, IntegrityError):
        pass
    raise IntegrityError(f"{uri}: changed: not a note of what was retired", "restore the file")
