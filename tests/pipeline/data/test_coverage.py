"""Real shards, real processes, real kills: whatever the ranks and shards, every key is read the promised number of times."""

from __future__ import annotations

import collections
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.data.pack import pack
from pipeline.data.rows import KeysDigest
from pipeline.data.sources.webdataset import Config, build
from pipeline.decode import canonical
from tests.pipeline.data.tars import batch, sample, write_tar
from tests.pipeline.data.test_partition import cut_one

IMAGES, BATCH, PASSES = 400, 20, 3

RANK = """
import json, sys, time
from pathlib import Path
from pipeline.config import ImagesConfig, ReadingConfig
from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, Stream
from pipeline.decode import decode
from pipeline.records import Manifest

run, log, rank, world, start, stop, pause = sys.argv[1], *sys.argv[2:3], *map(int, sys.argv[3:7]), float(sys.argv[7])
manifest = decode(Manifest, json.loads(Path(run, "manifest.json").read_text()), where="manifest")
samples = read_samples(run, manifest, "retain")
reader = ImageReader(samples, size=4, channels=1, images=ImagesConfig(cache_bytes=0), reading=ReadingConfig(threads=1))
stream = Stream(reader, batch_size={batch}, seed=7, salt="", rank=rank, world_size=world)
with open(log, "w", buffering=1) as out:
    for step in range(start, stop):
        part = stream.batch(step)
        assert len(part.keys) == int(part.weights.sum()) and len(part.images) == len(part.weights)
        print(step, len(part.images), *part.keys, file=out)
        time.sleep(pause)
stream.close()
""".replace("{batch}", str(BATCH))


def _shards(folder: Path, shards: int) -> list[str]:
    """`IMAGES` images in shards of unequal sizes, none of them empty."""
    rng = random.Random(shards)
    edges = [0, *sorted(rng.sample(range(1, IMAGES), shards - 1)), IMAGES]
    return [
        write_tar(folder / f"{n:04d}.tar", [member for row in range(low, high) for member in sample(f"k{row}", row % 3, row)])
        for n, (low, high) in enumerate(pairwise(edges))
    ]


def _prepare(root: Path, shards: int) -> tuple[str, set[str], str]:
    """A run folder with a manifest, the retained keys, and their digest by the manifest."""
    far = write_tar(root / "far.tar", [member for n in range(8) for member in sample(f"u{n}", 0, 9000 + n)])
    source = build(Config(training=tuple(_shards(root / "tars", shards)), unseen=(far,), classes=("zero", "one", "two")))
    packed, where = pack(source, name="webdataset", output=str(root / "out"))
    assert packed is not None
    gone = {f"k{row}" for row in range(0, IMAGES, 31)}
    manifest = cut_one(root, packed, where, batch(keys=sorted(gone)))
    run = root / "out" / "run"
    (run / "manifest.json").write_bytes(canonical(manifest))
    return str(run), {f"k{row}" for row in range(IMAGES)} - gone, manifest.split("retain").keys_digest


def _read(log: Path) -> dict[int, tuple[int, list[str]]]:
    """Images and keys of each step that a rank finished; a line that was cut by the kill does not count."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return {int(step): (int(size), keys) for step, size, *keys in (line.split() for line in lines if line.endswith("\n"))}


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "worlds"), [(1, (2, 1)), (7, (1, 2)), (350, (2, 3, 1))])
def test_killed_at_random_and_gone_on_at_another_world_size_every_key_is_read_as_promised(
    tmp_path: Path, shards: int, worlds: tuple[int, ...]
) -> None:
    run, retained, promised = _prepare(tmp_path, shards)
    end = PASSES * -(-len(retained) // BATCH)
    rng, step = random.Random(shards), 0
    counted: collections.Counter[str] = collections.Counter()
    for turn, world in enumerate(worlds):
        last = turn == len(worlds) - 1
        logs = [tmp_path / f"{turn}-{rank}.log" for rank in range(world)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, run, str(log), str(rank), str(world), str(step), str(end), "0" if last else "0.05"]
            )
            for rank, log in enumerate(logs)
        ]
        if not last:
            target, deadline = step + rng.randint(3, end // 3), time.monotonic() + 300
            while min(max(_read(log), default=step) for log in logs) < target:
                assert time.monotonic() < deadline, "the ranks do not get on"
                time.sleep(0.02)
            for rank in ranks:
                rank.kill()
        codes = [rank.wait(200) for rank in ranks]
        assert codes == [0] * world if last else set(codes) <= {-9}
        found = [_read(log) for log in logs]
        saved = min(max(steps, default=step - 1) for steps in found) + 1  # what all ranks have finished is in the checkpoint
        for number in range(step, saved):
            sizes = {steps[number][0] for steps in found}
            assert len(sizes) == 1, "equal shapes on all ranks"
            counted.update(key for steps in found for key in steps[number][1])
        step = saved
    assert step == end
    assert set(counted) == retained and set(counted.values()) == {PASSES}
    total, expected = KeysDigest(), KeysDigest()
    for key, times in counted.items():
        total.add(key, times)
    expected.merge(promised, PASSES)
    assert total.hex() == expected.hex()
