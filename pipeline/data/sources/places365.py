"""Places365-Standard: classes to forget and classes to retain, chosen by a seed or a file.

Read from its folders by class, `train/airfield/NAME.jpg` and `val/airfield/NAME.jpg`; or from `data_large` or `data_256`
with the official lists beside them. Either way a class is called as in the first form: the slash within a class's name is
a hyphen, `apartment_building-outdoor`. Requests name classes so; classes to forget have the labels 0 to F - 1, and this
writes the request file for all of them:

    python -c "from pipeline import component as c; section = {'component': 'places365', 'root': 'FOLDER'}; \
print(c.build('source', section).requests_csv(), end='')" > forget.csv
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from pipeline import storage
from pipeline.config import NotNegative, Positive
from pipeline.data.class_split import Picture, SplitSource, capped, choose, picture, pictures_below, subfolders
from pipeline.errors import ConfigError, DataError
from pipeline.records import record

__all__ = ["Config", "build"]

CATEGORIES, TRAIN_LIST, VAL_LIST = "categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"
TRAIN_FOLDERS = ("data_large", "data_large_standard", "data_256", "data_256_standard")
VAL_FOLDERS = ("val_large", "val_256")
RESTORE = "restore the official file"


@record
class Config:
    """Where Places365 lies, and what part of it is used."""

    root: str = ""
    """Folder with `train` and `val`, or with the official lists and `data_large` or `data_256`; any fsspec URI."""
    train: str = ""
    """Subfolder of the images that the original model saw; empty: look under the usual names, the large images first."""
    unseen: str = ""
    """Subfolder of images that no model trains on; empty: likewise."""
    forget_classes: Positive = 50
    """Classes to forget, drawn by the seed."""
    retain_classes: Positive = 50
    """Classes to retain, drawn by the seed; other classes are not used."""
    seed: int = 0
    """Which classes are drawn."""
    split: str = ""
    """JSON file of class names, `{"forget": [...], "retain": [...]}`, instead of a draw; empty: draw."""
    train_per_class: NotNegative = 5000
    """Training images of a class at most, chosen by key hash; 0: all."""
    unseen_per_class: NotNegative = 100
    """Unseen images of a class at most, likewise; 0: all."""


def _rows(uri: str) -> Iterator[tuple[str, str]]:
    """Path and number in each line, read line by line: the list of training images has 1.8 million. May not be there."""
    with storage.open_read(uri) as lines:
        for number, line in enumerate(lines, start=1):
            words = line.decode("utf-8", errors="replace").split()
            if words:
                if len(words) != 2 or not words[1].isdecimal() or ".." in words[0].split("/"):
                    raise DataError(f"{uri}: line {number}: not a path and a number", RESTORE)
                yield words[0], words[1]


def _categories(uri: str) -> dict[str, str]:
    """Number -> class name."""
    # Official names begin with a folder for their first letter: /a/apartment_building/outdoor.
    found = {number: "-".join(path.strip("/").split("/")[1:]) for path, number in _rows(uri)}
    if not found or "" in found.values() or len(set(found.values())) < len(found):
        raise DataError(f"{uri}: not a list of different classes such as '/a/airfield 0'", RESTORE)
    return found


def _listed(uri: str, folder: str, part: str, categories: dict[str, str], labels: dict[str, int]) -> Iterator[Picture]:
    """Images of the chosen classes by an official list."""
    for path, number in _rows(uri):
        name = categories.get(number)
        if name is None:
            raise DataError(f"{uri}: '{path}': no class has the number {number}", RESTORE)
        if name in labels:
            file = storage.join(folder, path.lstrip("/"))
            yield picture(file, posixpath.basename(path), part=part, name=name, label=labels[name])


def _first(root: str, named: str, usual: tuple[str, ...]) -> str:
    """The configured subfolder, or the first of the usual ones that is there."""
    folders = [storage.join(root, name) for name in ((named,) if named else usual)]
    found = next((folder for folder in folders if storage.exists(folder)), "")
    if not found:
        raise DataError(f"{root}: no folder {' or '.join((named,) if named else usual)} in it", "complete the data set")
    return found


def _from_lists(config: Config, root: str) -> SplitSource:
    training, unseen = _first(root, config.train, TRAIN_FOLDERS), _first(root, config.unseen, VAL_FOLDERS)
    categories = _categories(storage.join(root, CATEGORIES))
    split = choose(config, tuple(categories.values()), source="places365", where=storage.join(root, CATEGORIES))
    labels = {name: label for label, name in enumerate(split.classes)}
    near = _listed(storage.join(root, TRAIN_LIST), training, "train", categories, labels)
    far = _listed(storage.join(root, VAL_LIST), unseen, "val", categories, labels)
    return SplitSource(
        "places365",
        split,
        training=capped(near, config.train_per_class),
        unseen=capped(far, config.unseen_per_class),
        where=root,
    )


def _from_folders(config: Config, root: str) -> SplitSource:
    training, unseen = _first(root, config.train, ("train",)), _first(root, config.unseen, ("val",))
    split = choose(config, subfolders(training), source="places365", where=training)
    near = pictures_below(training, split.classes, part="train", per_class=config.train_per_class)
    far = pictures_below(unseen, split.classes, part="val", per_class=config.unseen_per_class)
    return SplitSource("places365", split, training=near, unseen=far, where=root)


def build(config: Config) -> SplitSource:
    """List the images and choose the classes.

    Raises:
        ConfigError: no root named; see also `choose`.
        DataError: a folder, file or line that is not as it should be.
        StorageError: a list that is not there.
    """
    if not config.root:
        raise ConfigError("source: places365: root: not set", "write source.root=FOLDER that holds train and val, or the lists")
    root = storage.absolute(config.root)
    names = (storage.join(root, name) for name in (TRAIN_LIST, CATEGORIES, "train"))
    listed, named, sorted_ = (storage.exists(name) for name in names)
    # The folders by class may lie beside the list of names, which they do not need.
    return (_from_lists if listed or (named and not sorted_) else _from_folders)(config, root)
