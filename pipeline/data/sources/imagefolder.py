"""A folder with one subfolder a class, under any fsspec URI."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from typing import Literal

from pipeline import storage
from pipeline.data.sources.base import SourceImage, fingerprint
from pipeline.decode import digest
from pipeline.errors import ConfigError, DataError
from pipeline.records import record

__all__ = ["Config", "ImageFolder", "build"]

EXTENSIONS: Mapping[str, Literal["png", "jpg"]] = {"png": "png", "jpg": "jpg", "jpeg": "jpg"}


@record
class Config:
    """Where the images lie: `root/train/CLASS/...` and `root/val/CLASS/...`."""

    root: str = ""
    """Folder, any fsspec URI."""
    train: str = "train"
    """Subfolder of the images that the original model saw."""
    unseen: str = "val"
    """Subfolder of images that no model trains on; where there is none, `unseen_share` is used."""
    unseen_share: float = 0.1
    """Share of the training folder kept unseen, chosen by key hash, when there is no unseen subfolder."""


@record
class _File:
    key: str
    uri: str
    ext: Literal["png", "jpg"]
    label: str


class ImageFolder:
    """The source; see `pipeline.data.sources.base.ImageSource`. Keys are paths below the root, `train__CLASS__NAME`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._root = storage.absolute(config.root)
        self._training = self._list(config.train)
        if not self._training:
            raise DataError(f"{storage.join(self._root, config.train)}: no images", "lay images out as train/CLASS/NAME.png")
        self.classes = tuple(sorted({file.label for file in self._training}))
        self._unseen = self._list(config.unseen)
        if not self._unseen:
            self._unseen = [file for file in self._training if self._kept_unseen(file.key)]
            self._training = [file for file in self._training if not self._kept_unseen(file.key)]
        self._check()

    def _list(self, part: str) -> list[_File]:
        """Images of one subfolder by URI; DataError for any other file in it."""
        folder = storage.join(self._root, part)
        files, others = [], []
        for uri in storage.list_files(folder) if storage.exists(folder) else []:
            path = posixpath.relpath(uri, folder)
            stem, dot, ext = path.rpartition(".")
            if not dot or "/" not in path or ext.lower() not in EXTENSIONS:
                others.append(path)
                continue
            # WebDataset's key ends at the first dot of the last path part, so a key has neither dots nor slashes.
            key = f"{part}/{stem}".replace("/", "__").replace(".", "_")
            files.append(_File(key=key, uri=uri, ext=EXTENSIONS[ext.lower()], label=path.split("/")[0]))
        if others:
            shown = ", ".join(f"'{path}'" for path in others[:5])
            message = f"{folder}: {len(others)} files that are not CLASS/NAME.png, .jpg or .jpeg: {shown}"
            raise DataError(message, "move them elsewhere, or convert them")
        return files

    def _kept_unseen(self, key: str) -> bool:
        return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) < self.config.unseen_share * 2**32

    def _check(self) -> None:
        homes: dict[str, str] = {}
        for file in (*self._training, *self._unseen):
            if file.key in homes:
                raise DataError(f"{file.uri} and {homes[file.key]}: both get the key '{file.key}'", "rename one of them")
            homes[file.key] = file.uri
            if file.label not in self.classes:
                raise DataError(f"{file.uri}: no training image of class '{file.label}'", "correct the folder's name")

    def identity(self) -> str:
        """Digest of the configuration and of names, sizes and change marks of all files."""
        files = (file.uri for file in (*self._training, *self._unseen))
        return digest({"imagefolder": 1, "config": self.config, "files": fingerprint(files)})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`."""
        return self._read(self._training)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`."""
        return self._read(self._unseen)

    def _read(self, files: list[_File]) -> Iterator[SourceImage]:
        labels = {name: number for number, name in enumerate(self.classes)}
        for file in files:
            yield SourceImage(key=file.key, image=storage.read_bytes(file.uri), ext=file.ext, label=labels[file.label])


def build(config: Config) -> ImageFolder:
    """List the folder.

    Raises:
        ConfigError: no root, or a share outside [0, 1).
        DataError: no images, files that are not images, or two files with one key.
    """
    if not config.root:
        raise ConfigError("source: imagefolder: root: missing", "write source.root=FOLDER")
    if not 0 <= config.unseen_share < 1:
        raise ConfigError("source: imagefolder: unseen_share: must lie in [0, 1)", "write e.g. unseen_share: 0.1")
    return ImageFolder(config)
