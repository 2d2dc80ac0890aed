"""Image bytes to arrays and back: PNG and JPEG only, bounded before decoding, every fault named."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.errors import DataError

__all__ = ["decode_image", "encode_png"]

# Pillow's own bound is for the whole process and warns before it refuses; ours below is the run's and always refuses.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("PNG", "JPEG")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I and I;16) to 8 bits; Pillow's own conversion would clip at 255."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent pixels blended with white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """The centred square, scaled. Cut before scaling, so that a very long image stays cheap."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The whole image, scaled down if need be, in the centre of a black square."""
    scale = min(1.0, size / max(image.size))
    width, height = (max(1, round(extent * scale)) for extent in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas


def decode_image(
    data: bytes, *, size: int, channels: int, fit: Literal["crop", "pad"], max_pixels: int, where: str
) -> np.ndarray:
    """Decode one stored image to model input.

    Args:
        data: a PNG or JPEG file.
        size: side of the result in pixels.
        channels: 1 (grey) or 3 (RGB).
        fit: `crop` scales the short side to `size` and cuts the centre; `pad` centres on black and never scales up.
        max_pixels: larger images are refused before their pixels are decoded.
        where: shard and key, for the message.

    Returns:
        uint8 [size, size, channels].

    Raises:
        DataError: not a PNG or JPEG, damaged, or too large; names `where`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                message = f"{where}: image of {width} x {height} pixels, more than {max_pixels}"
                raise DataError(message, "raise images.max_pixels if the image is genuine, or drop the sample")
            opened.load()
            image = _on_white(_eight_bits(opened)).convert("L" if channels == 1 else "RGB")
    except UNREADABLE as fault:
        raise DataError(f"{where}: unreadable image ({fault})", "restore the image, as PNG or JPEG, or drop the sample") from None
    image = _cropped(image, size) if fit == "crop" else _padded(image, size)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG file of uint8 pixels [H, W], [H, W, 1] or [H, W, 3]."""
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    return out.getvalue()
