"""Copies of forget images among the retained ones: the same bytes, or a picture that looks the same.

A copy left behind would teach the model again what it was told to forget. So the batch stops when there are copies,
unless each request that means the original says `copies: include` (forget them too) or `copies: ignore`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.data.likeness import near_pairs
from pipeline.data.rows import read_columns
from pipeline.data.selection import Chosen, Wanted, choose, means, wanted_by
from pipeline.errors import ConfigError
from pipeline.records import FileRef, RequestBatch
from pipeline.storage import publish_bytes, remove_tree

__all__ = ["Copies", "Copy", "add_copies"]

POLICIES = ("ignore", "include", "stop")
"""From the mildest to the strictest: a copy of an image that several requests mean is treated by the strictest."""


@dataclasses.dataclass(frozen=True, order=True)
class Copy:
    """A retained image that is a copy: where its row lies, what it is a copy of, and how many hash bits differ."""

    part: int
    row: int
    key: str
    of: str
    kind: str
    bits: int
    policy: str


@dataclasses.dataclass(frozen=True)
class Copies:
    """What was looked for and found. `near` is None where near copies were not looked for."""

    exact: int
    near: int | None


def _policies(batch: RequestBatch, chosen: Chosen, classes: Sequence[str]) -> list[str]:
    """The strictest policy of all requests that mean each chosen image."""
    answer = ["ignore"] * len(chosen)
    for policy in POLICIES[1:]:
        requests = tuple(request for request in batch.requests if request.copies == policy)
        wanted = wanted_by(RequestBatch(requests=requests), classes)
        answer = [policy if means(wanted, *row) else before for row, before in zip(chosen.rows, answer, strict=True)]
    return answer


def _exact(chosen: Chosen, policies: Sequence[str], parts: Sequence[FileRef], classes: int) -> list[Copy]:
    strictest: dict[bytes, tuple[int, str]] = {}
    for key, mark, policy in zip(chosen.keys, chosen.digests, policies, strict=True):
        strictest[mark] = max(strictest.get(mark, (-1, "")), (POLICIES.index(policy), key))
    everywhere = choose(parts, Wanted(digests=tuple(strictest)), classes)
    own = set(chosen.keys)
    return [
        Copy(part, row, key, strictest[mark][1], "exact", 0, POLICIES[strictest[mark][0]])
        for part, row, key, mark in zip(
            everywhere.part.tolist(), everywhere.file_row.tolist(), everywhere.keys, everywhere.digests, strict=True
        )
        if key not in own
    ]


def _near(
    chosen: Chosen, policies: Sequence[str], parts: Sequence[FileRef], hashes: Sequence[np.ma.MaskedArray], bits: int
) -> list[Copy]:
    """Near copies that are not exact ones; each once, with its nearest original of the strictest policy."""
    homes, rows = chosen.part.tolist(), chosen.file_row.tolist()
    known = [n for n, (part, row) in enumerate(zip(homes, rows, strict=True)) if not np.ma.getmaskarray(hashes[part])[row]]
    wanted = np.array([hashes[homes[n]].data[rows[n]] for n in known], dtype=np.uint64)
    best: dict[tuple[int, int], Copy] = {}
    for part, column in enumerate(hashes):
        there = np.setdiff1d(np.flatnonzero(~np.ma.getmaskarray(column)), chosen.file_row[chosen.part == part])
        pairs = near_pairs(wanted, column.data[there], bits)
        names = read_columns(parts[part].uri, parts[part].sha256, ["key"])[0]["key"] if len(pairs) else ()
        for first, other, differ in pairs.tolist():
            row, source = int(there[other]), known[first]
            copy = Copy(part, row, str(names[row]), chosen.keys[source], "near", differ, policies[source])
            best[part, row] = max(best.get((part, row), copy), copy, key=lambda one: (POLICIES.index(one.policy), -one.bits))
    return list(best.values())


def _together(exact: Sequence[Copy], near: Sequence[Copy]) -> list[Copy]:
    """Each copy once, in index order: as an exact one where it is both, by the stricter policy of the two."""
    found = {(copy.part, copy.row): copy for copy in near}
    for copy in exact:
        other = found.get((copy.part, copy.row), copy)
        policy = max(copy.policy, other.policy, key=POLICIES.index)
        found[copy.part, copy.row] = dataclasses.replace(copy, policy=policy)
    return sorted(found.values())


def add_copies(
    batch: RequestBatch,
    chosen: Chosen,
    *,
    classes: Sequence[str],
    parts: Sequence[FileRef],
    hashes: Callable[[], Sequence[np.ma.MaskedArray]] | None,
    bits: int,
    listing: str,
) -> tuple[Chosen, Copies]:
    """Look for copies, list them, and heed the requests' policy.

    Args:
        batch: the requests.
        chosen: the images they mean.
        classes: class names.
        parts: index files of all training images.
        hashes: gives the perceptual hashes of each part's rows; None: near copies are not looked for.
        bits: hashes that differ in at most so many bits are near.
        listing: CSV file that is written where there are copies, and removed where there are none. It holds keys. Empty:
            nothing is written, and copies never stop the batch.

    Returns:
        The images with the copies that are to be included, and how many copies stay behind by the requests' leave.

    Raises:
        ConfigError: there are copies of images whose request says `stop`.
    """
    policies = _policies(batch, chosen, classes)
    exact = _exact(chosen, policies, parts, len(classes))
    near = _near(chosen, policies, parts, hashes(), bits) if hashes is not None else []
    copies = _together(exact, near)
    if not copies:
        if listing:
            remove_tree(listing)
        return chosen, Copies(exact=0, near=0 if hashes is not None else None)
    if listing:
        _list(copies, listing)
    stopping = [copy for copy in copies if copy.policy == "stop"]
    if stopping and listing:
        counts = ", ".join(f"{sum(copy.kind == kind for copy in stopping)} {kind}" for kind in ("exact", "near"))
        message = f"requests: {len(stopping)} retained images are copies of images to be forgotten ({counts}): {listing}"
        raise ConfigError(message, "look at them; then write copies: include, or copies: ignore, in the requests")
    included = [copy for copy in copies if copy.policy == "include"]
    left = [copy for copy in copies if copy.policy != "include"]
    both = choose(parts, Wanted(keys=(*chosen.keys, *(copy.key for copy in included))), len(classes)) if included else chosen
    found = {kind: sum(copy.kind == kind for copy in left) for kind in ("exact", "near")}
    return both, Copies(exact=found["exact"], near=found["near"] if hashes is not None else None)


def _list(copies: Sequence[Copy], uri: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "copy_of", "kind", "bits", "policy"))
    writer.writerows((copy.key, copy.of, copy.kind, copy.bits, copy.policy) for copy in copies)
    publish_bytes(uri, text.getvalue().encode())
