"""Names of releases that are in force, such as `production`: one numbered file a change, on any storage.

Changes lie in `<line>/aliases/<name>/<number>.json`. Only one host can make a number, each change holds the digest of the one
before, and the highest number counts; `<line>/aliases/<name>.json` repeats it for readers that want one file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.layers import SAFE_NAME
from pipeline.records import record
from pipeline.storage import create_bytes, exists, join, list_files, publish_bytes, read_bytes

__all__ = ["Change", "change", "changes", "in_force", "named_batches", "names", "point", "safe_name"]


@record
class Change:
    """One change of an alias.

    number: from 1 on · version: the release that it names from now on · batch: digest of what that unlearned · weights,
    statement: sha256 of both · act: what was done · by, reason: who did it, and why, as far as it was said · approved: whether a
    person let it pass · at: UTC · previous: sha256 of the change before; empty in the first
    """

    number: int
    version: str
    batch: str
    weights: str
    statement: str
    act: Literal["promoted", "rolled back"]
    by: str
    reason: str
    approved: bool
    at: str
    previous: str
    schema: Literal["alias/1"] = "alias/1"


def safe_name(kind: str, name: str) -> str:
    """The name itself. Raises ConfigError where it could not be a file's."""
    if not SAFE_NAME.fullmatch(name):
        raise ConfigError(f"{kind} '{name}': not a name", "use letters, digits, '_' and '-'")
    return name


def changes(line: str, name: str) -> list[Change]:
    """All changes of an alias, in order; `line` is the folder of the model line.

    Raises:
        IntegrityError: one is missing, or was changed.
    """
    found: list[Change] = []
    previous = ""
    folder = join(line, "aliases", safe_name("alias", name))
    for uri in list_files(folder, ".json") if exists(folder) else []:
        content = read_bytes(uri)
        try:
            item = decode(Change, json.loads(content), where=uri, error=IntegrityError)
            intact = canonical(item) == content and uri.endswith(f"/{item.number:06d}.json")
        except ValueError:
            intact = False
        if not intact or item.number != len(found) + 1 or item.previous != previous:
            raise IntegrityError(f"{uri}: changed, or one before it is missing", "restore the alias's history")
        found.append(item)
        previous = hashlib.sha256(content).hexdigest()
    return found


def in_force(line: str, name: str) -> Change | None:
    """The last change of an alias; None: there is no such alias."""
    known = changes(line, name)
    return known[-1] if known else None


def names(line: str) -> list[str]:
    """All aliases of a line."""
    folder = join(line, "aliases")
    return sorted({uri.rsplit("/", 2)[-2] for uri in list_files(folder, "/000001.json")} if exists(folder) else set())


def named_batches(line: str) -> frozenset[str]:
    """Digests of what the releases unlearned that an alias of the line has ever named: whoever asked for it may rely on it."""
    return frozenset(item.batch for name in names(line) for item in changes(line, name))


def change(line: str, name: str, *, before: Change | None, **told: object) -> Change:
    """Let an alias name another release, if it still names what `before` says.

    Args:
        line: folder of the model line.
        name: of the alias.
        before: what `in_force` answered when the change was decided on.
        told: the other fields of `Change`.

    Raises:
        StorageError: another host changed the alias meanwhile.
    """
    previous = "" if before is None else hashlib.sha256(canonical(before)).hexdigest()
    number = 1 if before is None else before.number + 1
    item = decode(Change, {**told, "number": number, "previous": previous}, where=f"alias {name}")
    content = canonical(item)
    if not create_bytes(join(line, "aliases", safe_name("alias", name), f"{number:06d}.json"), content):
        raise StorageError(f"alias {name}: another host changed it at the same time", "run the same command again")
    point(line, name)
    return item


def point(line: str, name: str) -> None:
    """Let the one file repeat the last change; of two hosts that do so at once the last one to look is right."""
    while (last := in_force(line, name)) is not None:
        publish_bytes(join(line, "aliases", f"{name}.json"), canonical(last))
        if in_force(line, name) == last:
            return
