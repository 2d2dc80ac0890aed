"""Decoding: near to Pillow's pixels for every kind of file, the same in any thread, and a named refusal instead of any
other failure."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.data.images import JPEG_START, MOST_SCANS, PNG_START, decode_image, decode_into, encode_png, smaller_png
from pipeline.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
JPEG_KINDS: list[dict[str, object]] = [
    {"subsampling": "4:2:0", "quality": 75},
    {"subsampling": "4:4:4", "quality": 95},
    {"subsampling": "4:2:2", "quality": 85, "progressive": True},
    {"subsampling": "4:2:0", "quality": 90, "progressive": True, "restart_marker_blocks": 1},
]
# Flat pictures of 8 x 8 pixels, RGB (202, 40, 90), by `cjpeg -sample`: subsampling that simplejpeg does not know.
ODD_SUBSAMPLING = {
    "3x1": "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTg"
    "yPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAIAAgDATEAAh"
    "EBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAb/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAAAgf/xAAUEQEAAAAAAAAAAAAAA"
    "AAAAAAA/9oADAMBAAIRAxEAPwCdAVEf/9k=",
    "1x4": "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTg"
    "yPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAIAAgDARQAAh"
    "EBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAb/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFQEBAQAAAAAAAAAAAAAAAAAAAgf/xAAUEQEAAAAAAAAAAAAAA"
    "AAAAAAA/9oADAMBAAIRAxEAPwCdAFRH/9k=",
}


def _file(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _picture(width: int, height: int, seed: int = 0, mode: str = "RGB", detail: int = 12) -> Image.Image:
    """Smooth colours, random every `detail` pixels, with some grain, as a photograph has."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (max(2, height // detail), max(2, width // detail), 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


def _decode(data: bytes, size: int = 8, channels: int = 1, fit: str = "crop", max_pixels: int = 10_000) -> np.ndarray:
    return decode_image(data, size=size, channels=channels, fit=fit, max_pixels=max_pixels, where="s.tar: k")  # type: ignore[arg-type]


def _reference(data: bytes, size: int, channels: int, fit: str) -> np.ndarray:
    """The same with Pillow alone: int64 [size, size, channels]."""
    image = Image.open(io.BytesIO(data))
    mode = "L" if channels == 1 else "RGB"
    image.draft(mode, image.size)  # the grey of a JPEG is its brightness plane
    image = image.convert(mode)
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    else:
        scale = min(1.0, size / max(width, height))
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
        canvas = Image.new(mode, (size, size))
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image).reshape(size, size, channels).astype(int)


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 1), (12, 12, 3)])
def test_png_of_the_right_size_comes_back_exactly(shape: tuple[int, ...]) -> None:
    pixels = NOISE.reshape(-1)[: np.prod(shape)].reshape(shape)
    channels = 3 if shape[-1] == 3 else 1
    assert (_decode(encode_png(pixels), 12, channels) == pixels.reshape(12, 12, channels)).all()


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 48),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["crop", "pad"]),
    mode=st.sampled_from(["L", "RGB"]),
    kind=st.sampled_from([None, *JPEG_KINDS]),
    seed=st.integers(0, 1000),
)
def test_any_image_is_within_two_levels_of_pillow(
    width: int, height: int, size: int, channels: int, fit: str, mode: str, kind: dict[str, object] | None, seed: int
) -> None:
    side = min(width, height) if fit == "crop" else max(width, height)
    if kind is not None and side >= 2 * size:
        size = side // 2 + 1  # a JPEG twice as large as wanted is decoded smaller: the next law
    picture = _picture(width, height, seed, mode)
    data = _file(picture) if kind is None else _file(picture, "JPEG", **kind)
    result = _decode(data, size, channels, fit)
    assert result.shape == (size, size, channels) and result.dtype == np.uint8
    assert np.abs(result - _reference(data, size, channels, fit)).max() <= 2


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(13, 62).map(lambda n: 8 * n),  # so that a quarter of the picture has whole pixels
    height=st.integers(13, 62).map(lambda n: 8 * n),
    size=st.integers(16, 120),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["crop", "pad"]),
    kind=st.sampled_from(JPEG_KINDS),
    seed=st.integers(0, 1000),
)
def test_a_large_jpeg_is_close_to_pillow_on_average(
    width: int, height: int, size: int, channels: int, fit: str, kind: dict[str, object], seed: int
) -> None:
    data = _file(_picture(width, height, seed, detail=40), "JPEG", **kind)
    difference = np.abs(_decode(data, size, channels, fit, max_pixels=250_000) - _reference(data, size, channels, fit))
    assert difference.mean() <= 2


@settings(max_examples=60, deadline=None)
@given(width=st.integers(64, 500), height=st.integers(64, 500), size=st.integers(8, 120), fit=st.sampled_from(["crop", "pad"]))
def test_the_part_of_a_large_jpeg_lies_within_two_pixels(width: int, height: int, size: int, fit: str) -> None:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    ramps = np.stack([x / 2, y / 2, np.full_like(x, 128)], axis=-1).astype(np.uint8)  # half a level a pixel
    data = _file(Image.fromarray(ramps), "JPEG", quality=95, subsampling="4:4:4")
    difference = np.abs(_decode(data, size, 3, fit, max_pixels=250_000) - _reference(data, size, 3, fit))
    assert difference.max() <= 4


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    size=st.integers(1, 24),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["crop", "pad"]),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
)
def test_any_mode_of_png_gives_the_asked_shape(width: int, height: int, size: int, channels: int, fit: str, mode: str) -> None:
    result = _decode(_file(Image.new(mode, (width, height))), size, channels, fit)
    assert result.shape == (size, size, channels) and result.dtype == np.uint8


def test_the_format_is_in_the_bytes_and_not_in_the_name() -> None:
    data = _file(_picture(8, 8), "JPEG")
    result = decode_image(data, size=8, channels=3, fit="crop", max_pixels=100, where="s.tar: k.png")
    assert (result == _reference(data, 8, 3, "crop")).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_read_in_grey_colour_and_cmyk(mode: str, progressive: bool) -> None:
    data = _file(_picture(20, 20, mode=mode), "JPEG", progressive=progressive)
    for channels in (1, 3):
        assert np.abs(_decode(data, 20, channels) - _reference(data, 20, channels, "crop")).max() <= 1


@pytest.mark.parametrize("kind", ODD_SUBSAMPLING)
def test_unusual_subsampling_is_read(kind: str) -> None:
    assert np.abs(_decode(base64.b64decode(ODD_SUBSAMPLING[kind]), 4, 3) - np.array([202, 40, 90])).max() <= 1


def test_crop_keeps_the_centre_and_pad_keeps_all() -> None:
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 255
    assert (_decode(encode_png(wide), 4) == 255).all()
    padded = _decode(encode_png(np.full((4, 4), 200, np.uint8)), 8, fit="pad")[..., 0]
    assert (padded[2:6, 2:6] == 200).all() and padded.sum() == 16 * 200
    rows = _decode(encode_png(np.full((4, 12), 200, np.uint8)), 6, fit="pad")[..., 0].sum(axis=1)
    assert rows.tolist() == [0, 0, 1200, 1200, 0, 0]


def test_transparent_pixels_are_white() -> None:
    assert (_decode(_file(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))) == 255).all()
    assert (_decode(_file(Image.new("L", (8, 8), 7), transparency=7)) == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert (_decode(_file(palette), channels=3) == [50, 60, 70]).all()
    assert (_decode(_file(palette, transparency=1), channels=3) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    image = Image.fromarray(np.full((8, 8), 0x4000, dtype=np.uint16))
    assert (_decode(_file(image)) == 0x40).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decode_into_writes_its_slice_and_nothing_else(fit: str, channels: int) -> None:
    data = _file(_picture(40, 30), "JPEG")
    batch = np.full((3, 16, 16, channels), 7, dtype=np.uint8)
    decode_into(batch[1], data, fit=fit, max_pixels=10_000, where="k")  # type: ignore[arg-type]
    assert (batch[[0, 2]] == 7).all()
    assert (batch[1] == _decode(data, 16, channels, fit)).all()
    scattered = np.full((16, 16, 5), 7, dtype=np.uint8)
    decode_into(scattered[..., 1 : 1 + channels], data, fit=fit, max_pixels=10_000, where="k")  # type: ignore[arg-type]
    assert (scattered[..., 1 : 1 + channels] == batch[1]).all()
    assert (scattered[..., 0] == 7).all() and (scattered[..., 1 + channels :] == 7).all()


def test_threads_give_equal_results() -> None:
    files = [_file(_picture(60 + n, 90 - n, n), "JPEG" if n % 3 else "PNG") for n in range(24)]
    alone = [_decode(data, 32, 1 + 2 * (n % 2)) for n, data in enumerate(files)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = pool.map(lambda n: _decode(files[n], 32, 1 + 2 * (n % 2)), range(24))
            assert all((a == b).all() for a, b in zip(alone, together, strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_decoding_starts_no_threads_of_its_own() -> None:
    source = f"""
import io, os, sys
import numpy as np, torch
from PIL import Image
from {decode_image.__module__} import decode_image
torch.set_num_threads(4)
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8))
before = len(os.listdir("/proc/self/task"))
for format in ("PNG", "JPEG"):
    for channels in (1, 3):
        out = io.BytesIO()
        image.save(out, format=format)
        for fit, size in (("crop", 300), ("pad", 300), ("pad", 800)):
            decode_image(out.getvalue(), size=size, channels=channels, fit=fit, max_pixels=1_000_000, where="")
sys.exit(len(os.listdir("/proc/self/task")) - before)
"""
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


@pytest.mark.parametrize("data", [b"", b"hello", _file(Image.new("L", (8, 8)), "GIF"), _file(Image.new("L", (8, 8)), "BMP")])
def test_what_is_not_png_or_jpeg_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"s\.tar: k: unreadable image \(neither PNG nor JPEG"):
        _decode(data)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    huge = _file(Image.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match="20000 x 20000 pixels, more than 1000000"):
        _decode(huge, max_pixels=1_000_000)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_that_claims_to_be_huge_is_refused_by_its_header(mode: str) -> None:
    data = bytearray(_file(Image.new(mode, (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(DataError, match="60000 x 60000 pixels, more than 10000"):
        _decode(bytes(data))


def test_a_very_long_image_stays_cheap_and_a_longer_one_is_refused() -> None:
    for fit in ("crop", "pad"):
        assert _decode(_file(Image.new("L", (60_000, 1))), 64, fit=fit, max_pixels=1_000_000).shape == (64, 64, 1)
    with pytest.raises(DataError, match="100000 x 1 pixels, a side longer than 65500"):
        _decode(_file(Image.new("L", (100_000, 1))), 64, max_pixels=1_000_000)


def test_compressed_metadata_that_explodes_is_refused() -> None:
    text, international = PngInfo(), PngInfo()
    text.add_text("k", "\0" * 5_000_000, zip=True)
    international.add_itxt("k", "\0" * 5_000_000, zip=True)
    bombs = [{"pnginfo": text}, {"pnginfo": international}, {"icc_profile": bytes(5_000_000)}]
    for data in (_file(Image.new("L", (8, 8)), **bomb) for bomb in bombs):  # type: ignore[arg-type]
        assert len(data) < 10_000
        with pytest.raises(DataError, match="unreadable image"):
            _decode(data)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_progressive_jpeg_of_endless_scans_is_refused(mode: str) -> None:
    data = _file(_picture(16, 16, mode=mode), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * MOST_SCANS + data[-2:]
    with pytest.raises(DataError, match=f"scans, more than {MOST_SCANS}"):
        _decode(bomb, 16)


WHOLE = {
    "jpeg": _file(_picture(24, 20), "JPEG"),
    "grey": _file(_picture(24, 20, mode="L"), "JPEG"),
    "progressive": _file(_picture(24, 20), "JPEG", progressive=True),
    "cmyk": _file(_picture(24, 20, mode="CMYK"), "JPEG"),
    "odd subsampling": base64.b64decode(ODD_SUBSAMPLING["3x1"]),
    "png": _file(_picture(24, 20)),
    "palette": _file(_picture(24, 20).quantize(16), transparency=3),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_truncation_at_any_byte_is_refused_or_loses_nothing(kind: str) -> None:
    whole, refused = _decode(WHOLE[kind], 16, 3), 0
    for length in range(len(WHOLE[kind])):
        try:
            assert (_decode(WHOLE[kind][:length], 16, 3) == whole).all()
        except DataError:
            refused += 1
    assert refused >= len(WHOLE[kind]) - 24  # what may be missing is a checksum and the end mark


def test_damage_inside_a_jpeg_is_refused_where_pillow_would_make_it_up() -> None:
    data = WHOLE["jpeg"]
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    damaged = data[:middle] + data[-2:] + data[middle:]
    assert Image.open(io.BytesIO(damaged)).convert("RGB").size == (24, 20)
    with pytest.raises(DataError, match="unreadable image"):
        _decode(damaged)


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([b"", JPEG_START, PNG_START, WHOLE["jpeg"][:200], WHOLE["png"][:45]]), rest=st.binary())
def test_random_bytes_are_refused(start: bytes, rest: bytes) -> None:
    with pytest.raises(DataError, match=r"s\.tar: k: "):
        _decode(start + rest)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 600),
)
def test_damage_is_a_data_error_or_still_an_image(kind: str, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE[kind])
    for place, value in flips:
        data[place % len(data)] = value
    try:
        assert _decode(bytes(data[: max(1, len(data) - cut)])).shape == (8, 8, 1)
    except DataError as fault:
        assert "s.tar: k" in fault.message and "object at" not in fault.message and fault.cure


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_smaller_png_is_close_to_pillows_and_a_small_one_stays(mode: str) -> None:
    data = _file(_picture(90, 60, mode=mode))
    found = np.asarray(Image.open(io.BytesIO(smaller_png(data, side=20, max_pixels=10_000, where="x"))))
    assert found.shape == (20, 30, 3)
    white = Image.alpha_composite(Image.new("RGBA", (90, 60), "white"), Image.open(io.BytesIO(data)).convert("RGBA"))
    expected = np.asarray(white.convert("RGB").resize((30, 20), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2
    assert smaller_png(data, side=60, max_pixels=10_000, where="x") == data


def test_a_smaller_png_of_something_else_is_refused() -> None:
    with pytest.raises(DataError, match="x: "):
        smaller_png(_file(_picture(90, 60), "JPEG"), side=20, max_pixels=10_000, where="x")
    with pytest.raises(DataError, match="more than 100"):
        smaller_png(_file(_picture(90, 60)), side=20, max_pixels=100, where="x")
