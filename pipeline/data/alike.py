"""Requests for all images that look like a given one: they become requests for the keys of those images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.data.likeness import near_pairs
from pipeline.data.rows import read_columns
from pipeline.errors import ConfigError
from pipeline.records import FileRef, RequestBatch, Selector

__all__ = ["BITS_APART", "asks_for_likeness", "spell_out"]

BITS_APART = 3
"""How many bits may differ where the run does not say what a near copy is."""


def asks_for_likeness(batch: RequestBatch) -> bool:
    """Whether a request of the batch is for what looks like an image."""
    return any(request.selector.kind == "likeness" for request in batch.requests)


def spell_out(batch: RequestBatch, *, parts: Sequence[FileRef], hashes: Sequence[np.ma.MaskedArray], bits: int) -> RequestBatch:
    """The batch with keys in place of likenesses.

    Args:
        batch: the requests; values of the kind `likeness` are 16 hexadecimal digits of a perceptual hash.
        parts: index files of all training images.
        hashes: the perceptual hashes of each part's rows.
        bits: hashes that differ in at most so many bits look alike.

    Raises:
        ConfigError: a value that is no hash, or that no training image looks like.
    """
    places = [
        (number, value)
        for number, request in enumerate(batch.requests)
        if request.selector.kind == "likeness"
        for value in request.selector.values
    ]
    wanted = np.array([_hash(value) for _, value in places], dtype=np.uint64)
    found: list[list[str]] = [[] for _ in places]
    for part, column in zip(parts, hashes, strict=True):
        there = np.flatnonzero(~np.ma.getmaskarray(column))
        pairs = near_pairs(wanted, column.data[there], bits)
        names = read_columns(part.uri, part.sha256, ["key"])[0]["key"] if len(pairs) else ()
        for place, other, _ in pairs.tolist():
            found[place].append(str(names[int(there[other])]))
    keys: dict[int, set[str]] = {}
    for (number, _), like in zip(places, found, strict=True):
        if not like:
            message = f"request {batch.requests[number].request_id}: likeness: no training image looks like one of its images"
            raise ConfigError(message, "take the request out of the batch, or name keys")
        keys.setdefault(number, set()).update(like)
    return dataclasses.replace(
        batch,
        requests=tuple(
            dataclasses.replace(request, selector=Selector(kind="keys", values=tuple(sorted(keys[number]))))
            if number in keys
            else request
            for number, request in enumerate(batch.requests)
        ),
    )


def _hash(value: str) -> int:
    if len(value) == 16:
        try:
            return int.from_bytes(bytes.fromhex(value), "big")
        except ValueError:
            pass
    raise ConfigError(
        "requests: likeness: not a perceptual hash", "write 16 hexadecimal digits, as `unlearn requests add --like` does"
    )
