"""Which training images a batch of requests means, and into which groups they fall. No I/O."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from pipeline.decode import closest
from pipeline.errors import ConfigError
from pipeline.records import Group, RequestBatch
from pipeline.requests import selectors

__all__ = ["forgotten_rows", "group_rows"]


def forgotten_rows(
    batch: RequestBatch, *, keys: Sequence[str], labels: np.ndarray, classes: Sequence[str], unseen_keys: Sequence[str] = ()
) -> np.ndarray:
    """Resolve all selectors against the training images.

    Args:
        batch: the requests; a label is a class name or, where no class is called so, a class number.
        keys: one a training image.
        labels: int [len(keys)], positions in `classes`.
        classes: class names.
        unseen_keys: images that no model trained on, for the message.

    Returns:
        bool [len(keys)], true for images to forget.

    Raises:
        ConfigError: a label, key or prefix that means no training image, or requests that leave nothing to retain.
    """
    chosen = np.zeros(len(keys), dtype=bool)
    wanted: dict[str, list[str]] = {"keys": [], "label": [], "prefix": []}
    for selector in selectors(batch):
        wanted[selector.kind].extend(selector.values)
    for value in dict.fromkeys(wanted["label"]):
        chosen |= labels == _label(value, labels, classes)
    _choose_keys(chosen, list(dict.fromkeys(wanted["keys"])), keys, unseen_keys)
    _choose_prefixes(chosen, list(dict.fromkeys(wanted["prefix"])), keys)
    if not chosen.any():
        raise ConfigError("requests: no training image is meant", "name at least one label, key or prefix")
    if chosen.all():
        message = f"requests: all {len(keys)} training images are to be forgotten, none is left to retain"
        raise ConfigError(message, "delete the model instead, or ask for less")
    return chosen


def _label(value: str, labels: np.ndarray, classes: Sequence[str]) -> int:
    if value in classes:
        label = list(classes).index(value)
    elif value.isascii() and value.isdecimal() and int(value) < len(classes):
        label = int(value)
    else:
        raise ConfigError(f"requests: label '{value}': no such class", closest(value, list(classes)))
    if not (labels == label).any():
        raise ConfigError(f"requests: label '{value}': no training image has it", "take the request out of the batch")
    return label


def _refuse(kind: str, missing: list[str], cure: str) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"requests: {kind} '{missing[0]}'{more}: no such training image", cure)


def _choose_keys(chosen: np.ndarray, wanted: list[str], keys: Sequence[str], unseen_keys: Sequence[str]) -> None:
    rows = {key: row for row, key in enumerate(keys)} if wanted else {}
    missing = [key for key in wanted if key not in rows]
    unseen = set(unseen_keys).intersection(missing)
    _refuse("key", [key for key in missing if key not in unseen], f"correct the keys; they look like '{keys[0]}'")
    _refuse("key", sorted(unseen), "no model trains on these images: take them out of the batch")
    chosen[[rows[key] for key in wanted]] = True


def _choose_prefixes(chosen: np.ndarray, wanted: list[str], keys: Sequence[str]) -> None:
    order = sorted(range(len(keys)), key=keys.__getitem__) if wanted else []
    ordered = [keys[row] for row in order]
    missing: list[str] = []
    for prefix in wanted:
        # Keys with a prefix lie side by side in sorted order.
        start = stop = bisect.bisect_left(ordered, prefix)
        while stop < len(ordered) and ordered[stop].startswith(prefix):
            stop += 1
        chosen[order[start:stop]] = True
        if start == stop:
            missing.append(prefix)
    _refuse("prefix", missing, f"correct the prefixes; keys look like '{keys[0]}'")


def group_rows(
    forgotten: np.ndarray, *, labels: np.ndarray, classes: Sequence[str], class_share: float
) -> tuple[tuple[Group, ...], np.ndarray]:
    """Put forgotten images into groups: each class of which much is forgotten, and one for all other images.

    Args:
        forgotten: bool [N], true for images to forget.
        labels: int [N].
        classes: class names.
        class_share: a class of which at least this share is forgotten is a group of its own.

    Returns:
        The groups, and int32 [N]: each image's position in them, -1 for images to retain.
    """
    group_of = np.full(len(labels), -1, dtype=np.int32)
    groups: list[Group] = []
    singles = forgotten.copy()
    for label in np.unique(labels[forgotten]):
        rows = forgotten & (labels == label)
        if rows.sum() < class_share * (labels == label).sum():
            continue
        group_of[rows] = len(groups)
        singles &= ~rows
        groups.append(Group(name=f"class {classes[label]}", kind="class", labels=(int(label),), samples=int(rows.sum())))
    if singles.any():
        group_of[singles] = len(groups)
        kinds = tuple(int(label) for label in np.unique(labels[singles]))
        groups.append(Group(name="single images", kind="images", labels=kinds, samples=int(singles.sum())))
    return tuple(groups), group_of
