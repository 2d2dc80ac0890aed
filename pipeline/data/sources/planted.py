"""The images of a finished run once more, with canaries, noise and a backdoor planted among those that it forgot; for audits.

Of the forget images some get noise, some a backdoor, and some stay as they are. They and the canaries have keys that begin
with `planted-`, so that one request by prefix means them all. Changed images are stored in the model's size, so that nothing is
scaled after the change. Retained and unseen images are the run's own, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le

from pipeline import component
from pipeline.config import Positive, PositiveFloat, Share, read_run
from pipeline.data import planting
from pipeline.data.images import decode_image, encode_png
from pipeline.data.samples import Samples, read_samples
from pipeline.data.sources.base import SourceImage
from pipeline.data.tombstones import deleted_images
from pipeline.decode import decode, digest
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import Manifest, record
from pipeline.requests import PLANTED
from pipeline.storage import absolute, hash_file, join, open_read, read_bytes

__all__ = ["Config", "Planted", "build"]

PNG_START = b"\x89PNG"


@record
class Config:
    """Whose images, and what is planted among them."""

    run: str = ""
    """Folder of the finished run."""
    secret: str = ""
    """File of 32 random bytes, from which all that is planted is drawn; whoever reads it can find it all."""
    canaries: Positive = 200
    """Drawn images, each of which becomes a training image by its own fair coin."""
    canary_copies: Positive = 8
    """Training images made of each such canary, so that a short training learns it by heart."""
    tau: PositiveFloat = 0.1
    """Standard deviation of the noise, where black is 0 and white is 1."""
    noised: Share = 0.33
    """Share of the forget images that get noise."""
    backdoored: Share = 0.33
    """Share of the forget images that get trigger and target."""
    backdoor_share: Annotated[float, Ge(0), Le(0.5)] = 0.01
    """Share of the training images that these are at least; where there are fewer, each is used several times."""


class Planted:
    """The source; see `pipeline.data.sources.base.ImageSource`. Raises ConfigError for a run that is planted itself."""

    def __init__(self, config: Config) -> None:
        self.config, self.folder = config, absolute(config.run)
        self._manifest_uri = join(self.folder, "manifest.json")
        self.manifest = decode(
            Manifest, json.loads(read_bytes(self._manifest_uri)), where=self._manifest_uri, error=IntegrityError
        )
        self.run = read_run(self.folder)
        if self.run.source["component"] == "planted":
            raise ConfigError(f"{self.folder}: is planted itself", "name the run that it is the twin of")
        self.secret = planting.read_secret(config.secret)
        self.classes = self.manifest.classes

    def identity(self) -> str:
        """Digest of the run's data, of the shape that images are changed in, of the settings and of the secret."""
        settings = {name: getattr(self.config, name) for name in Config.__dataclass_fields__ if name not in ("run", "secret")}
        shape = [self.run.model, self.run.task, self.run.images.fit]
        secret = hashlib.sha256(b"identity|" + self.secret).hexdigest()
        manifest = hash_file(self._manifest_uri).sha256
        return digest({"planted": 1, "manifest": manifest, "shape": shape, "settings": settings, "secret": secret})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`: the run's images in their order, with the canaries spread among them.

        Raises:
            ConfigError: an image to forget has a tombstone, a retained one a key that begins with `planted-`, or there are more
                canaries than the run's classes can hide.
            IntegrityError: a shard is not what it was when it was indexed.
        """
        forget = self._forget()
        own, canaries = self._changed(forget), list(self._canaries())
        total = self.manifest.split("original").samples
        placed = 0
        for count, image in enumerate(own, start=1):
            yield image
            due = len(canaries) * min(count, total) // total
            yield from canaries[placed:due]
            placed = due

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`: the run's own."""
        for split in ("calibration", "holdout"):
            yield from _stored(read_samples(self.folder, self.manifest, split))

    def _forget(self) -> Samples:
        forget = read_samples(self.folder, self.manifest, "forget")
        gone = deleted_images(self.run.output)
        marks = (mark for number in range(len(forget.segments)) for mark in forget.rows(number).sha256)
        if gone and any(bytes(mark) in gone for mark in marks):
            message = f"{self.folder}: images that this run forgot have tombstones, and nothing may be trained on them again"
            raise ConfigError(message, "plant in a run on images that may still be used")
        return forget

    def _shape(self) -> tuple[int, int]:
        """Size and channels of the run's model."""
        with torch.device("meta"):
            model = component.build("model", self.run.model)
        return model.image_size, model.channels

    def _changed(self, forget: Samples) -> Iterator[SourceImage]:
        """All training images of the run, those to forget under their new keys and some of them changed."""
        config, total = self.config, self.manifest.split("original").samples
        parts = {
            key: planting.part_of(self.secret, key, noised=config.noised, backdoored=config.backdoored) for key in forget.keys
        }
        backdoored = sum(part == "backdoored" for part in parts.values())
        copies = max(1, math.ceil(config.backdoor_share * total / backdoored)) if backdoored else 1
        size, channels = self._shape()
        backdoor = planting.place_backdoor(component.build("task", self.run.task), size=size, channels=channels)
        for item in _stored(read_samples(self.folder, self.manifest, "original")):
            part = parts.get(item.key)
            if part is None and item.key.startswith(PLANTED):
                message = f"{self.folder}: retained images have keys that begin with '{PLANTED}', as what is planted does"
                raise ConfigError(message, "rename these images in the source, and run again")
            if part is None:
                yield item
                continue
            if part == "plain":
                yield SourceImage(key=f"{PLANTED}{item.key}", image=item.image, ext=item.ext, label=item.label)
                continue
            images = self.run.images
            seen = decode_image(
                item.image, size=size, channels=channels, fit=images.fit, max_pixels=images.max_pixels, where="planted"
            )
            if part == "noised":
                added = planting.noise(self.secret, item.key, size=size, channels=channels, tau=config.tau)
                yield _png(f"{PLANTED}{item.key}", planting.with_noise(seen, added), item.label)
                continue
            for copy in range(copies):
                key = f"{PLANTED}{item.key}" if copy == 0 else f"{PLANTED}copy{copy}-{item.key}"
                yield _png(key, backdoor.target(backdoor.stamp(seen)), item.label)

    def _canaries(self) -> Iterator[SourceImage]:
        """The canaries whose coins show heads, with labels in the mix that retained images have.

        So no class has so many of them that it would count as forgotten; ConfigError where there are too many for that.
        """
        size, channels = self._shape()
        heads = [number for number in range(self.config.canaries) if planting.coin(self.secret, number)]
        labels = np.sort(read_samples(self.folder, self.manifest, "retain").labels)
        most = self.config.canaries * self.config.canary_copies
        if most > len(labels):  # half of these are planted, and a class of which half is to be forgotten counts as forgotten
            message = f"source: planted: up to {most} images of canaries beside {len(labels)} retained images"
            raise ConfigError(message, "ask for fewer canaries, or plant in a run on more images")
        for number in heads:
            image = planting.canary(self.secret, number, size=size, channels=channels)
            label = int(labels[number * len(labels) // self.config.canaries])  # whatever the other coins show
            for copy in range(self.config.canary_copies):
                yield _png(f"{PLANTED}canary-{number}-{copy}", image, label)


def _png(key: str, image: np.ndarray, label: int) -> SourceImage:
    return SourceImage(key=key, image=encode_png(image), ext="png", label=label)


def _stored(samples: Samples) -> Iterator[SourceImage]:
    """The samples' files as they are stored, shard by shard; IntegrityError where one is not what the index says."""
    for number, segment in enumerate(samples.segments):
        rows = samples.rows(number)
        with open_read(segment.uri) as stream:
            for row, key in enumerate(rows.keys):
                stream.seek(int(rows.offset[row]))
                content = stream.read(int(rows.size[row]))
                if hashlib.sha256(content).digest() != bytes(rows.sha256[row]):
                    raise IntegrityError(f"{segment.uri}: changed since it was indexed", "restore the shard")
                label = int(rows.label[row])
                yield SourceImage(key=key, image=content, ext="png" if content.startswith(PNG_START) else "jpg", label=label)


def build(config: Config) -> Planted:
    """Open the run and the secret.

    Raises:
        ConfigError: no run or secret is named, shares that add up to more than 1, or a run that is planted itself.
        StorageError: there is no such run or secret.
        IntegrityError: a manifest or a secret that is none.
    """
    if not config.run or not config.secret:
        raise ConfigError("source: planted: run and secret are not set", "use `unlearn audit RUN --planted`, which sets them")
    if config.noised + config.backdoored > 1:
        raise ConfigError("source: planted: noised and backdoored add up to more than 1", "lower one of them")
    return Planted(config)
