"""Perceptual hashes of single image files, for requests that mean all images that look like them."""

from __future__ import annotations

from pipeline.config import ImagesConfig
from pipeline.data.likeness import perceptual_hash
from pipeline.request_orders import LikenessAnswer, LikenessOrder
from pipeline.storage import read_bytes

__all__ = ["run"]


def run(order: LikenessOrder) -> LikenessAnswer:
    """Hash the files. Raises StorageError where one cannot be read."""
    found = [perceptual_hash(read_bytes(file), ImagesConfig().max_pixels) for file in order.files]
    return LikenessAnswer(hashes=tuple("" if value is None else f"{value:016x}" for value in found))
