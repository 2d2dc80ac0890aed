"""Which images are measured: four splits, chosen by key hash, so that neither order nor number of ranks matters.

forget: a group's images. unseen: held-out images of the same kind. retain: trained on and kept. unseen_retain: held-out
images of no forgotten class. The manifest's `calibration` split is never used: levels were set on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Group

__all__ = ["SOURCES", "Slice", "choose"]

SOURCES = ("forget", "retain", "holdout")

Integers = NDArray[np.int64]


class Table(Protocol):
    """The columns of a manifest split, in index order; `groups` numbers the manifest's groups, -1 for none."""

    @property
    def keys(self) -> list[str]: ...

    @property
    def labels(self) -> Any: ...

    @property
    def groups(self) -> Any: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Images to measure: which split they stand for, whose group, and where they lie in a manifest split."""

    split: str
    """forget, unseen, retain or unseen_retain."""
    group: str
    """Name of the forget group; empty for the two retain splits."""
    source: str
    """The manifest split that holds them."""
    indices: Integers
    """Places in that split, lowest key hash first; may be empty."""

    @property
    def name(self) -> str:
        """A label that is unique within a run."""
        return f"{self.split}/{self.group}" if self.group else self.split


def choose(tables: Mapping[str, Table], groups: Sequence[Group], *, seed: int, max_samples: int) -> list[Slice]:
    """Choose at most `max_samples` images for each split and group.

    Args:
        tables: the manifest's splits in SOURCES.
        groups: the manifest's groups, in its order.
        seed: the run's seed; another seed chooses other images.
        max_samples: limit of each slice.

    Returns:
        forget and unseen of each group, then retain, then unseen_retain.
    """
    holdout = np.asarray(tables["holdout"].labels)
    of_classes = np.isin(holdout, [label for group in groups if group.kind == "class" for label in group.labels])
    ranks = {name: _by_hash(tables[name].keys, seed) for name in SOURCES}

    def cut(split: str, group: str, source: str, wanted: NDArray[np.bool_]) -> Slice:
        order = ranks[source]
        return Slice(split=split, group=group, source=source, indices=order[wanted[order]][:max_samples])

    slices = []
    for number, group in enumerate(groups):
        forget = cut("forget", group.name, "forget", np.asarray(tables["forget"].groups) == number)
        # Held-out images of a forgotten class are alien to a model that lacks the class: no fair match for single images.
        allowed = of_classes if group.kind == "class" else ~of_classes
        alike = _same_mix(holdout, ranks["holdout"], np.asarray(tables["forget"].labels)[forget.indices], allowed, max_samples)
        slices += [forget, cut("unseen", group.name, "holdout", alike)]
    slices.append(cut("retain", "", "retain", np.ones(len(tables["retain"].keys), dtype=bool)))
    slices.append(cut("unseen_retain", "", "holdout", ~of_classes))
    return slices


def _same_mix(labels: Integers, order: Integers, wanted: Integers, allowed: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
    """Held-out images in the mix of labels that `wanted` has, as far as there are enough, at most `limit` of them.

    Without this, an easy label that is rare among forget images would make them look more alien than they are.

    Args:
        labels: of the held-out images, [N].
        order: their places, lowest key hash first.
        wanted: labels of the forget images, [M].
        allowed: held-out images that may be taken, [N].

    Returns:
        bool [N].
    """
    chosen = np.zeros(len(labels), dtype=bool)
    for label, num in zip(*np.unique(wanted, return_counts=True), strict=True):
        alike = order[(labels == label)[order] & allowed[order]]
        chosen[alike[: limit * int(num) // len(wanted)]] = True
    return chosen


def _by_hash(keys: Sequence[str], seed: int) -> Integers:
    """Places of the keys, sorted by sha256 of seed and key."""
    hashes = [hashlib.sha256(f"{seed}|{key}".encode()).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=hashes.__getitem__), dtype=np.int64)
