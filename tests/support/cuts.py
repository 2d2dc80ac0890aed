"""A small source of shards, cut for one batch, and what its streams give: the same wherever the shards lie."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ImagesConfig, ReadingConfig, StreamConfig
from pipeline.data.batch import Settings
from pipeline.data.images import encode_png
from pipeline.data.pack import PackedSource, pack
from pipeline.data.partition import partition
from pipeline.data.sources.webdataset import Config, build
from pipeline.data.stream import ImageReader, Stream, read_samples
from pipeline.records import Manifest
from tests.pipeline.data.tars import batch, write_tar

LAYOUT = ((0, 1, 2, 0, 0, 2), (1, 1), (2, 2, 0, 2), (0, 0))
"""Labels by shard: forgetting class one empties the second shard, and leaves the last two as they are."""
FORGOTTEN = ("s0/img1", "s1/img0", "s1/img1", "s2/img2")
"""Label one, and a single key."""
PIXELS = 24
CLASSES = ("zero", "one", "two")
Put = Callable[[str, bytes], Any]


def image(name: str) -> bytes:
    """A PNG of noise that is its own for each name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return encode_png(np.random.default_rng(seed).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8))


def write_tars(folder: Path, layout: tuple[tuple[int, ...], ...] = LAYOUT, unseen: int = 12) -> list[Path]:
    """Write the shards `train-<i>.tar`, keys `s<i>/img<j>`, and `unseen.tar`."""

    def members(shard: str, labels: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
        for place, label in enumerate(labels):
            yield f"{shard}/img{place}.cls", str(label).encode()
            yield f"{shard}/img{place}.png", image(f"{shard}/img{place}")

    names = [(f"train-{number}.tar", f"s{number}", labels) for number, labels in enumerate(layout)]
    for name, shard, labels in (*names, ("unseen.tar", "u", (0,) * unseen)):
        write_tar(folder / name, members(shard, labels))
    return sorted(folder.iterdir())


def upload(folder: Path, base: str, put: Put) -> None:
    """Bring the shards of a folder to another storage, by a client that is not under test."""
    for path in sorted(folder.iterdir()):
        put(f"{base}/{path.name}", path.read_bytes())


def index(tars: str, output: str) -> tuple[PackedSource, str]:
    """Index the shards below `tars` where they lie; the training shards are found by a glob."""
    source = build(Config(training=(f"{tars}/train-*.tar",), unseen=(f"{tars}/unseen.tar",), classes=CLASSES))
    packed, folder = pack(source, name="webdataset", output=output)
    assert packed is not None
    return packed, folder


@dataclasses.dataclass(frozen=True)
class CutRun:
    """A run folder as the shard stage leaves it, below an output folder."""

    output: str
    folder: str
    manifest: Manifest

    @property
    def content(self) -> dict[str, Any]:
        """What is in the splits, wherever they lie."""
        return {
            split.name: (split.keys_digest, [(s.sha256, s.bytes, s.samples, s.keys_digest) for s in split.shards])
            for split in self.manifest.splits
        }


def cut(tars: str, output: str) -> CutRun:
    """Index, and cut for the batch of `FORGOTTEN`."""
    packed, where = index(tars, output)
    folder = f"{output}/run-1"
    wanted = batch(label=["one"], keys=["s2/img2"])
    given = {"run_id": "run-1", "seed": 0, "settings": Settings(near_bits=None), "output": output}
    return CutRun(output, folder, partition(wanted, packed, source_folder=where, folder=folder, **given))


def streams(run: CutRun, split: str, reading: ReadingConfig, ranks: int = 2, **more: Any) -> list[Stream]:
    """The streams of all ranks over a split, with requests of some samples each."""
    settings: dict[str, Any] = {"batch_size": 6, "seed": 3, "salt": "salt", "order": StreamConfig(lanes=4, block_bytes=16384)}
    return [
        Stream(
            ImageReader(
                read_samples(run.folder, run.manifest, split),
                folder=run.folder,
                size=PIXELS,
                channels=3,
                images=ImagesConfig(cache_bytes=0),
                reading=reading,
            ),
            **{**settings, **more},
            rank=rank,
            world_size=ranks,
        )
        for rank in range(ranks)
    ]


def batches(
    run: CutRun, reading: ReadingConfig | None = None, *, split: str = "retain", passes: int = 2
) -> list[tuple[Any, ...]]:
    """Every bit that the ranks are given, batch after batch; each pass is complete."""
    ranks = streams(run, split, reading or ReadingConfig(threads=2))
    given: list[tuple[Any, ...]] = []
    try:
        for step in range(passes * ranks[0].steps_per_pass):
            for stream in ranks:
                part = stream.batch(step)
                stream.count(part)
                numbers = (part.labels, part.groups, part.weights, part.rows)
                given.append((part.images.tobytes(), tuple(part.keys), *(values.tobytes() for values in numbers)))
        merged = ranks[0].merged([stream.digest.hex() for stream in ranks])
        seen = sum(stream.seen for stream in ranks)
        assert ranks[0].coverage(split, passes=passes, seen=seen, digest=merged).complete
    finally:
        for stream in ranks:
            stream.close()
    return given
