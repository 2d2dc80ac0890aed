"""Slices of a training set, and the digest that says of a set of samples that it is this one and no other.

After SISA training (Bourtoule et al. 2021, arXiv 1912.03817, section IV.C): stage r trains on slices 1 to r, so the weights at
its end hold nothing of slices r + 1 to R. Which slice a sample is in is a function of its key and the seed alone. So the
slices of what is retained are the slices of what there was, less what is forgotten; and two sets are equal where their
digests are, which shows that nothing forgotten was among the samples of a stage, without a list of them.

The digest is the sum modulo 2**256 of sha256(seed, key, sha256 of the image): a changed image changes it, the order does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.data.rows import KeysDigest
from pipeline.data.samples import Samples

__all__ = ["SampleSet", "Slicing", "passes_of", "slice_of", "slice_seed"]


def slice_of(key: str, *, seed: int, slices: int) -> int:
    """The slice of a key, 1 to `slices`, each equally likely."""
    return 1 + (int.from_bytes(hashlib.sha256(f"{seed}|slice|{key}".encode()).digest(), "big") * slices >> 256)


def slice_seed(seed: int, number: int, slices: int) -> int:
    """Seed of the sample order of stage `number`; of training in one stage, `seed` itself."""
    return seed if slices == 1 else int.from_bytes(hashlib.sha256(f"{seed}|stage|{number}".encode()).digest()[:4], "big")


def passes_of(epochs: int, slices: int) -> tuple[int, ...]:
    """Passes of each stage over its slices, at least one.

    Stage r reads r slices a pass, and all stages together read `epochs * slices` slices, as training in one stage does. SISA
    gives each stage 2 * epochs / (slices + 1) passes; what that leaves over goes to the last stages, which see most samples.

    Raises:
        ValueError: too few epochs for a pass each.
    """
    each = 2 * epochs // (slices + 1)
    if not each:
        raise ValueError("fewer passes than stages")
    left, found = epochs * slices - each * slices * (slices + 1) // 2, [each] * slices
    for number in range(slices, 0, -1):
        if number <= left:
            found[number - 1] += 1
            left -= number
    return tuple(found)


class SampleSet(NamedTuple):
    """How many samples, and the digest of exactly these."""

    samples: int
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """A segment's rows by slice. numbers: int64 [n] · sizes: bytes of the images in each slice, int64 [slices] · first: the
    smallest key of each slice, None of an empty one."""

    numbers: np.ndarray
    sizes: np.ndarray
    first: tuple[str | None, ...]


class Slicing:
    """A split cut in slices.

    Args:
        samples: of the split; its index is read once.
        seed: of the training.
        slices: how many.
    """

    def __init__(self, samples: Samples, *, seed: int, slices: int) -> None:
        self.samples, self.seed, self.slices = samples, seed, slices
        digests = [KeysDigest(f"{seed}|sample|") for _ in range(slices)]
        counts, self._cuts = np.zeros(slices, dtype=np.int64), []
        for segment in range(len(samples.segments)):
            rows = samples.rows(segment)
            numbers = np.array([slice_of(key, seed=seed, slices=slices) for key in rows.keys], dtype=np.int64)
            first: list[str | None] = [None] * slices
            for number, key, content in zip(numbers.tolist(), rows.keys, rows.sha256, strict=True):
                digests[number - 1].add(f"{key}\0{content.hex()}")
                before = first[number - 1]
                first[number - 1] = key if before is None else min(before, key)
            counts += np.bincount(numbers - 1, minlength=slices)
            sizes = np.bincount(numbers - 1, weights=rows.size, minlength=slices).astype(np.int64)
            self._cuts.append(_Cut(numbers=numbers, sizes=sizes, first=tuple(first)))
        whole, found = KeysDigest(), []
        for count, digest in zip(np.cumsum(counts).tolist(), digests, strict=True):
            whole.merge(digest.hex())
            found.append(SampleSet(samples=count, digest=whole.hex()))
        self.sets: tuple[SampleSet, ...] = tuple(found)
        """What the weights at the end of each stage have seen."""

    def prefix(self, upto: int) -> Samples:
        """The samples of slices 1 to `upto`, in an order that depends on nothing else.

        Shards go by their smallest key and count by the bytes of these samples, so that it makes no difference what else a
        shard holds or whether it was rewritten without it. All samples of a split in one slice stay in the split's order.
        """
        return self.samples if self.slices == 1 else _Prefix(self.samples, self._cuts, upto)


class _Prefix(Samples):
    """The first slices; rows are read and chosen when they are wanted."""

    def __init__(self, whole: Samples, cuts: list[_Cut], upto: int) -> None:
        keys = {number: [key for key in cut.first[:upto] if key is not None] for number, cut in enumerate(cuts)}
        self._whole = whole
        self._homes = sorted((number for number in keys if keys[number]), key=lambda number: min(keys[number]))
        self._rows = [np.flatnonzero(cuts[number].numbers <= upto) for number in self._homes]
        segments = [
            dataclasses.replace(whole.segments[number], samples=len(rows), bytes=int(cuts[number].sizes[:upto].sum()))
            for number, rows in zip(self._homes, self._rows, strict=True)
        ]
        super().__init__(segments, split=whole.split)

    def _read(self, number: int) -> pa.Table:
        return self._whole._load(self._homes[number]).take(pa.array(self._rows[number]))
