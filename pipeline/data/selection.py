"""Which training images a batch of requests means, found by reading a few columns of the index, part by part.

Memory holds the values asked for, the rows found and one part's columns, however large the index is.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.rows import IndexFile, key_hash
from pipeline.decode import closest
from pipeline.errors import ConfigError
from pipeline.records import FileRef, Group, RequestBatch

__all__ = ["Chosen", "Wanted", "choose", "group_labels", "means", "refuse_unmatched", "wanted_by"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """The values of all selectors, each once; labels as class numbers."""

    keys: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    prefixes: tuple[str, ...] = ()
    digests: tuple[bytes, ...] = ()

    @functools.cached_property
    def key_set(self) -> frozenset[str]:
        """`keys`, for quick questions."""
        return frozenset(self.keys)

    @functools.cached_property
    def prefix_sets(self) -> dict[int, frozenset[str]]:
        """`prefixes` by their length, for quick questions however many they are."""
        by_length: dict[int, set[str]] = {}
        for prefix in self.prefixes:
            by_length.setdefault(len(prefix), set()).add(prefix)
        return {length: frozenset(texts) for length, texts in by_length.items()}

    @functools.cached_property
    def digest_set(self) -> frozenset[bytes]:
        """`digests`, for quick questions."""
        return frozenset(self.digests)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Rows of the index that were asked for, in index order, F of them.

    part: int64 [F], position in the list of index files · file_row: int64 [F], row of the file · row_group and row:
    int64 [F], the same place counted by shard · labels: int64 [F] · keys: F texts · digests: F times 32 bytes ·
    label_counts: int64 [classes], over all rows read.
    """

    part: np.ndarray
    file_row: np.ndarray
    row_group: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]
    digests: tuple[bytes, ...]
    label_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def rows(self) -> Iterator[tuple[str, int, bytes]]:
        """Key, label and digest of each image."""
        return zip(self.keys, self.labels.tolist(), self.digests, strict=True)


def wanted_by(batch: RequestBatch, classes: Sequence[str]) -> Wanted:
    """Join the selectors of a batch. A label is a class name or, where no class is called so, a class number.

    Raises:
        ConfigError: no such class, or a digest that is not 64 hexadecimal digits.
    """
    values: dict[str, list[str]] = {"keys": [], "label": [], "prefix": [], "digest": []}
    for request in batch.requests:
        values[request.selector.kind].extend(request.selector.values)
    return Wanted(
        keys=tuple(dict.fromkeys(values["keys"])),
        labels=tuple(dict.fromkeys(_label(value, classes) for value in values["label"])),
        prefixes=tuple(dict.fromkeys(values["prefix"])),
        digests=tuple(dict.fromkeys(_digest(value) for value in values["digest"])),
    )


def _label(value: str, classes: Sequence[str]) -> int:
    if value in classes:
        return list(classes).index(value)
    if value.isascii() and value.isdecimal() and len(value) < 10 and int(value) < len(classes):
        return int(value)
    raise ConfigError(f"requests: label '{value}': no such class", closest(value, list(classes)))


def _digest(value: str) -> bytes:
    try:
        found = bytes.fromhex(value)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ConfigError(f"requests: digest '{value}': not a sha256", "write 64 hexadecimal digits, as sha256sum prints them")
    return found


def means(wanted: Wanted, key: str, label: int, mark: bytes) -> bool:
    """Whether an image is asked for."""
    if label in wanted.labels or key in wanted.key_set or mark in wanted.digest_set:
        return True
    return any(key[:length] in texts for length, texts in wanted.prefix_sets.items())


class _Search:
    """What to look for, in the form in which columns are compared; called with one index file."""

    def __init__(self, wanted: Wanted, classes: int) -> None:
        self.wanted, self.classes = wanted, classes
        self.hashes = pa.array([key_hash(key) for key in wanted.keys], pa.uint64())
        self.marks = pa.array(wanted.digests, pa.binary(32))
        # Beginnings of each length are compared whole: one regular expression for thousands of prefixes takes minutes.
        self.prefixes = {length: pa.array(sorted(texts), pa.string()) for length, texts in wanted.prefix_sets.items()}
        kinds = (("key_hash", wanted.keys), ("key", wanted.prefixes), ("sha256", wanted.digests))
        self.columns = ["label", *(name for name, values in kinds if values)]

    def _candidates(self, table: pa.Table, labels: np.ndarray) -> np.ndarray:
        found = np.isin(labels, self.wanted.labels)
        if self.wanted.keys:
            found |= pc.is_in(table["key_hash"], value_set=self.hashes).to_numpy()
        if self.wanted.digests:
            found |= pc.is_in(table["sha256"], value_set=self.marks).to_numpy()
        for length, texts in self.prefixes.items():
            found |= pc.is_in(pc.utf8_slice_codeunits(table["key"], 0, length), value_set=texts).to_numpy()
        return np.flatnonzero(found)

    def __call__(self, ref: FileRef) -> _Found:
        file = IndexFile(ref.uri, ref.sha256)
        table = file.columns(self.columns)
        labels = table["label"].to_numpy()
        rows = self._candidates(table, labels)
        starts = np.cumsum([0, *file.counts])
        homes = np.searchsorted(starts, rows, side="right") - 1
        found = _Found(counts=np.bincount(labels, minlength=self.classes).astype(np.int64))
        for home in np.unique(homes).tolist():
            inside = rows[homes == home] - starts[home]
            part = file.row_group(home, ["key", "label", "sha256"]).take(pa.array(inside))
            values = (part[name].to_pylist() for name in ("key", "label", "sha256"))
            for row, key, label, mark in zip(inside.tolist(), *values, strict=True):
                # A hash of 64 bits may be shared by a key that nobody asked for.
                if means(self.wanted, key, label, mark):
                    found.add((int(starts[home]) + row, home, row, label), key, mark)
        return found


class _Found:
    """What one index file holds of what was asked for."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self.places: list[tuple[int, int, int, int]] = []
        self.keys: list[str] = []
        self.digests: list[bytes] = []

    def add(self, place: tuple[int, int, int, int], key: str, mark: bytes) -> None:
        self.places.append(place)
        self.keys.append(key)
        self.digests.append(mark)


def choose(parts: Sequence[FileRef], wanted: Wanted, classes: int) -> Chosen:
    """The rows that the values mean, in the order of the parts.

    Args:
        parts: index files, whose URIs stand alone.
        wanted: what to look for.
        classes: number of classes.

    Raises:
        IntegrityError: an index file was changed.
    """
    found = list(_in_order(_Search(wanted, classes), parts))
    places = np.array([(n, *place) for n, part in enumerate(found) for place in part.places], dtype=np.int64).reshape(-1, 5)
    return Chosen(
        part=places[:, 0],
        file_row=places[:, 1],
        row_group=places[:, 2],
        row=places[:, 3],
        labels=places[:, 4],
        keys=tuple(key for part in found for key in part.keys),
        digests=tuple(mark for part in found for mark in part.digests),
        label_counts=_sum([np.zeros(classes, dtype=np.int64), *(part.counts for part in found)]),
    )


def _sum(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of arrays that may differ in length: a label beyond the named classes lengthens its part's counts."""
    total = np.zeros(max(map(len, counts)), dtype=np.int64)
    for part in counts:
        total[: len(part)] += part
    return total


def _in_order(search: _Search, parts: Sequence[FileRef]) -> Iterator[_Found]:
    """`search` of each part, with only as many under way as there are threads, so that memory stays bounded."""
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        under_way: collections.deque[Future[_Found]] = collections.deque()
        for part in parts:
            under_way.append(pool.submit(search, part))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def refuse_unmatched(wanted: Wanted, chosen: Chosen, *, classes: Sequence[str], unseen: Sequence[FileRef], example: str) -> None:
    """Every value must mean an image, and something must be left.

    Args:
        unseen: index files of the images that no model trained on, for the message.
        example: a key of the source, for the cure.

    Raises:
        ConfigError: names the first value of a kind that means no training image, or says that nothing or all is meant.
    """
    for label in wanted.labels:
        if not chosen.label_counts[label]:
            message = f"requests: label '{classes[label]}': no training image has it"
            raise ConfigError(message, "take the request out of the batch")
    known, marks = frozenset(chosen.keys), frozenset(chosen.digests)
    missing = [key for key in wanted.keys if key not in known]
    if missing:
        far = frozenset(choose(unseen, Wanted(keys=tuple(missing)), len(classes)).keys) if unseen else frozenset()
        _refuse("key", [key for key in missing if key not in far], f"correct the keys; they look like '{example}'")
        _refuse("key", sorted(far), "no model trains on these images: take them out of the batch")
    _refuse("digest", [mark.hex() for mark in wanted.digests if mark not in marks], "give the sha256 of the stored image file")
    ordered = sorted(known) if wanted.prefixes else []
    unmet = [prefix for prefix in wanted.prefixes if not _begins(ordered, prefix)]
    _refuse("prefix", unmet, f"correct the prefixes; keys look like '{example}'")
    total = int(chosen.label_counts.sum())
    if not len(chosen):
        raise ConfigError("requests: no training image is meant", "name at least one label, key, prefix or digest")
    if len(chosen) == total:
        message = f"requests: all {total} training images are to be forgotten, none is left to retain"
        raise ConfigError(message, "delete the model instead, or ask for less")


def _begins(ordered: Sequence[str], prefix: str) -> bool:
    """Whether a text of a sorted list begins with the prefix: the first one not below it would."""
    place = bisect.bisect_left(ordered, prefix)
    return place < len(ordered) and ordered[place].startswith(prefix)


def _refuse(kind: str, missing: list[str], cure: str) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"requests: {kind} '{missing[0]}'{more}: no such training image", cure)


def group_labels(
    labels: np.ndarray, *, label_counts: np.ndarray, classes: Sequence[str], class_share: float
) -> tuple[tuple[Group, ...], np.ndarray]:
    """Put forgotten images into groups: each class of which much is forgotten, and one for all other images.

    Args:
        labels: int [F], of the forgotten images.
        label_counts: int [classes], of all training images.
        classes: class names.
        class_share: a class of which at least this share is forgotten is a group of its own.

    Returns:
        The groups, and int32 [F]: each image's position in them.
    """
    group_of = np.full(len(labels), -1, dtype=np.int32)
    groups: list[Group] = []
    for label in np.unique(labels):
        rows = labels == label
        if rows.sum() >= class_share * label_counts[label]:
            group_of[rows] = len(groups)
            groups.append(Group(name=f"class {classes[label]}", kind="class", labels=(int(label),), samples=int(rows.sum())))
    singles = group_of < 0
    if singles.any():
        group_of[singles] = len(groups)
        kinds = tuple(int(label) for label in np.unique(labels[singles]))
        groups.append(Group(name="single images", kind="images", labels=kinds, samples=int(singles.sum())))
    return tuple(groups), group_of
