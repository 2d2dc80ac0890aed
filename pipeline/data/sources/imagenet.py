"""ImageNet (ILSVRC 2012): classes to forget and classes to retain, chosen by a seed or a file.

Read from a folder, `train/SYNSET/NAME.JPEG` and `val/SYNSET/NAME.JPEG` or a flat `val` with its solution file; or out of
WebDataset shards, of which the chosen images are packed anew. A class is called by its synset (`n01440764`), because words
such as `crane` name two classes. Requests name synsets; classes to forget have the labels 0 to F - 1, and this writes the
request file for all of them:

    python -c "from pipeline import component as c; section = {'component': 'imagenet', 'root': 'FOLDER'}; \
print(c.build('source', section).requests_csv(), end='')" > forget.csv
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline import storage
from pipeline.config import NotNegative, Positive
from pipeline.data.class_split import ClassSplit, Picture, SplitSource, capped, choose, picture, pictures_below, subfolders
from pipeline.data.class_split import requests_csv as csv_of
from pipeline.data.shards import read_shard
from pipeline.data.sources import webdataset
from pipeline.data.sources.base import SourceImage, fingerprint
from pipeline.decode import digest
from pipeline.errors import ConfigError, DataError
from pipeline.records import record

__all__ = ["Config", "ImageNetShards", "build"]

SYNSET = re.compile(r"n\d{8}")
NAMES_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")
SOLUTION = "LOC_val_solution.csv"


@record
class Config:
    """Where ImageNet lies, and what part of it is used."""

    root: str = ""
    """Folder with the subfolders `train` and `val`, any fsspec URI; or empty, and shards are named instead."""
    train: str = "train"
    """Subfolder of the images that the original model saw."""
    unseen: str = "val"
    """Subfolder of images that no model trains on: a folder a synset, or flat."""
    solution: str = ""
    """Of a flat `val`: file with an image and its synset in each line; empty: LOC_val_solution.csv in the root."""
    names: str = ""
    """File with a synset and its words in each line; empty: LOC_synset_mapping.txt or synset_words.txt in the root, if there."""
    shards: tuple[str, ...] = ()
    """Shards of training images, as in source webdataset; .cls is the place of the synset in the file `names`, from 0."""
    unseen_shards: tuple[str, ...] = ()
    """Shards of images that no model trains on."""
    forget_classes: Positive = 100
    """Classes to forget, drawn by the seed."""
    retain_classes: Positive = 100
    """Classes to retain, drawn by the seed; other classes are not used."""
    seed: int = 0
    """Which classes are drawn."""
    split: str = ""
    """JSON file of synsets, `{"forget": [...], "retain": [...]}`, instead of a draw; empty: draw."""
    train_per_class: NotNegative = 120
    """Training images of a class at most, chosen by key hash, of shards the first ones; 0: all."""
    unseen_per_class: NotNegative = 50
    """Unseen images of a class at most, likewise; 0: all."""


def _names(config: Config) -> dict[str, str]:
    """Synsets and their words in the order of the file; none where there is no file."""
    uri = storage.absolute(config.names) if config.names else ""
    if not uri and config.root:
        places = (storage.join(storage.absolute(config.root), name) for name in NAMES_FILES)
        uri = next((place for place in places if storage.exists(place)), "")
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(uri) if uri else (), start=1):
        synset, _, words = line.partition(" ")
        if not SYNSET.fullmatch(synset) or synset in found:
            raise DataError(f"{uri}: line {number}: '{line[:60]}' does not begin with a new synset", "write n01440764 tench")
        found[synset] = words.strip()
    return found


def _lines(uri: str) -> list[str]:
    text = storage.read_bytes(uri).decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _folders(uri: str) -> list[str]:
    """Synsets that have a folder; DataError for a folder of another name."""
    found = subfolders(uri)
    strange = [name for name in found if not SYNSET.fullmatch(name)]
    if strange:
        cure = "move it elsewhere; for classes of other names use source=imagefolder"
        raise DataError(f"{storage.join(uri, strange[0])}: not named as a synset, such as n01440764", cure)
    return found


def _flat(config: Config, root: str, folder: str, split: ClassSplit) -> Iterator[Picture]:
    """Images of a flat folder that the solution file puts into a chosen class."""
    if not storage.exists(folder):
        raise DataError(f"{folder}: no such folder", "complete the data set, or correct source.unseen")
    uri = storage.absolute(config.solution) if config.solution else storage.join(root, SOLUTION)
    if not storage.exists(uri):
        cure = f"sort the images into folders by synset, or put {SOLUTION} into {root} or its address into source.solution"
        raise DataError(f"{folder}: no folders by synset in it, and {uri} is not there to sort the images", cure)
    labels = {name: label for label, name in enumerate(split.classes)}
    homes: dict[str, str] = {}
    for number, line in enumerate(_lines(uri), start=1):
        words = re.split(r"[,\s]+", line)  # of Kaggle's file the synset follows the comma, and boxes follow the synset
        if len(words) > 1 and SYNSET.fullmatch(words[1]):
            homes[posixpath.basename(words[0]).partition(".")[0]] = words[1]
        elif number > 1:
            raise DataError(f"{uri}: line {number}: '{line[:60]}' is not an image and its synset", "restore the file")
    for file in storage.list_files(folder):
        inside = posixpath.relpath(file, folder)
        home = homes.get(inside.partition(".")[0])
        if home is None:
            raise DataError(f"{file}: {uri} does not say its class", "restore the file, or move the image elsewhere")
        if home in labels:
            yield picture(file, inside, part="val", name=home, label=labels[home])


def _from_folder(config: Config, names: Mapping[str, str]) -> SplitSource:
    root = storage.absolute(config.root)
    training, unseen = storage.join(root, config.train), storage.join(root, config.unseen)
    available = _folders(training)
    if not available:
        raise DataError(f"{training}: no folders by synset in it", "set source.root to the folder that holds train and val")
    split = choose(config, available, source="imagenet", where=training)
    if _folders(unseen):
        far: Iterable[Picture] = pictures_below(unseen, split.classes, part="val", per_class=config.unseen_per_class)
    else:
        far = capped(_flat(config, root, unseen, split), config.unseen_per_class)
    near = pictures_below(training, split.classes, part="train", per_class=config.train_per_class)
    return SplitSource("imagenet", split, training=near, unseen=far, readable=names, where=root)


class ImageNetShards:
    """Chosen images out of shards; see `pipeline.data.sources.base.ImageSource`.

    Of each class the first images in the shards' order; reading ends where all classes have enough. Memory holds the list
    of one shard and one image.
    """

    def __init__(self, config: Config, names: Mapping[str, str]) -> None:
        self.config, self._synsets, self._readable = config, tuple(names), names
        self._shards = webdataset.build(webdataset.Config(training=config.shards, unseen=config.unseen_shards))
        self.split = choose(config, self._synsets, source="imagenet", where="the file of names")
        self.classes = self.split.classes

    @property
    def forget_labels(self) -> tuple[int, ...]:
        """Labels of the classes to forget: 0 to F - 1."""
        return tuple(range(len(self.split.forget)))

    def requests_csv(self) -> str:
        """See `SplitSource.requests_csv`."""
        return csv_of(self.split, self._readable)

    def identity(self) -> str:
        """Digest of the choices and of names, sizes and change marks of the shards."""
        parts = [fingerprint(uris) for uris in (self._shards.training_shards(), self._shards.unseen_shards())]
        limits = [self.config.train_per_class, self.config.unseen_per_class]
        return digest({"imagenet shards": 1, "classes": self.classes, "synsets": self._synsets, "limits": limits, "files": parts})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`."""
        return self._images("train", self._shards.training_shards(), self.config.train_per_class)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`."""
        return self._images("val", self._shards.unseen_shards(), self.config.unseen_per_class)

    def _images(self, part: str, uris: Sequence[str], per_class: int) -> Iterator[SourceImage]:
        labels = {name: label for label, name in enumerate(self.classes)}
        taken: Counter[int] = Counter()
        homes: dict[str, str] = {}
        for uri in uris:
            if per_class and all(taken[label] >= per_class for label in labels.values()):
                return
            for found in read_shard(uri)[0]:
                if found.label >= len(self._synsets):
                    message = f"{uri}: key '{found.key}': label {found.label}, but only {len(self._synsets)} synsets are named"
                    raise DataError(message, "name all synsets in the file source.names, in the order of the labels")
                label = labels.get(self._synsets[found.label])
                if label is None or (per_class and taken[label] >= per_class):
                    continue
                item = picture(uri, f"{found.key}.{found.ext}", part=part, name=self.classes[label], label=label)
                if item.key in homes:
                    raise DataError(f"{uri} and {homes[item.key]}: both give the key '{item.key}'", "name each shard once")
                homes[item.key] = uri
                taken[label] += 1
                image = bytes(storage.read_range(uri, found.offset, found.offset + found.size))
                yield SourceImage(key=item.key, image=image, ext=item.ext, label=label)
        empty = [name for label, name in enumerate(self.classes) if not taken[label]]
        if empty and part == "train":
            raise DataError(f"{uris[0]} and others: no training image of class '{empty[0]}'", "name all shards of the data set")


def build(config: Config) -> SplitSource | ImageNetShards:
    """List the folder or the shards, and choose the classes.

    Raises:
        ConfigError: neither root nor shards are named, or both; shards without a file of names; see also `choose`.
        DataError: a folder, file or line that is not as it should be.
        StorageError: a file that is named and is not there.
    """
    if bool(config.root) == bool(config.shards):
        raise ConfigError("source: imagenet: name either root or shards", "write source.root=FOLDER, or source.shards=[URI]")
    if config.root:
        return _from_folder(config, _names(config))
    if not config.names or not config.unseen_shards:
        message = "source: imagenet: shards also need names, to tell their labels, and unseen_shards"
        raise ConfigError(message, f"write source.names=FILE, such as {NAMES_FILES[0]}, and source.unseen_shards=[URI]")
    return ImageNetShards(config, _names(config))
