"""Small tars and packed sources for the data tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import encode_png
from pipeline.data.pack import PackedSource, pack
from pipeline.data.sources.webdataset import Config, build
from pipeline.records import DeletionRequest, RequestBatch, Selector

PATTERN = np.random.default_rng(4).integers(30, 90, (4, 4))


def picture(number: int) -> bytes:
    """A 4 x 4 PNG that differs for each number below 65536; below 128 all are one pattern, brighter and brighter."""
    pixels = PATTERN + number % 128
    pixels[0, 1] += number // 128 % 2
    pixels[0, 0] = (number // 256 + number) % 256
    return encode_png(pixels.astype(np.uint8))


def drawing(seed: int, kind: str = "PNG", side: int = 64) -> bytes:
    """A smooth random picture, large enough for a perceptual hash; in another format it is a near copy."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(out, format=kind, quality=90)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> str:
    """Write members in order; returns the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def sample(key: str, label: int, number: int = 0) -> list[tuple[str, bytes]]:
    """The members of one good sample."""
    return [(f"{key}.cls", str(label).encode()), (f"{key}.png", picture(number))]


def packed(folder: Path, training: Sequence[Sequence[int]], unseen: int = 12) -> tuple[PackedSource, str, list[str]]:
    """A source of given shards, `training[i]` holding the labels of shard i; keys `s<i>/img<j>`."""
    uris, number = [], 0
    for shard, labels in enumerate(training):
        members: list[tuple[str, bytes]] = []
        for place, label in enumerate(labels):
            number += 1
            members += sample(f"s{shard}/img{place}", label, number)
        uris.append(write_tar(folder / "tars" / f"train-{shard}.tar", members))
    rest = [member for place in range(unseen) for member in sample(f"u/{place}", 0, 60000 + place)]
    far = [write_tar(folder / "tars" / "unseen.tar", rest)]
    source = build(Config(training=tuple(uris), unseen=tuple(far), classes=("zero", "one", "two")))
    found, where = pack(source, name="webdataset", output=str(folder / "out"))
    assert found is not None
    return found, where, uris


def batch(**selectors: Sequence[str]) -> RequestBatch:
    """One request a selector kind: `batch(keys=[...], label=[...])`."""
    requests = [
        DeletionRequest(request_id=f"r{number}", selector=Selector(kind=kind, values=tuple(values)))  # type: ignore[arg-type]
        for number, (kind, values) in enumerate(selectors.items())
        if values
    ]
    return RequestBatch(requests=tuple(requests))
