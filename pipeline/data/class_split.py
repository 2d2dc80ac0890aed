"""A large data set cut down to classes to forget and classes to retain, with at most so many images of each.

The classes come from a file, or are drawn by a seed. Classes to forget get the first labels, so the request for all of
them is always the labels 0 to F - 1; `SplitSource.requests_csv` writes it by name, one request a class.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pipeline import storage
from pipeline.data.gather import place
from pipeline.data.sources.base import SourceImage, fingerprint
from pipeline.decode import decode, digest
from pipeline.errors import ConfigError, DataError
from pipeline.records import record
from pipeline.remote import ask

__all__ = [
    "ClassSplit",
    "Picture",
    "SplitSource",
    "capped",
    "choose",
    "picture",
    "pictures_below",
    "requests_csv",
    "subfolders",
]

EXTENSIONS: Mapping[str, Literal["png", "jpg"]] = {"png": "png", "jpg": "jpg", "jpeg": "jpg"}
FILES_AT_ONCE = 10_000


@record
class ClassSplit:
    """Names of the classes to forget and of those to retain; also the form of the file that names them."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """All of them; a label is a position in this list."""
        return (*self.forget, *self.retain)


class Picture(NamedTuple):
    """An image file that is used. The key has no dot and no slash."""

    key: str
    uri: str
    ext: Literal["png", "jpg"]
    label: int


def choose(config: Any, available: Sequence[str], *, source: str, where: str) -> ClassSplit:
    """The classes of the configured file, or as many as configured, drawn by the seed.

    A class's rank in the draw depends on its name and the seed alone, not on how the storage lists folders.

    Args:
        config: the source's own, with the fields `forget_classes`, `retain_classes`, `seed` and `split`.
        available: names of all classes.
        source: name of the source, for messages.
        where: where the names were found, for messages.

    Raises:
        ConfigError: too few classes; a file that is no JSON of `{"forget": [...], "retain": [...]}`, or that names a class
            twice, none, or one that is not available.
        StorageError: the file cannot be read.
    """
    if config.split:
        return _from_file(config.split, available, where)
    wanted = config.forget_classes + config.retain_classes
    if len(available) < wanted:
        message = f"source: {source}: {len(available)} classes in {where}, but {wanted} are to be forgotten and retained"
        raise ConfigError(message, "lower source.forget_classes and source.retain_classes, or complete the data set")
    drawn = sorted(available, key=lambda name: place(name, f"class {config.seed}"))[:wanted]
    forget, retain = drawn[: config.forget_classes], drawn[config.forget_classes :]
    return ClassSplit(forget=tuple(sorted(forget)), retain=tuple(sorted(retain)))


def _from_file(uri: str, available: Sequence[str], where: str) -> ClassSplit:
    try:
        content = json.loads(storage.read_bytes(storage.absolute(uri)))
    except ValueError as fault:
        raise ConfigError(f"{uri}: not readable as JSON: {fault}", 'write {"forget": [NAMES], "retain": [NAMES]}') from None
    split = decode(ClassSplit, content, where=uri)
    if not split.forget or not split.retain:
        raise ConfigError(f"{uri}: no class to forget, or none to retain", "name at least one of each")
    twice = [name for name, times in Counter(split.classes).items() if times > 1]
    if twice:
        raise ConfigError(f"{uri}: class '{twice[0]}' comes twice", "name each class once, to forget or to retain")
    unknown = sorted(set(split.classes) - set(available))
    if unknown:
        near = difflib.get_close_matches(unknown[0], available, n=1) or sorted(available)[:3]
        message = f"{uri}: class '{unknown[0]}' is not one of the {len(available)} in {where}"
        raise ConfigError(message, f"correct the name, or complete the data set; there are e.g. {', '.join(near)}")
    return split


def subfolders(uri: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones; none where there is no folder.

    Raises:
        DataError: a folder that cannot be read.
    """
    if not storage.exists(uri):
        return []
    try:
        listed = ask(uri, "ls", detail=True)
    except OSError as fault:
        raise DataError(f"{uri}: {fault.strerror or fault}", "correct the folder or its permissions") from None
    folders = [
        str(entry["name"]).rstrip("/")
        for entry in listed
        # A data set's folders are often links to where the one copy of a machine lies.
        if entry["type"] == "directory" or (entry.get("islink") and os.path.isdir(str(entry["name"])))
    ]
    return sorted(name for name in map(posixpath.basename, folders) if not name.startswith("."))


def pictures_below(uri: str, classes: Sequence[str], *, part: str, per_class: int) -> Iterator[Picture]:
    """Images of the classes, each below its own folder in `uri`, `capped`; of a class without a folder there are none.

    Raises:
        DataError: a file that is neither PNG nor JPEG by its name.
    """
    for label, name in enumerate(classes):
        folder = storage.join(uri, name)
        files = storage.list_files(folder) if storage.exists(folder) else []
        paths = ((file, posixpath.relpath(file, folder)) for file in files)
        yield from capped((picture(file, path, part=part, name=name, label=label) for file, path in paths), per_class)


def picture(uri: str, inside: str, *, part: str, name: str, label: int) -> Picture:
    """An image by its address and its path `inside` its class; the key is `PART__CLASS__NAME`.

    Raises:
        DataError: neither PNG nor JPEG by its name.
    """
    stem, dot, ext = inside.rpartition(".")
    if not dot or ext.lower() not in EXTENSIONS:
        raise DataError(f"{uri}: not named NAME.jpg, .jpeg or .png", "move it elsewhere, or convert it")
    # WebDataset's key ends at the first dot of the last path part, so a key has neither dots nor slashes.
    key = f"{part}/{name}/{stem}".replace("/", "__").replace(".", "_")
    return Picture(key, uri, EXTENSIONS[ext.lower()], label)


def capped(pictures: Iterable[Picture], per_class: int) -> list[Picture]:
    """At most so many of each class, 0 for all: those whose keys' hashes are the smallest, however they were listed."""
    taken: Counter[int] = Counter()
    chosen = []
    for item in sorted(pictures, key=lambda item: place(item.key, "cap")):
        if not per_class or taken[item.label] < per_class:
            taken[item.label] += 1
            chosen.append(item)
    return chosen


def _image(item: Picture) -> SourceImage:
    return SourceImage(key=item.key, image=storage.read_bytes(item.uri), ext=item.ext, label=item.label)


class SplitSource:
    """Image files of chosen classes as a source; see `pipeline.data.sources.base.ImageSource`.

    Images come in an order of key hashes, so that every shard holds images of all classes.

    Args:
        source: its name.
        split: the chosen classes.
        training: images of the training part, already capped.
        unseen: images that no model trains on, likewise.
        readable: what a class is called in words, where that is known.
        where: folder of the data set, for messages.

    Raises:
        DataError: a class without a training image, no unseen image at all, or two images of one key.
    """

    def __init__(
        self,
        source: str,
        split: ClassSplit,
        *,
        training: Iterable[Picture],
        unseen: Iterable[Picture],
        readable: Mapping[str, str] | None = None,
        where: str,
    ) -> None:
        self.source, self.split, self.classes, self.readable = source, split, split.classes, readable or {}
        self._training, self._unseen = (sorted(some, key=lambda item: place(item.key, "order")) for some in (training, unseen))
        seen = {item.label for item in self._training}
        empty = [name for label, name in enumerate(self.classes) if label not in seen]
        if empty:
            raise DataError(f"{where}: no training image of class '{empty[0]}'", "complete the data set, or choose other classes")
        if not self._unseen:
            raise DataError(f"{where}: no image for validation of any chosen class", "complete the data set: a run needs some")
        homes: dict[str, str] = {}
        for item in (*self._training, *self._unseen):
            if item.key in homes:
                raise DataError(f"{item.uri} and {homes[item.key]}: both get the key '{item.key}'", "rename one of them")
            homes[item.key] = item.uri

    @property
    def forget_labels(self) -> tuple[int, ...]:
        """Labels of the classes to forget: 0 to F - 1."""
        return tuple(range(len(self.split.forget)))

    def requests_csv(self) -> str:
        """A request file (`pipeline.requests`) that asks for all classes to forget, one request a class."""
        return requests_csv(self.split, self.readable)

    def identity(self) -> str:
        """Digest of the classes and of names, sizes and change marks of the chosen files."""
        files = (item.uri for part in (self._training, self._unseen) for item in part)
        marks = []
        while some := tuple(itertools.islice(files, FILES_AT_ONCE)):
            marks.append(fingerprint(some))
        return digest({self.source: 1, "classes": self.classes, "training": len(self._training), "files": marks})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`."""
        return map(_image, self._training)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`."""
        return map(_image, self._unseen)


def requests_csv(split: ClassSplit, readable: Mapping[str, str]) -> str:
    """Rows `request_id, kind, value, note` for the classes to forget; the note says in words what a class is."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("request_id", "kind", "value", "note"))
    for name in split.forget:
        rows.writerow((f"forget-{name}", "label", name, readable.get(name, "")))
    return out.getvalue()
