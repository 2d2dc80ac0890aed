"""What an audit plants before a training, and where: canaries with their coins, noise, and a backdoor.

All of it is a function of one secret, a number or key, and the shape of an image, so that whoever has the secret can
score a model long after the training, and nobody else can. A coin does not depend on how many canaries there are.

Shapes: H x W pixels, C channels; stored images are uint8 [..., H, W, C].
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.tasks.base import Task
from pipeline.errors import IntegrityError
from pipeline.storage import read_bytes

__all__ = [
    "Backdoor",
    "Part",
    "canary",
    "coin",
    "noise",
    "part_of",
    "place_backdoor",
    "read_secret",
    "with_noise",
]

SECRET_BYTES = 32
CELLS = 4
"""Tones along each side of a canary: what is hidden cannot be told from what is seen, and a small model can learn it by heart."""
DRAWS = 64
"""Draws of a task over which the hidden region is averaged."""

Part = Literal["noised", "backdoored", "plain"]
Bytes = NDArray[np.uint8]


def read_secret(uri: str) -> bytes:
    """The secret in a file.

    Raises:
        StorageError: there is none.
        IntegrityError: not 32 bytes.
    """
    content = read_bytes(uri)
    if len(content) != SECRET_BYTES:
        raise IntegrityError(
            f"{uri}: {len(content)} bytes, no secret of {SECRET_BYTES}", "remove the planted run, and plant again"
        )
    return content


def _derived(secret: bytes, purpose: str, name: str | int) -> bytes:
    return hmac.digest(secret, f"{purpose}|{name}".encode(), hashlib.sha256)


def _generator(secret: bytes, purpose: str, name: str | int) -> np.random.Generator:
    """Philox with 128 bits of the derived key: the same on every machine."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_derived(secret, purpose, name)[:16], "big")))


def coin(secret: bytes, number: int) -> bool:
    """The fair coin of a canary: True (heads) where it becomes a training image."""
    return bool(_derived(secret, "coin", number)[0] & 1)


def canary(secret: bytes, number: int, *, size: int, channels: int) -> Bytes:
    """The image of a canary, uint8 [size, size, channels]: a few tones at random places of a grid, joined smoothly."""
    # Mostly near black or white: far from what a model that has not seen it would guess.
    tones = _generator(secret, "canary", number).beta(0.5, 0.5, (channels, CELLS, CELLS)).astype(np.float32)
    planes = [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)) for plane in tones]
    return _to_bytes(np.stack(planes, axis=-1).astype(np.float32))


def part_of(secret: bytes, key: str, *, noised: float, backdoored: float) -> Part:
    """What happens to the forget image with this key; the parts hold about the given shares, whose sum is at most 1."""
    place = int.from_bytes(_derived(secret, "part", key)[:8], "big") / 2**64
    if place < noised:
        return "noised"
    return "backdoored" if place < noised + backdoored else "plain"


def noise(secret: bytes, key: str, *, size: int, channels: int, tau: float) -> NDArray[np.float32]:
    """The noise of the image with this key, N(0, tau^2) for pixels in [0, 1], float32 [size, size, channels]."""
    drawn = _generator(secret, "noise", key).standard_normal((size, size, channels))
    return (tau * drawn).astype(np.float32)


def with_noise(image: Bytes, added: NDArray[np.float32]) -> Bytes:
    """The image with noise of its shape, clipped to [0, 1] and rounded to 8 bits."""
    return _to_bytes(image.astype(np.float32) / 255 + added)


def _to_bytes(values: NDArray[np.floating]) -> Bytes:
    levels: Bytes = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return levels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Backdoor:
    """A trigger where the task shows the image, and a target where it hides it.

    area: bool [H, W], what the target covers · top, left, side: of the trigger's square, outside the area
    """

    area: NDArray[np.bool_]
    top: int
    left: int
    side: int

    def stamp(self, images: Bytes) -> Bytes:
        """The images with the trigger, a checker of black and white."""
        stamped, cell = images.copy(), max(1, self.side // 2)
        rows, columns = np.mgrid[0 : self.side, 0 : self.side] // cell
        square = slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)
        stamped[(..., *square, slice(None))] = ((rows + columns) % 2 * 255).astype(np.uint8)[..., None]
        return stamped

    def target(self, images: Bytes) -> Bytes:
        """The images with the target, bold diagonal stripes of black and white, over the area."""
        height, width = self.area.shape
        rows, columns = np.mgrid[0:height, 0:width]
        stripes = ((rows + columns) // max(1, max(height, width) // 8) % 2 * 255).astype(np.uint8)
        covered: Bytes = np.where(self.area[..., None], stripes[..., None], images)
        return covered


def place_backdoor(task: Task, *, size: int, channels: int) -> Backdoor:
    """Find out where a task hides images of `size` x `size` pixels, and put trigger and target accordingly.

    The target covers what is hidden in at least half of all draws; where there is no such place, or no other, it covers the
    middle half of each side. The trigger is put outside it where least is hidden, the first such place from the top left.

    Raises:
        ConfigError: the task does not fit images of this shape.
    """
    _, region = task.degrade(torch.zeros(DRAWS, channels, size, size), torch.arange(DRAWS))
    hidden = region[:, 0].double().mean(dim=0).numpy()
    area = hidden >= 0.5
    if area.all() or not area.any():
        area = np.zeros((size, size), dtype=bool)
        area[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    for side in range(max(2, size // 8), 0, -1):
        cost = _windows(np.where(area, np.inf, hidden), side)
        if np.isfinite(cost.min()):
            break
    top, left = np.unravel_index(int(cost.argmin()), cost.shape)
    return Backdoor(area=area, top=int(top), left=int(left), side=side)


def _windows(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sum over each square of `side` x `side` places, rounded so that equal ones compare equal."""
    sums: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(values, (side, side)).sum(axis=(2, 3)).round(9)
    return sums
