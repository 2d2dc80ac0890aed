"""Small drawn images, a shape for each class; for tests only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.data.images import encode_png
from pipeline.data.sources.base import SourceImage
from pipeline.decode import digest
from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["Config", "Synthetic", "build"]


@record
class Config:
    """Deterministic images: equal configurations give equal bytes."""

    samples: int = 600
    """Training images, keys `train-000000` on; labels go round."""
    unseen_samples: int = 200
    """Images that no model trains on, keys `test-000000` on."""
    classes_count: int = 4
    """Number of classes; each draws its own shape."""
    size: int = 16
    """Side in pixels."""
    channels: int = 1
    """1 grey, 3 colour."""
    seed: int = 0
    """Place, size and tone of the shapes are functions of this number."""


class Synthetic:
    """The source; see `pipeline.data.sources.base.ImageSource`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.classes = tuple(f"shape {label}" for label in range(config.classes_count))

    def identity(self) -> str:
        """Digest of the configuration, which determines the images."""
        return digest({"synthetic": 1, "config": self.config})

    def training(self) -> Iterator[SourceImage]:
        """See `ImageSource.training`."""
        return self._images("train", 0, self.config.samples)

    def unseen(self) -> Iterator[SourceImage]:
        """See `ImageSource.unseen`."""
        return self._images("test", 1, self.config.unseen_samples)

    def _images(self, name: str, stream: int, count: int) -> Iterator[SourceImage]:
        for number in range(count):
            label = number % self.config.classes_count
            rng = np.random.default_rng([self.config.seed, stream, number])
            yield SourceImage(key=f"{name}-{number:06d}", image=encode_png(self._draw(label, rng)), ext="png", label=label)

    def _draw(self, label: int, rng: np.random.Generator) -> np.ndarray:
        """A star-shaped blob with as many arms as its label, on a shaded ground; uint8 [size, size, channels]."""
        size = self.config.size
        rows, columns = np.mgrid[0:size, 0:size] / max(1, size - 1) * 2 - 1
        rows, columns = rows - rng.uniform(-0.2, 0.2), columns - rng.uniform(-0.2, 0.2)
        angle, distance = np.arctan2(rows, columns), np.hypot(rows, columns)
        edge = rng.uniform(0.5, 0.7) * (1 + 0.4 * np.cos(label * angle))
        inside = 1 / (1 + np.exp(12 * (distance - edge)))
        tones = rng.uniform(0.6, 1.0, self.config.channels)
        ground = 0.2 * (rows + 1) / 2
        pixels = ground[..., None] + inside[..., None] * (tones - ground[..., None])
        return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def build(config: Config) -> Synthetic:
    """Build the source. Raises ConfigError for counts that cannot work."""
    if min(config.samples, config.unseen_samples, config.classes_count, config.size) < 1 or config.channels not in (1, 3):
        raise ConfigError("source: synthetic: counts and size must be above 0, channels 1 or 3", "correct the field")
    return Synthetic(config)
