"""Image bytes to arrays and back: PNG and JPEG only, bounded before decoding, every fault named.

The first bytes say what a file is, never its name. JPEG goes through simplejpeg, which lets other threads run and
refuses damaged data; what it cannot do (CMYK, odd subsampling) and PNG go through Pillow. One bicubic, antialiased
scaling serves all. Equal bytes give equal pixels, in any thread.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

from pipeline.errors import DataError

__all__ = ["UNREADABLE", "decode_image", "decode_into", "encode_png", "smaller_png"]

# Pillow's own bound is for the whole process and warns before it refuses; ours below is the run's and always refuses.
Image.MAX_IMAGE_PIXELS = None

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
LONGEST_SIDE = 65_500
"""libjpeg's own limit, in pixels."""
MOST_SCANS = 500
"""Scans of a progressive JPEG, which has about ten: each costs a pass over all pixels, and a few bytes."""
FACTORS = (4, 2)
"""Scales at which JPEG decodes faster than in full: libjpeg-turbo has vector code for 1/4 and 1/2 only."""
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, OverflowError, LookupError, TypeError, struct.error, zlib.error),
    Warning,  # Pillow's, of damaged metadata, where a caller has turned warnings into errors
)

Fit = Literal["crop", "pad"]


class _Frame:
    """What part of an image of `height` x `width` pixels fills which part of a square of `size` pixels.

    top, left, rows, columns: the part of the image · height, width: what it is scaled to.
    """

    def __init__(self, height: int, width: int, size: int, fit: Fit) -> None:
        if fit == "crop":
            self.rows = self.columns = min(height, width)
            self.height = self.width = size
        else:
            self.rows, self.columns = height, width
            scale = min(1.0, size / max(height, width))
            self.height, self.width = max(1, round(height * scale)), max(1, round(width * scale))
        self.top, self.left = (height - self.rows) // 2, (width - self.columns) // 2

    @property
    def factor(self) -> int:
        """Largest of 4, 2 and 1 by which the image can be decoded smaller and still be scaled down, not up."""
        for factor in FACTORS:
            if self.rows >= factor * self.height and self.columns >= factor * self.width:
                return factor
        return 1

    def cut(self, pixels: np.ndarray, factor: int) -> np.ndarray:
        """The part of the image, out of `pixels` that were decoded `factor` times smaller. A view.

        It lies within half a decoded pixel of where it should.
        """
        top, left = round(self.top / factor), round(self.left / factor)
        return pixels[top : top + round(self.rows / factor), left : left + round(self.columns / factor)]

    def fill(self, out: np.ndarray, part: np.ndarray) -> None:
        """Scale `part` into the middle of `out` [size, size, channels]; the border turns black."""
        size, channels = out.shape[0], out.shape[2]
        top, left = (size - self.height) // 2, (size - self.width) // 2
        inner = out[top : top + self.height, left : left + self.width]
        if inner.shape != out.shape:
            out[:] = 0
        if part.shape == inner.shape:
            inner[:] = part
        elif channels == 3 and inner.flags.c_contiguous:
            _scale(part, inner)
        else:
            scaled = np.empty((self.height, self.width, 3), dtype=np.uint8)
            # Torch scales interleaved colours with vector code on the calling thread alone, but grey with its pool of
            # threads, and no faster: so grey travels as three equal colours.
            _scale(part if channels == 3 else np.repeat(part, 3, axis=2), scaled)
            inner[:] = scaled[..., :channels]


def _scale(part: np.ndarray, out: np.ndarray) -> None:
    """Bicubic and antialiased, as Pillow's, within one level. uint8 [H, W, 3] both; `out` must be contiguous."""
    # The operator under torch.nn.functional.interpolate, for its `out`, which saves an allocation and a copy; a part that
    # is not contiguous would be copied by torch's pool of threads, on top of those that decode.
    planes = torch.from_numpy(np.ascontiguousarray(part)[None].transpose(0, 3, 1, 2))
    target = torch.from_numpy(out[None].transpose(0, 3, 1, 2))
    torch.ops.aten._upsample_bicubic2d_aa.out(planes, [out.shape[0], out.shape[1]], False, out=target)


def _check_size(height: int, width: int, max_pixels: int, where: str) -> None:
    shown = f"{where}: image of {width} x {height} pixels"
    if height * width > max_pixels:
        raise DataError(f"{shown}, more than {max_pixels}", "raise images.max_pixels if the image is genuine, or drop the sample")
    if max(height, width) > LONGEST_SIDE:
        raise DataError(f"{shown}, a side longer than {LONGEST_SIDE}", "store a smaller copy, or drop the sample")


def _check_scans(data: bytes | bytearray, where: str) -> None:
    codes = np.frombuffer(data, dtype=np.uint8)
    scans = int(np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == 0xDA)))
    if scans > MOST_SCANS:
        raise DataError(f"{where}: JPEG of {scans} scans, more than {MOST_SCANS}", "store it again as plain JPEG, or drop it")


def _unreadable(where: str, fault: object) -> DataError:
    return DataError(f"{where}: unreadable image ({fault})", "restore the image, as PNG or JPEG, or drop the sample")


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


def _with_pillow(data: bytes | bytearray, format: str, channels: int, max_pixels: int, where: str) -> np.ndarray:
    """uint8 [H, W, channels] of the whole image."""
    try:
        with Image.open(io.BytesIO(data), formats=(format,)) as opened:
            _check_size(opened.height, opened.width, max_pixels, where)
            opened.load()
            image = _on_white(_eight_bits(opened)).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:  # its own text would show a memory address
        raise _unreadable(where, f"damaged {format} header") from None
    except UNREADABLE as fault:
        raise _unreadable(where, fault) from None
    return np.array(image).reshape(image.height, image.width, channels)


def _jpeg_header(data: bytes | bytearray) -> tuple[int, int, str]:
    """Height, width and colour space; the latter is empty where simplejpeg cannot tell."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # damaged, or subsampling that it does not know
        return 0, 0, ""
    return height, width, space


def _with_simplejpeg(data: bytes | bytearray, height: int, width: int, factor: int, channels: int, where: str) -> np.ndarray:
    """uint8 [height / factor, width / factor, channels], rounded up."""
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", **least)
    except ValueError as fault:
        raise _unreadable(where, fault) from None


def decode_into(out: np.ndarray, data: bytes | bytearray, *, fit: Fit, max_pixels: int, where: str) -> None:
    """Decode one stored image into a slice of a batch.

    Args:
        out: uint8 [size, size, channels], channels 1 (grey) or 3 (RGB); fastest if contiguous. Undefined after an error.
        data: a PNG or JPEG file.
        fit: `crop` scales the centred square to `size`; `pad` centres on black and never scales up.
        max_pixels: larger images are refused before their pixels are decoded.
        where: shard and key, for the message.

    Raises:
        DataError: not a PNG or JPEG, damaged, or too large; names `where`.
    """
    size, _, channels = out.shape
    if data[:8] == PNG_START:
        format = "PNG"
    elif data[:3] == JPEG_START:
        _check_scans(data, where)
        format, (height, width, space) = "JPEG", _jpeg_header(data)
        if space in ("YCbCr", "RGB", "Gray"):
            _check_size(height, width, max_pixels, where)
            frame = _Frame(height, width, size, fit)
            pixels = _with_simplejpeg(data, height, width, frame.factor, channels, where)
            frame.fill(out, frame.cut(pixels, frame.factor))
            return
    else:
        raise _unreadable(where, "neither PNG nor JPEG by its first bytes")
    pixels = _with_pillow(data, format, channels, max_pixels, where)
    frame = _Frame(pixels.shape[0], pixels.shape[1], size, fit)
    frame.fill(out, frame.cut(pixels, 1))


def decode_image(data: bytes | bytearray, *, size: int, channels: int, fit: Fit, max_pixels: int, where: str) -> np.ndarray:
    """Decode one stored image to model input: a new uint8 [size, size, channels]; for the rest see `decode_into`."""
    out = np.empty((size, size, channels), dtype=np.uint8)
    decode_into(out, data, fit=fit, max_pixels=max_pixels, where=where)
    return out


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG file of uint8 pixels [H, W], [H, W, 1] or [H, W, 3]."""
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    return out.getvalue()


def smaller_png(data: bytes, *, side: int, max_pixels: int, where: str) -> bytes:
    """A PNG in colour whose shorter side is `side` pixels, transparent parts on white; a PNG that is no larger as it is.

    Raises:
        DataError: not a PNG, damaged, or of more than `max_pixels`; names `where`.
    """
    pixels = _with_pillow(data, "PNG", 3, max_pixels, where)
    height, width = pixels.shape[:2]
    if min(height, width) <= side:
        return data
    scale = side / min(height, width)
    scaled = np.empty((max(1, round(height * scale)), max(1, round(width * scale)), 3), dtype=np.uint8)
    _scale(pixels, scaled)
    return encode_png(scaled)
