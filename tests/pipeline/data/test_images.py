"""Decoding: shapes, fits, transparency, and a named refusal instead of any other failure."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.images import decode_image, encode_png
from pipeline.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def _file(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def _decode(data: bytes, size: int = 8, channels: int = 1, fit: str = "crop", max_pixels: int = 10_000) -> np.ndarray:
    return decode_image(data, size=size, channels=channels, fit=fit, max_pixels=max_pixels, where="s.tar: k")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 1), (12, 12, 3)])
def test_png_of_the_right_size_comes_back_exactly(shape: tuple[int, ...]) -> None:
    pixels = NOISE.reshape(-1)[: np.prod(shape)].reshape(shape)
    channels = 3 if shape[-1] == 3 else 1
    assert (_decode(encode_png(pixels), 12, channels) == pixels.reshape(12, 12, channels)).all()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.integers(1, 24),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["crop", "pad"]),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
)
def test_any_image_gives_the_asked_shape(width: int, height: int, size: int, channels: int, fit: str, mode: str) -> None:
    result = _decode(_file(Image.new(mode, (width, height))), size, channels, fit)
    assert result.shape == (size, size, channels) and result.dtype == np.uint8


def test_jpeg_is_read_in_grey_colour_and_cmyk() -> None:
    for mode in ("L", "RGB", "CMYK"):
        assert _decode(_file(Image.new(mode, (9, 9)), "JPEG"), 4, 3).shape == (4, 4, 3)


def test_crop_keeps_the_centre_and_pad_keeps_all() -> None:
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 255
    assert (_decode(encode_png(wide), 4) == 255).all()
    padded = _decode(encode_png(np.full((4, 4), 200, np.uint8)), 8, fit="pad")[..., 0]
    assert (padded[2:6, 2:6] == 200).all() and padded.sum() == 16 * 200
    assert _decode(encode_png(np.full((4, 12), 200, np.uint8)), 6, fit="pad")[..., 0].sum(axis=1).tolist() == [
        0,
        0,
        1200,
        1200,
        0,
        0,
    ]


def test_transparent_pixels_are_white() -> None:
    assert (_decode(_file(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))) == 255).all()
    assert (_decode(_file(Image.new("L", (8, 8), 7), transparency=7)) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    image = Image.fromarray(np.full((8, 8), 0x4000, dtype=np.uint16))
    assert (_decode(_file(image)) == 0x40).all()


def test_a_very_long_image_stays_cheap() -> None:
    assert _decode(_file(Image.new("L", (100_000, 1))), 64, max_pixels=1_000_000).shape == (64, 64, 1)


@pytest.mark.parametrize("data", [b"", b"hello", _file(Image.new("L", (8, 8)), "GIF"), _file(Image.new("L", (8, 8)), "BMP")])
def test_what_is_not_png_or_jpeg_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"s\.tar: k: unreadable image"):
        _decode(data)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    huge = _file(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match="20000 x 20000 pixels, more than 1000000"):
        _decode(huge, max_pixels=1_000_000)


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG"]),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 600),
)
def test_damage_is_a_data_error_or_still_an_image(format: str, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(_file(Image.fromarray(NOISE), format))
    for place, value in flips:
        data[place % len(data)] = value
    try:
        assert _decode(bytes(data[: max(1, len(data) - cut)])).shape == (8, 8, 1)
    except DataError as fault:
        assert "s.tar: k" in fault.message and fault.cure
