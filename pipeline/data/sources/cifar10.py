"""CIFAR-10: 60,000 labelled pictures, 32 x 32 in colour (Krizhevsky, 2009), from its official files.

Looked for in the configured folder, in this order: `cifar-10-batches-bin`, `cifar-10-binary.tar.gz`,
`cifar-10-batches-py`, `cifar-10-python.tar.gz`; all hold the same images in the same order. The Python files are pickles,
which could run any code; `pipeline.data.plain_pickle` reads them and runs nothing. Nothing is fetched and nothing is unpacked
onto the disk; memory holds one file of 10,000 images.
"""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import NotNegative
from pipeline.data.images import encode_png
from pipeline.data.plain_pickle import read_plain_pickle
from pipeline.data.sources.base import SourceImage
from pipeline.decode import digest
from pipeline.errors import ConfigError, DataError
from pipeline.records import record

__all__ = ["Cifar10", "Config", "build"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS = 10_000
"""Images in each file."""
PIXELS = 3 * 32 * 32
LARGEST_BYTES = 64_000_000
"""Of one file; the official ones are half as large."""
MOST_BYTES = 400_000_000
"""Of an unpacked archive; the official ones are half as large."""
BLOCK = 1 << 20
MOST_MEMBERS = 100
PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
RESTORE = "restore the official file from www.cs.toronto.edu/~kriz/cifar.html"


@record
class Config:
    """Where the official files lie, and which part of them is used."""

    folder: str = ""
    """Folder that holds one of the archives, or one of the folders in them."""
    limit: NotNegative = 0
    """Training images used, from the first on; 0 means all 50,000."""
    unseen_limit: NotNegative = 0
    """Test images used as unseen ones, from the first on; 0 means all 10,000."""


class _Layout(NamedTuple):
    """One of the two forms of the files."""

    folder: str
    archive: str
    suffix: str
    meta: str
    batch: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]
    names: Callable[[bytes, str], tuple[str, ...]]


class Cifar10:
    """The source; see `pipeline.data.sources.base.ImageSource`."""

    classes = CLASSES

    def __init__(self, config: Config) -> None:
        self.config = config
        self._layout, self._place = _locate(Path(config.folder).expanduser())

    def identity(self) -> str:
        """Digest of the limits and of the names, sizes and times of the files; the same wherever they lie."""
        names = [self._layout.meta, *(name + self._layout.suffix for part in PARTS.values() for name in part)]
        paths = [self._place] if self._place.is_file() else [self._place / name for name in names]
        files = []
        for path in paths:
            with _named(path):
                files.append((path.name, path.stat().st_size, int(path.stat().st_mtime)))
        return digest({"cifar10": 1, "limits": [self.config.limit, self.config.unseen_limit], "files": files})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`. Keys `train-000000` on."""
        return self._images("train", self.config.limit)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`. Keys `test-000000` on."""
        return self._images("test", self.config.unseen_limit)

    def _images(self, part: str, limit: int) -> Iterator[SourceImage]:
        if self._place.is_file():
            _check_archive(self._place)
        named = self._layout.names(*_content(self._place, self._layout.meta))
        if named != CLASSES:
            raise DataError(f"{self._place}: {self._layout.meta} names other classes: {', '.join(named)[:200]}", RESTORE)
        number, stop = 0, limit or ROWS * len(PARTS[part])
        for name in PARTS[part]:
            if number >= stop:
                return
            pixels, labels = self._layout.batch(*_content(self._place, name + self._layout.suffix))
            for image, label in zip(pixels.reshape(-1, 3, 32, 32), labels.tolist(), strict=True):
                if number < stop:
                    png = encode_png(np.ascontiguousarray(image.transpose(1, 2, 0)))
                    yield SourceImage(key=f"{part}-{number:06d}", image=png, ext="png", label=label)
                    number += 1


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Faults of the disk and of archives as DataErrors that name the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: not found", RESTORE) from None
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as fault:
        raise DataError(f"{path}: damaged archive: {fault}", RESTORE) from None
    except OSError as fault:
        raise DataError(f"{path}: {fault.strerror or fault}", "correct the file or its permissions") from None


def _check_archive(path: Path) -> None:
    """Read an archive to its end, where its checksum is: a damaged one may well unpack, to other pixels."""
    count = 0
    with _named(path), gzip.open(path) as stream:
        while block := stream.read(BLOCK):
            count += len(block)
            if count > MOST_BYTES:
                raise DataError(f"{path}: more than {MOST_BYTES} bytes unpacked: not CIFAR-10's archive", RESTORE)


def _content(place: Path, name: str) -> tuple[bytes, str]:
    """The bytes of a file in the folder or archive, and what to call it. Raises DataError."""
    if place.is_file():
        with _named(place), tarfile.open(place, "r:gz") as tar:
            for count, member in enumerate(tar):
                if count >= MOST_MEMBERS or member.size > LARGEST_BYTES:
                    raise DataError(f"{place}: not CIFAR-10's archive: '{member.name[:80]}' should not be in it", RESTORE)
                if member.isreg() and member.name.removeprefix("./").split("/")[1:] == [name]:
                    stream = tar.extractfile(member)
                    assert stream is not None  # a regular file
                    return stream.read(), f"{place}: {name}"
        raise DataError(f"{place}: no {name} in it", RESTORE)
    path = place / name
    with _named(path):
        if path.stat().st_size > LARGEST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, more than any file of CIFAR-10", RESTORE)
        return path.read_bytes(), str(path)


def _checked(pixels: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(labels) != ROWS or pixels.shape != (ROWS, PIXELS):
        raise DataError(f"{where}: {len(labels)} labels and {len(pixels)} images, not {ROWS} of each", RESTORE)
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"{where}: a label that is not 0 to {len(CLASSES) - 1}", RESTORE)
    return pixels, labels


def _binary_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != ROWS * (1 + PIXELS):
        raise DataError(f"{where}: {len(content)} bytes, not {ROWS * (1 + PIXELS)}: short or damaged", RESTORE)
    rows = np.frombuffer(content, np.uint8).reshape(ROWS, 1 + PIXELS)
    return _checked(rows[:, 1:], rows[:, 0].astype(np.int64), where)


def _binary_names(content: bytes, where: str) -> tuple[str, ...]:
    return tuple(line for line in content.decode("latin-1").split("\n") if line.strip())


def _python_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    found = read_plain_pickle(content, where, RESTORE)
    labels, pixels = (found.get(name) for name in (b"labels", b"data"))
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or not isinstance(pixels, np.ndarray):
        raise DataError(f"{where}: no labels and data of CIFAR-10 in it", RESTORE)
    if any(not 0 <= label < len(CLASSES) for label in labels):
        raise DataError(f"{where}: a label that is not 0 to {len(CLASSES) - 1}", RESTORE)
    return _checked(pixels, np.array(labels, dtype=np.int64), where)


def _python_names(content: bytes, where: str) -> tuple[str, ...]:
    names = read_plain_pickle(content, where, RESTORE).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{where}: no label_names in it", RESTORE)
    return tuple(name.decode("latin-1") for name in names)


BINARY = _Layout("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", "batches.meta.txt", _binary_batch, _binary_names)
PYTHON = _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", "", "batches.meta", _python_batch, _python_names)


def _locate(folder: Path) -> tuple[_Layout, Path]:
    """The form of the files, and the folder or archive that holds them."""
    for layout in (BINARY, PYTHON):
        if (folder / layout.folder).is_dir():
            return layout, folder / layout.folder
        if (folder / layout.archive).is_file():
            return layout, folder / layout.archive
        if folder.name == layout.folder and folder.is_dir():
            return layout, folder
    known = ", ".join(name for layout in (BINARY, PYTHON) for name in (layout.folder, layout.archive))
    raise DataError(f"{folder}: CIFAR-10 is not in it: none of {known}", f"set source.folder to their folder; {RESTORE}")


def build(config: Config) -> Cifar10:
    """Look for the files.

    Raises:
        ConfigError: no folder named.
        DataError: none of the archives and folders is in it.
    """
    if not config.folder:
        raise ConfigError("source: cifar10: folder: not set", "write source.folder=FOLDER with cifar-10-binary.tar.gz")
    return Cifar10(config)
