"""Openclipart: public domain drawings, a folder a class, as Debian ships them: PNGs of all sizes, many transparent.

Looked for in this order: the configured folder, the installed Debian package, the cache; else fetched into the cache
as a Debian package without root. Links, copies of the same bytes, tiny images and those above the cap are left out and
counted; files that the decoder would refuse are left out by name.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Lt

from pipeline.config import NotNegative, Positive
from pipeline.data.debian import cache_folder, package_folder
from pipeline.data.gather import Found, Gathered, Limits, gather, list_tree, place, read_found
from pipeline.data.images import smaller_png
from pipeline.data.sources.base import SourceImage
from pipeline.decode import digest
from pipeline.errors import ConfigError, DataError
from pipeline.records import record

__all__ = ["Config", "Openclipart", "build"]

log = logging.getLogger("unlearn")

PACKAGE = "openclipart-png"
INSTALLED = "/usr/share/openclipart/png"
SHOWN = 3


@record
class Config:
    """Which drawings, and where they lie."""

    folder: str = ""
    """Folder with a subfolder a class; empty: look in the usual places, then fetch."""
    classes: tuple[str, ...] = (
        *("animals", "computer", "food", "geography", "office", "people"),
        *("recreation", "shapes", "signs_and_symbols", "tools", "transportation"),
    )
    """Subfolders that are used; a label is a position in this list."""
    per_class: NotNegative = 400
    """Images of a class at most, training and unseen ones together, taken evenly from its subfolders; 0: all."""
    min_side: Positive = 48
    """Images with a shorter side, in pixels, are left out."""
    max_pixels: Positive = 16_000_000
    """Larger images are left out by name; not above the run's images.max_pixels."""
    store_side: NotNegative = 0
    """Larger drawings are packed with this shorter side, in pixels, since each pass decodes them anew; 0: as they are."""
    unseen_share: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of the images that no model trains on, chosen by key hash."""
    cache: str = ""
    """Where the fetched package is kept; empty: i2i-unlearn in $XDG_CACHE_HOME or ~/.cache."""


class Openclipart:
    """The source; see `pipeline.data.sources.base.ImageSource`. Nothing is looked for before it is asked for.

    Images come in an order of key hashes, so that every shard holds images of all classes.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.classes = config, config.classes

    def identity(self) -> str:
        """Digest of the choices and of names, sizes and times of the files; the same wherever they lie."""
        fields = ["classes", "per_class", "min_side", "max_pixels", "unseen_share"]
        fields += ["store_side"] * bool(self.config.store_side)  # so that what was packed without it keeps its name
        choices = {name: getattr(self.config, name) for name in fields}
        files = [(ascii(file.path), file.bytes, file.changed) for file in self._listed[0]]
        return digest({"openclipart": 1, "choices": choices, "files": files})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`."""
        return self._images(held_back=False)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`."""
        return self._images(held_back=True)

    @property
    def quarantined(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of each file that the decoder would refuse, by path."""
        return self._gathered.quarantined

    def _images(self, *, held_back: bool) -> Iterator[SourceImage]:
        for file in sorted(self._gathered.files, key=lambda file: place(file.key, "order")):
            if (place(file.key, "unseen") < self.config.unseen_share) is held_back:
                yield SourceImage(key=file.key, image=self._stored(file), ext="png", label=file.label)

    def _stored(self, file: Found) -> bytes:
        data, config = read_found(self._root, file), self.config
        if not config.store_side:
            return data
        return smaller_png(data, side=config.store_side, max_pixels=config.max_pixels, where=file.path)

    @functools.cached_property
    def _root(self) -> Path:
        return _locate(self.config)

    @functools.cached_property
    def _listed(self) -> tuple[Sequence[Found], int]:
        return list_tree(self._root, self.classes)

    @functools.cached_property
    def _gathered(self) -> Gathered:
        config, (listed, others) = self.config, self._listed
        limits = Limits(per_class=config.per_class, min_side=config.min_side, max_pixels=config.max_pixels)
        found = gather(self._root, listed, self.classes, limits)
        left_out = {"links or devices": others, **found.left_out}
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        log.info("openclipart: %d images; left out: %s", len(found.files), counts or "none")
        if found.quarantined:
            first = "; ".join(f"{path!r}: {reason}" for path, reason in found.quarantined[:SHOWN])
            more = f"; and {len(found.quarantined) - SHOWN} more" if len(found.quarantined) > SHOWN else ""
            log.warning("openclipart: %d files cannot be used: %s%s", len(found.quarantined), first, more)
        return found


def _locate(config: Config) -> Path:
    if config.folder:
        folder = Path(config.folder).expanduser()
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder", "correct source.folder, or leave it empty to have the drawings fetched")
        return folder
    try:
        return package_folder(PACKAGE, INSTALLED, cache_folder(config.cache, "openclipart"))
    except DataError as fault:
        cure = f"write source.folder=FOLDER with a subfolder a class, or install the Debian package {PACKAGE}"
        raise DataError(f"openclipart: {fault.message}", cure) from None


def build(config: Config) -> Openclipart:
    """Build the source. Raises ConfigError for classes that are not distinct names of subfolders."""
    names = config.classes
    if not names or len(set(names)) < len(names) or any("/" in name or name.startswith(".") or not name for name in names):
        raise ConfigError("source: openclipart: classes: must be distinct names of subfolders", "write e.g. [animals, food]")
    return Openclipart(config)
