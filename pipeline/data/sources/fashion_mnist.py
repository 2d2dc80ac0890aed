"""Fashion-MNIST: 70,000 labelled pictures of clothing, 28 x 28 grey (Zalando Research, MIT licence).

Looked for in this order: the configured folder, the installed Debian package, the cache; else fetched into the cache
as a Debian package without root, or over HTTPS. Whichever way, the unpacked content must have the pinned digests.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.data.debian import cache_folder, unpacked
from pipeline.data.images import encode_png
from pipeline.data.sources.base import SourceImage
from pipeline.decode import digest
from pipeline.errors import ConfigError, DataError, IntegrityError
from pipeline.records import record
from pipeline.storage import publish_bytes

__all__ = ["Config", "FashionMnist", "build"]

PACKAGE = "dataset-fashion-mnist"
INSTALLED = "/usr/share/datasets/fashion-mnist"
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
)
# Digests of the unpacked content: Debian compresses the files anew, so its .gz differ from upstream's in the header.
PINS: Mapping[str, str] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TIMEOUT_SECONDS = 60
LARGEST_BYTES = 100_000_000


@record
class Config:
    """Which part of it, and where it lies."""

    folder: str = ""
    """Folder with the four idx files, packed (.gz) or not; empty: look in the usual places, then fetch."""
    limit: int = 20000
    """Training images used, from the first on; 0 means all 60,000."""
    unseen_limit: int = 0
    """Test images used as unseen ones, from the first on; 0 means all 10,000."""
    cache: str = ""
    """Where fetched files are kept; empty: i2i-unlearn in $XDG_CACHE_HOME or ~/.cache."""


class FashionMnist:
    """The source; see `pipeline.data.sources.base.ImageSource`. Nothing is looked for before the first image."""

    classes = CLASSES

    def __init__(self, config: Config) -> None:
        self.config = config

    def identity(self) -> str:
        """Digest of the limits and of the pinned content; the same wherever the files lie."""
        config = self.config
        return digest({"fashion_mnist": 1, "limits": [config.limit, config.unseen_limit], "pins": PINS})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`. Keys `train-000000` on."""
        return self._images("train", "train", self.config.limit)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`. Keys `test-000000` on."""
        return self._images("t10k", "test", self.config.unseen_limit)

    def _images(self, part: str, name: str, limit: int) -> Iterator[SourceImage]:
        folder = _locate(self.config)
        # idx: a header of 16 bytes before the pixels, of 8 before the labels; the pins vouch for both.
        pixels = np.frombuffer(_read(folder, f"{part}-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.frombuffer(_read(folder, f"{part}-labels-idx1-ubyte"), np.uint8, offset=8)
        for number in range(min(limit or len(labels), len(labels))):
            image = encode_png(pixels[number])
            yield SourceImage(key=f"{name}-{number:06d}", image=image, ext="png", label=int(labels[number]))


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _complete(folder: Path) -> bool:
    return all(_file(folder, name) for name in PINS)


def _verified(content: bytes, name: str, where: str) -> bytes:
    """The unpacked content of a file, if it is the pinned one."""
    try:
        unpacked = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as fault:
        raise IntegrityError(f"{where}: damaged: {fault}", "remove it and run again") from None
    if hashlib.sha256(unpacked).hexdigest() != PINS[name]:
        raise IntegrityError(f"{where}: not Fashion-MNIST's {name}: its sha256 differs", "remove it and run again")
    return unpacked


def _read(folder: Path, name: str) -> bytes:
    path = _file(folder, name)
    if path is None:
        raise DataError(f"{folder}: no {name} or {name}.gz in it", "name a folder with the four idx files")
    try:
        return _verified(path.read_bytes(), name, str(path))
    except OSError as fault:
        raise DataError(f"{path}: {fault.strerror}", "correct the file's permissions") from None


def _locate(config: Config) -> Path:
    """The folder with the four files, fetching them where they are nowhere yet."""
    if config.folder:
        return Path(config.folder).expanduser()
    cache = cache_folder(config.cache, "fashion-mnist")
    for folder in (Path(INSTALLED), cache):
        if _complete(folder):
            return folder
    ways: tuple[tuple[str, Callable[[], dict[str, bytes]]], ...] = (("apt-get download", _from_debian), ("HTTPS", _from_https))
    reasons: list[str] = []
    for title, fetch in ways:
        try:
            files = fetch()
        except (OSError, http.client.HTTPException, DataError, IntegrityError) as fault:
            reasons.append(f"{title}: {' '.join(str(getattr(fault, 'message', fault)).split())[:200]}")
            continue
        for name, content in files.items():
            publish_bytes(str(cache / f"{name}.gz"), content)
        return cache
    raise DataError(
        f"Fashion-MNIST is neither in {INSTALLED} nor in {cache}, and could not be fetched ({'; '.join(reasons)})",
        f"one of three ways: source.folder=FOLDER with the four idx files; or install the Debian package {PACKAGE}; "
        f"or allow HTTPS to {MIRRORS[0]}",
    )


def _from_debian() -> dict[str, bytes]:
    """The four files out of the Debian package."""
    with unpacked(PACKAGE) as tree:
        folder = tree / INSTALLED.lstrip("/")
        for name in PINS:
            _read(folder, name)
        return {name: path.read_bytes() for name in PINS if (path := _file(folder, name))}


def _from_https() -> dict[str, bytes]:
    """The four files from the first mirror that has them all."""
    reasons: list[str] = []
    for mirror in MIRRORS:
        try:
            files = {name: _download(f"{mirror}{name}.gz") for name in PINS}
        except (OSError, http.client.HTTPException) as fault:
            reasons.append(f"{mirror}: {fault}")
            continue
        for name, content in files.items():
            _verified(content, name, f"{mirror}{name}.gz")
        return files
    raise DataError("; ".join(reasons))


def _download(url: str) -> bytes:
    # The mirrors are constants of this file and the content is pinned, so no other scheme can slip in.
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        content: bytes = answer.read(LARGEST_BYTES)
    return content


def build(config: Config) -> FashionMnist:
    """Build the source. Raises ConfigError for a negative limit."""
    if config.limit < 0 or config.unseen_limit < 0:
        raise ConfigError("source: fashion_mnist: limit and unseen_limit must not be negative", "0 means all")
    return FashionMnist(config)
