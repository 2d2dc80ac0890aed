"""What a rank asks of the storage does not grow with the number of ranks: counted at 8, 64 and 512, nothing is timed."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import time
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.config import ImagesConfig, ReadingConfig, StreamConfig
from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, Stream
from pipeline.decode import canonical, decode
from pipeline.records import Manifest
from pipeline.storage import publish_bytes, read_bytes
from tests.support.cuts import PIXELS, CutRun, cut, write_tars

WORLDS = (8, 64, 512)
STEPS = 3
LAYOUT = tuple((0, 1, *([2] * 62)) for _ in range(16))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> CutRun:
    """About a thousand images in sixteen shards, cut on disk and brought into a store whose requests can be counted."""
    folder, base = tmp_path_factory.mktemp("scale"), "memory://scale-out"
    (folder / "tars").mkdir()
    write_tars(folder / "tars", LAYOUT)
    made = cut(str(folder / "tars"), str(folder / "out"))
    for path in (folder / "out").rglob("*"):
        if path.is_file():
            MemoryFileSystem().pipe_file(f"{base}/{path.relative_to(folder / 'out')}", path.read_bytes())
    publish_bytes(f"{base}/run-1/manifest.json", canonical(made.manifest))
    return dataclasses.replace(made, output=base, folder=f"{base}/run-1")


def asked(run: CutRun, rank: int, world: int, monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """Requests by kind, and bytes of metadata and of images, of one rank from its start through some batches."""
    count: collections.Counter[str] = collections.Counter()

    def counted(name: str) -> Any:
        real = getattr(MemoryFileSystem, name)

        def method(self: MemoryFileSystem, path: str, *arguments: Any, **named: Any) -> Any:
            count["requests"] += 1
            found = real(self, path, *arguments, **named)
            if name == "cat_file":
                count["image bytes" if str(path).endswith(".tar") else "metadata bytes"] += len(found)
            else:
                count["metadata requests"] += 1
            return found

        return method

    with monkeypatch.context() as patched:
        for name in ("cat_file", "_open", "info", "ls", "find", "exists"):
            patched.setattr(MemoryFileSystem, name, counted(name))
        manifest = decode(Manifest, json.loads(read_bytes(f"{run.folder}/manifest.json")), where="manifest")
        reader = ImageReader(
            read_samples(run.folder, manifest, "retain"),
            folder=run.folder,
            size=PIXELS,
            channels=3,
            images=ImagesConfig(cache_bytes=0),
            reading=ReadingConfig(threads=1),
        )
        order = StreamConfig(lanes=512, block_bytes=16384)
        stream = Stream(reader, batch_size=512, seed=3, salt="salt", order=order, rank=rank, world_size=world)
        try:
            for step in range(STEPS):
                stream.count(stream.batch(step))
            _settled(reader, count)
        finally:
            stream.close()
            reader.close()
    return count


def _settled(reader: ImageReader, count: collections.Counter[str]) -> None:
    """Wait until what is read ahead has come: how much of it has when the last batch is there says how busy the machine is."""
    quiet, before = 0, collections.Counter(count)
    while quiet < 5:
        time.sleep(0.05)
        fetched = all(piece.waiting is None for piece in tuple(reader.shards._open))
        quiet, before = quiet + 1 if fetched and count == before else 0, collections.Counter(count)


def test_requests_and_metadata_of_a_rank_stay_flat_and_its_images_become_fewer(
    run: CutRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: dict[int, collections.Counter[str]] = {}
    for world in WORLDS:
        most[world] = collections.Counter()
        for rank in sorted({0, 1, world // 2, world - 1}):
            most[world] |= asked(run, rank, world, monkeypatch)  # the larger of each count
    table = {world: dict(counts) for world, counts in most.items()}
    assert most[8]["requests"] > 0, table
    for smaller, larger in itertools.pairwise(WORLDS):
        for name in ("requests", "metadata requests", "metadata bytes"):
            assert most[larger][name] <= most[smaller][name], table
        assert most[larger]["image bytes"] <= 0.5 * most[smaller]["image bytes"], table


def test_the_layout_is_what_the_counts_are_about(run: CutRun) -> None:
    assert run.manifest.split("retain").samples >= 900
    assert len(run.manifest.split("original").shards) == 16
