"""How fast is a shard read for the index? MB/s beside a plain read of the same bytes, and beside a read that hashes once.

    python benchmarks/shard_reading.py                       110 KB and 5 KB images, 15 rounds
    python benchmarks/shard_reading.py --kilobytes 30 --megabytes 1000

Shards are written by webdataset with images of random bytes, half to one and a half times the size given, and lie in the
page cache. `read_shard` checks every header, hashes the file and every image, and gives the index rows. `tarfile` walks
the same shard with Python's own reader and hashes every image, but not the file. Each round runs all four, in turning
order; a ratio is the median over rounds of the two speeds in one round, with a 95 % bootstrap interval. `read_shard`
uses two threads; MB per CPU second is what counts where every core has a shard of its own.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import webdataset
from harness import machine, ratio, rounds, table

from pipeline.data.shards import read_shard
from pipeline.storage import open_read

BLOCK = 8 << 20


def _plain(uri: str) -> None:
    with open_read(uri) as stream:
        while stream.read(BLOCK):
            pass


def _hashed(uri: str) -> None:
    sha = hashlib.sha256()
    with open_read(uri) as stream:
        while block := stream.read(BLOCK):
            sha.update(block)


def _by_tarfile(uri: str) -> None:
    with tarfile.open(uri) as tar:
        for info in tar:
            stream = tar.extractfile(info)
            assert stream is not None
            hashlib.sha256(stream.read()).digest()


READERS: dict[str, Callable[[str], object]] = {
    "plain": _plain,
    "read + sha256": _hashed,
    "tarfile": _by_tarfile,
    "read_shard": read_shard,
}


def _write(path: Path, kilobytes: int, megabytes: int) -> int:
    """One shard; returns its number of samples."""
    rng = random.Random(0)
    written = count = 0
    with open(path, "wb") as out, webdataset.TarWriter(out, encoder=False) as writer:
        while written < megabytes * 1_000_000:
            image = rng.randbytes(round(kilobytes * 1000 * rng.uniform(0.5, 1.5)))
            writer.write({"__key__": f"train/{count:08d}", "jpg": image, "cls": str(count % 1000).encode()})
            written, count = written + len(image), count + 1
    return count


def _timed(uri: str, reader: Callable[[str], object], frugal: list[float] | None = None) -> float:
    """MB/s of one reading; MB per CPU second go to `frugal`."""
    start, used = time.perf_counter(), time.process_time()
    reader(uri)
    size = os.path.getsize(uri) / 1e6
    if frugal is not None:
        frugal.append(size / (time.process_time() - used))
    return size / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilobytes", type=int, nargs="+", default=[110, 5], help="mean image sizes")
    parser.add_argument("--megabytes", type=int, default=250, help="bytes of images in the shard")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(f"{machine()}\n")
    rows: list[list[object]] = [
        ["images", "samples", "shard MB", *(f"{name} MB/s" for name in READERS), "read_shard MB per CPU s"]
        + [f"read_shard / {name} (95 %)" for name in ("plain", "read + sha256", "tarfile")]
    ]
    with tempfile.TemporaryDirectory() as folder:
        for kilobytes in given.kilobytes:
            path = Path(folder, "shard.tar")
            samples, frugal = _write(path, kilobytes, given.megabytes), list[float]()
            acts = {name: functools.partial(_timed, str(path), reader) for name, reader in READERS.items()}
            acts["read_shard"] = functools.partial(_timed, str(path), read_shard, frugal)
            speeds = rounds(acts, given.rounds)
            rows.append(
                [f"{kilobytes} KB", samples, round(os.path.getsize(path) / 1e6)]
                + [round(statistics.median(speeds[name])) for name in READERS]
                + [round(statistics.median(frugal))]
                + [ratio(speeds["read_shard"], speeds[name], digits=3) for name in ("plain", "read + sha256", "tarfile")]
            )
    print(table(*rows))


if __name__ == "__main__":
    main()
