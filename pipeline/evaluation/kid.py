"""Kernel Inception Distance: the unbiased squared maximum mean discrepancy of two sets of features, cubic kernel.

k(x, y) = (x . y / F + 1)^3: Binkowski et al., Demystifying MMD GANs, 2018. Unbiased at any number of images, so it is the
figure for small forget sets; it may come out below 0. Computed on the full sets, not on the usual random subsets of 1,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.base import Floats, Interval, Resampling

__all__ = ["MINIMUM", "kid_interval"]

MINIMUM = 2
"""Images a set at least."""

# Kernel values made at once (32 MiB), and kept from one block of resamples to the next (256 MiB).
STRIP = 4_000_000
KEPT = 32_000_000

Features = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]


def kid_interval(first_NF: Features, second_MF: Features, resampling: Resampling, label: str, *, paired: bool) -> Interval:
    """KID of two sets of features with a bootstrap interval over the images.

    Where both sets show the same images, the kernel of an image with itself is left out of the mixed term too: that is
    Gretton et al., A Kernel Two-Sample Test, 2012, equation 4, which keeps the estimate unbiased although the sets go
    together. (With those terms in, two equal sets would be at a distance below 0.)

    A resample weighs each pair of different images by the product of their counts; two copies of an image are no pair.
    Paired sets are resampled together. Near a distance of 0 the interval is too wide, by up to sqrt(3) (Arcones & Gine, On
    the Bootstrap of U and V Statistics, 1992): it errs on the careful side.

    Args:
        first_NF, second_MF: float [N, F] and [M, F], at least 2 rows each; N = M and the same images where paired.
        resampling: how intervals are made.
        label: the figure's own name within the run.
        paired: whether row i of both belongs to the same image.

    Returns:
        The squared discrepancy, without unit.
    """
    one, two = (np.asarray(values, dtype=np.float64) for values in (first_NF, second_MF))
    # `Resampling` hands out counts of these places, which stand for the images.
    here, there = (np.arange(len(values), dtype=np.float64) for values in (one, two))
    if paired:
        joint = Pairs((one, one, 1.0), (two, two, 1.0), (one, two, -1.0), (two, one, -1.0))
        return resampling.paired(here, there, lambda counts, _, __: joint.within(counts), label)
    own, other, mixed = Pairs((one, one, 1.0)), Pairs((two, two, 1.0)), Pairs((one, two, 1.0))
    return resampling.unpaired(here, there, lambda a, b, _: own.within(a) + other.within(b) - 2 * mixed.between(a, b), label)


class Pairs:
    """A signed sum of kernel matrices [N, M], kept whole if it is small and made anew in strips of rows otherwise."""

    def __init__(self, *terms: tuple[Floats, Floats, float]) -> None:
        self._terms = terms
        rows, columns = len(terms[0][0]), len(terms[0][1])
        self._kept = list(self._make()) if rows * columns <= KEPT else None
        diagonals = [np.diagonal(strip[:, part]) for part, strip in self._strips()] if rows == columns else [np.empty(0)]
        self._diagonal: Floats = np.concatenate(diagonals)

    def within(self, counts: Counts) -> Floats:
        """Mean over pairs of different images of one set, for counts [B, N] -> [B]."""
        squares = np.square(counts)
        pairs = np.square(counts.sum(axis=1)) - squares.sum(axis=1)
        return (self._form(counts, counts) - squares @ self._diagonal) / pairs

    def between(self, first: Counts, second: Counts) -> Floats:
        """Mean over all pairs of two sets, for counts [B, N] and [B, M] -> [B]."""
        return self._form(first, second) / (first.sum(axis=1) * second.sum(axis=1))

    def _form(self, first: Counts, second: Counts) -> Floats:
        left, right = first.astype(np.float64), second.astype(np.float64)
        found = np.zeros(len(left))
        for part, strip in self._strips():
            found += np.einsum("bm,bm->b", left[:, part] @ strip, right)
        return found

    def _strips(self) -> Iterator[tuple[slice, Floats]]:
        return iter(self._kept) if self._kept is not None else self._make()

    def _make(self) -> Iterator[tuple[slice, Floats]]:
        rows, columns = len(self._terms[0][0]), len(self._terms[0][1])
        height = max(1, STRIP // columns)
        for start in range(0, rows, height):
            part = slice(start, start + height)
            yield part, np.asarray(sum(sign * _kernel(one[part], two) for one, two, sign in self._terms))


def _kernel(one: Floats, two: Floats) -> Floats:
    value = one @ two.T / one.shape[1] + 1
    return value * value * value
