"""How long a batch of 10,000 keys takes to find in an index of 1.3 and of 100 million, and how much memory.

    python benchmarks/resolve.py [--keys 1300000 --shards 1300] [--rounds 15] [--folder FOLDER]

The index is generated in the product's own format, digests and all. Each round is a process of its own, as a job's
start is: it opens every index file, checks its sha256, and finds the keys. The last lines say what a plain read of the
same files costs beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.rows import SCHEMA, write_index
from pipeline.data.selection import Wanted, choose
from pipeline.records import FileRef
from pipeline.storage import hash_file

SHARDS_PER_PART = 32
WANTED = 10_000
CLASSES = 1000


def key_of(number: int) -> str:
    """A key as ImageNet's are, spread over a thousand synsets."""
    return f"n{1440764 + number % CLASSES:08d}_{number}"


def write_part(part: int, shards: int, per_shard: int, target: str) -> None:
    """One index file of consecutive shards."""
    random = np.random.default_rng(part)

    def tables():  # type: ignore[no-untyped-def]
        for shard in range(part * SHARDS_PER_PART, min(shards, (part + 1) * SHARDS_PER_PART)):
            keys = [key_of(shard * per_shard + row) for row in range(per_shard)]
            hashes = np.frombuffer(b"".join(hashlib.sha256(key.encode()).digest()[:8] for key in keys), dtype=">u8")
            sizes = random.integers(20_000, 200_000, per_shard)
            digests = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), per_shard, [None, pa.py_buffer(random.bytes(32 * per_shard))]
            )
            columns = {
                "key": keys,
                "key_hash": hashes.astype(np.uint64),
                "offset": np.cumsum(sizes + 1536),
                "size": sizes,
                "ext": ["jpg"] * per_shard,
                "label": random.integers(0, CLASSES, per_shard),
                "sha256": digests,
            }
            yield pa.table(columns).cast(SCHEMA)

    write_index(target, tables())


def generate(folder: Path, keys: int, shards: int) -> list[str]:
    """The index files, made where they are not there."""
    parts = -(-shards // SHARDS_PER_PART)
    targets = [str(folder / f"part-{keys}-{shards}-{part:05d}.parquet") for part in range(parts)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(write_part, part, shards, keys // shards, target)
            for part, target in enumerate(targets)
            if not Path(target).exists()
        ]
        for job in jobs:
            job.result()
    return targets


def one_round(files: list[FileRef], keys: int, seed: int) -> None:
    """Find the keys, and print seconds and peak memory; the body of a round's process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    random = np.random.default_rng(seed)
    wanted = Wanted(keys=tuple(key_of(int(number)) for number in random.choice(keys, WANTED, replace=False)))
    started = time.perf_counter()
    found = choose(files, wanted, CLASSES)
    seconds = time.perf_counter() - started
    assert len(found) == WANTED, len(found)
    assert set(found.keys) == set(wanted.keys)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, before // 1024)


def main() -> None:
    """Generate, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_300_000)
    parser.add_argument("--shards", type=int, default=1_300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "unlearn-bench-index")
    parser.add_argument("--seed", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    targets = generate(options.folder, options.keys, options.shards)
    listing = options.folder / f"refs-{options.keys}-{options.shards}.txt"
    if options.seed >= 0:
        refs = [line.split() for line in listing.read_text().splitlines()]
        one_round([FileRef(uri=uri, sha256=sha, bytes=int(size)) for uri, sha, size in refs], options.keys, options.seed)
        return
    started = time.perf_counter()
    refs = [hash_file(target) for target in targets]
    plain = time.perf_counter() - started
    listing.write_text("".join(f"{ref.uri} {ref.sha256} {ref.bytes}\n" for ref in refs))
    seconds, memory, start = [], [], []
    for seed in range(options.rounds):
        again = [
            sys.executable,
            __file__,
            *(f"--{n}={getattr(options, n)}" for n in ("keys", "shards", "folder")),
            f"--seed={seed}",
        ]
        answer = subprocess.run(again, capture_output=True, text=True, check=True).stdout.split()
        seconds.append(float(answer[0]))
        memory.append(int(answer[1]))
        start.append(int(answer[2]))
    size = sum(ref.bytes for ref in refs) / 1e6
    what = f"{options.keys} keys, {options.shards} shards, {len(refs)} index files, {size:.0f} MB"
    print(f"{what}; {WANTED} keys wanted; {options.rounds} rounds")
    spread = f"median; {min(seconds):.2f} to {max(seconds):.2f}"
    print(f"found in {statistics.median(seconds):.2f} s ({spread}); peak memory {max(memory)} MB, {max(start)} MB at its start")
    print(f"plain read with sha256 of the same files, one thread: {plain:.2f} s")


if __name__ == "__main__":
    main()
