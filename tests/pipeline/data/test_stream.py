"""Laws of the stream: coverage, equal steps, the same global batch at every world size, tombstones, any step first."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import ImagesConfig, ReadingConfig, StreamConfig
from pipeline.data.images import encode_png
from pipeline.data.samples import Samples, Segment
from pipeline.data.stream import Batch, Feed, ImageReader, Stream, to_tensor
from pipeline.errors import ConfigError, DataError, IntegrityError

NO_CACHE = ImagesConfig(cache_bytes=0)


def make_table(contents: list[bytes], first: int, ext: str = "png") -> pa.Table:
    """Rows of images that lie one after the other, with numbers from `first` on."""
    sizes = [len(content) for content in contents]
    numbers = range(first, first + len(contents))
    return pa.table(
        {
            "key": [f"k{number}" for number in numbers],
            "offset": pa.array([sum(sizes[:n]) for n in range(len(sizes))], pa.int64()),
            "size": pa.array(sizes, pa.int64()),
            "ext": [ext] * len(contents),
            "label": pa.array([number % 3 for number in numbers], pa.int32()),
            "group": pa.array([number % 2 for number in numbers], pa.int32()),
            "sha256": pa.array([hashlib.sha256(content).digest() for content in contents], pa.binary(32)),
        }
    )


def picture(number: int) -> bytes:
    """A grey PNG of 8 x 8 pixels, all of them `number` modulo 256."""
    return encode_png(np.full((8, 8, 1), number % 256, np.uint8))


def make_samples(folder: Path, count: int, shards: int = 1) -> Samples:
    """Files of concatenated images, and their rows; image n is of value n."""
    segments, tables = [], []
    for turn, numbers in enumerate(np.array_split(np.arange(count), shards)):
        contents = [picture(int(number)) for number in numbers]
        name = f"{turn}.tar"
        (folder / name).write_bytes(b"".join(contents))
        segments.append(Segment(uri=name, samples=len(contents), bytes=sum(map(len, contents))))
        tables.append(make_table(contents, int(numbers[0]) if len(numbers) else 0))
    return Samples(segments, tables)


def make_stream(samples: Samples, folder: Path, batch_size: int, **changes: Any) -> Stream:
    images = changes.pop("images", ImagesConfig())
    reader = ImageReader(samples, folder=str(folder), size=8, channels=1, images=images, reading=ReadingConfig(threads=2))
    return Stream(reader, **{"batch_size": batch_size, "seed": 3, "salt": "salt", **changes})


class Ranks:
    """A process group whose members are called in turn: `gather` returns what all were told to say."""

    def __init__(self, streams: list[Stream]) -> None:
        self.feeds = [Feed(stream) for stream in streams]

    def gather(self, value: Any) -> list[Any]:
        return [[(stream.seen, stream.digest.hex()) for stream in feed.streams] for feed in self.feeds]

    def totals(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        return self.feeds[0].totals(self)

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()


ORDERS = st.builds(StreamConfig, lanes=st.integers(4, 9), block_bytes=st.integers(1, 2000), window=st.integers(1, 3))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 60),
    shards=st.sampled_from([1, 7, 40]),
    batch_size=st.integers(1, 17),
    world_size=st.integers(1, 4),
    start=st.integers(0, 7),
    order=ORDERS,
    images=st.sampled_from([ImagesConfig(), NO_CACHE, ImagesConfig(cache_bytes=64 * 9)]),
)
def test_every_key_is_seen_once_a_pass_and_ranks_step_alike(
    tmp_path: Path,
    count: int,
    shards: int,
    batch_size: int,
    world_size: int,
    start: int,
    order: StreamConfig,
    images: ImagesConfig,
) -> None:
    samples = make_samples(tmp_path, count, shards)
    alone = make_stream(samples, tmp_path, batch_size, order=order, images=images)
    ranks = [
        make_stream(samples, tmp_path, batch_size, order=order, images=images, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({stream.steps_per_pass for stream in ranks}) == 1
    per_pass = alone.steps_per_pass
    for step in range(start * per_pass, (start + 2) * per_pass):
        whole = alone.batch(step)
        parts = [stream.batch(step) for stream in ranks]
        assert len({part.images.shape for part in parts}) == 1, "equal shapes on all ranks"
        assert sorted(np.concatenate([part.rows for part in parts])) == sorted(whole.rows)
        for part in (whole, *parts):
            real = len(part.rows)
            assert part.weights.tolist() == [1.0] * real + [0.0] * (len(part.images) - real)
            assert part.images[:real].reshape(real, 64).tolist() == [[row % 256] * 64 for row in part.rows]
            assert not part.images[real:].any()
            assert list(part.keys) == [f"k{row}" for row in part.rows]
            assert part.labels[:real].tolist() == (part.rows % 3).tolist()
            assert part.groups.tolist() == (part.rows % 2).tolist() + [-1] * (len(part.images) - real)
        for stream, part in zip((alone, *ranks), (whole, *parts), strict=True):
            stream.count(part)
    group = Ranks(ranks)
    (seen,), (digest,) = group.totals()
    coverage = alone.coverage("forget", passes=2, seen=seen, digest=digest)
    assert coverage.complete and coverage.skipped == 0
    assert coverage.samples_seen == 2 * count == alone.seen
    assert not alone.coverage("forget", passes=3, seen=seen, digest=digest).complete
    alone.close()
    group.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(0, 5)), max_size=3),
    final=st.integers(1, 4),
    count=st.integers(5, 50),
    batch_size=st.integers(1, 9),
    order=ORDERS,
)
def test_after_kills_other_worlds_go_on_and_every_key_is_seen_as_promised(
    tmp_path: Path, kills: list[tuple[int, int, int]], final: int, count: int, batch_size: int, order: StreamConfig
) -> None:
    samples, passes, step = make_samples(tmp_path, count, 3), 3, 0
    reads = np.zeros(count, int)
    end = passes * -(-count // min(batch_size, count))
    totals: tuple[tuple[int, ...], tuple[str, ...]] = ((0,), ("0",))
    for world, length, lost in (*kills, (final, end, 0)):
        streams = [make_stream(samples, tmp_path, batch_size, order=order, rank=rank, world_size=world) for rank in range(world)]
        group = Ranks(streams)
        for rank, feed in enumerate(group.feeds):
            feed.restore(*totals, rank)
        killed = min(end, step + length)
        saved = max(step, killed - lost)
        for turn in range(step, killed):
            if turn == saved:
                totals = group.totals()
            for feed in group.feeds:
                batch = feed.batch(turn)
                feed.count(batch)
                np.add.at(reads, batch.rows, turn < saved)
        if saved == killed:
            totals = group.totals()
        coverage = streams[0].coverage("forget", passes=passes, seen=totals[0][0], digest=totals[1][0])
        assert coverage.complete == (saved == end)
        step = saved
        group.close()
    assert reads.tolist() == [passes] * count


def test_a_tombstone_counts_from_the_next_batch_on(tmp_path: Path) -> None:
    samples, dead = make_samples(tmp_path, 24, 2), set()
    streams = [make_stream(samples, tmp_path, 6, rank=rank, world_size=2, tombstones=lambda: dead) for rank in range(2)]
    group = Ranks(streams)
    for step in range(8):
        parts: list[Batch] = [stream.batch(step) for stream in streams]
        for part in parts:
            black = [row for row, image in zip(part.rows, part.images, strict=False) if not image.any() and row]
            assert black == [row for row, weight in zip(part.rows, part.weights, strict=False) if not weight and row]
            assert part.skipped == sum(hashlib.sha256(key.encode()).digest() in dead for key in part.keys)
        for stream, part in zip(streams, parts, strict=True):
            stream.count(part)
        if step == 1:  # batches 2 to 5 are decoded already
            coming = streams[0].order.batch(2)[1].tolist()[:2] + streams[0].order.batch(0)[1].tolist()[:1]
            dead.update(hashlib.sha256(f"k{row}".encode()).digest() for row in coming)
    (seen,), (digest,) = group.totals()
    coverage = streams[0].coverage("retain", passes=2, seen=seen, digest=digest)
    assert coverage.complete
    assert (coverage.samples_seen, coverage.skipped) == (48 - 5, 5), "two in both passes, one in the second"
    group.feeds[0].restore((seen,), (digest,), rank=0)
    assert streams[0].digest.hex() == digest, "skipped samples are carried over a restart"
    group.close()


@pytest.mark.parametrize("images", [ImagesConfig(), NO_CACHE])
def test_a_bad_sample_is_named_by_its_own_batch_and_the_stream_goes_on(tmp_path: Path, images: ImagesConfig) -> None:
    samples = make_samples(tmp_path, 30)
    file, row = tmp_path / "0.tar", samples.rows(0)
    content = bytearray(file.read_bytes())
    content[row.offset[13] + 40] ^= 1
    file.write_bytes(content)
    stream = make_stream(samples, tmp_path, 4, images=images)
    bad = next(step for step in range(stream.steps_per_pass) if 13 in stream.order.batch(step)[1])
    for step in range(stream.steps_per_pass):
        if step == bad:
            for _ in range(2):
                with pytest.raises(IntegrityError, match=r"0\.tar: k13\.png"):
                    stream.batch(step)
        else:
            assert stream.batch(step).images[:, 0, 0, 0].tolist() == stream.order.batch(step)[1].tolist()
    content[row.offset[13] + 40] ^= 1
    file.write_bytes(content)
    assert 13 in stream.batch(bad).rows
    stream.close()


def test_an_empty_split_and_too_many_ranks_are_refused_and_pixels_become_floats(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 1)
    with pytest.raises(DataError, match="no samples"):
        make_stream(samples.take(np.array([], dtype=np.int64)), tmp_path, 4)
    with pytest.raises(ConfigError, match=r"stream\.lanes: 2 lanes cannot be shared by 3 ranks"):
        make_stream(samples, tmp_path, 4, order=StreamConfig(lanes=2), world_size=3)
    tensor = to_tensor(np.array([[[[0], [255]]]], dtype=np.uint8))
    assert tensor.shape == (1, 1, 1, 2)
    assert tensor.flatten().tolist() == [0.0, 1.0]
