"""Batches made ahead: remote shards give those of the order whatever the delays, within bounds of memory and requests."""

from __future__ import annotations

import collections
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.config import ImagesConfig, StreamConfig
from pipeline.data.images import decode_into
from pipeline.data.stream import Stream
from tests.pipeline.data.bucket import Bucket, check, make_reader
from tests.pipeline.data.test_stream import NO_CACHE, make_samples, make_stream, picture


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()
    monkeypatch.setattr(storage, "read_range", made.read_range, raising=False)
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 120),
    shards=st.integers(1, 9),
    batch_size=st.integers(1, 130),
    order=st.builds(StreamConfig, lanes=st.integers(1, 9), block_bytes=st.integers(1, 9000), window=st.integers(1, 4)),
    in_flight=st.integers(1, 5),
    threads=st.integers(1, 3),
    ahead=st.integers(1, 4),
    images=st.sampled_from([NO_CACHE, ImagesConfig(), ImagesConfig(cache_bytes=64 * 20)]),
    slow=st.booleans(),
)
def test_remote_batches_are_the_local_ones_within_the_bounds_of_memory_and_requests(
    bucket: Bucket,
    count: int,
    shards: int,
    batch_size: int,
    order: StreamConfig,
    in_flight: int,
    threads: int,
    ahead: int,
    images: ImagesConfig,
    slow: bool,
) -> None:
    rng = random.Random(1)
    bucket.delay = (lambda: rng.random() / 500) if slow else (lambda: 0.0)
    bucket.most_running = bucket.most_held = 0
    reader = make_reader(bucket.put(count, shards), images, in_flight=in_flight, threads=threads, ahead=ahead)
    stream = Stream(reader, batch_size=batch_size, seed=1, salt="", order=order)
    check(stream, 3 * stream.steps_per_pass)
    largest = max(np.diff(stream.order._edges)) * max(len(picture(n)) for n in range(count))
    assert bucket.most_running <= in_flight
    assert bucket.most_held <= (stream.order.lanes * order.window + in_flight) * largest
    stream.close()


def test_each_block_is_asked_for_once_a_pass_and_what_is_kept_never_again(bucket: Bucket) -> None:
    samples = bucket.put(200, 4)
    stream = Stream(make_reader(samples), batch_size=16, seed=1, salt="", order=StreamConfig(lanes=4, block_bytes=1000))
    check(stream, stream.steps_per_pass)
    stream.close()
    asked = collections.Counter(byte for uri, start, stop in bucket.requests for byte in ((uri, n) for n in range(start, stop)))
    later = Stream(make_reader(samples, ImagesConfig()), batch_size=16, seed=1, salt="")
    check(later, later.steps_per_pass)
    bucket.requests.clear()
    check(later, 3 * later.steps_per_pass)
    later.close()
    assert not bucket.requests
    assert set(asked) == {(uri, n) for uri, content in bucket.objects.items() for n in range(len(content))}
    looked_ahead = sum(asked.values()) - len(asked)
    assert looked_ahead < (4 * 2 + 16) * 1100, "no more than what is held for the next pass"


def test_a_pass_begun_in_the_middle_asks_for_what_is_left_and_goes_on(bucket: Bucket) -> None:
    samples = bucket.put(3000, 2)
    reader = make_reader(samples, in_flight=1, ahead=1)
    stream = Stream(reader, batch_size=100, seed=1, salt="", order=StreamConfig(lanes=4))
    for step in range(25, 70):
        batch = stream.batch(step)
        assert batch.rows.tolist() == stream.order.batch(step)[1].tolist()
        if step == 29:
            asked = sum(stop - start for _, start, stop in bucket.requests)
            assert asked < 0.35 * sum(map(len, bucket.objects.values())), "five steps of thirty, and what lies ahead"
    stream.close()


def test_what_is_given_up_does_not_write_into_later_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(out: np.ndarray, data: bytes, **rest: Any) -> None:
        time.sleep(0.002)
        decode_into(out, data, **rest)

    monkeypatch.setattr("pipeline.data.reader.decode_into", slow)
    stream = make_stream(make_samples(tmp_path, 120, 2), tmp_path, 12, images=NO_CACHE)
    for step in (0, 5, 1, 7, 2, 8, 0, 5, 1, 7, 2, 8):
        batch = stream.batch(step)
        assert batch.images[:, 7, 7, 0].tolist() == batch.rows.tolist() == stream.order.batch(step)[1].tolist()
        time.sleep(0.003)
        assert batch.images[:, 7, 7, 0].tolist() == batch.rows.tolist()
    stream.close()


def test_any_step_can_be_read_first_and_earlier_batches_stay_valid(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 20, 2)
    walked, jumped = make_stream(samples, tmp_path, 6), make_stream(samples, tmp_path, 6)
    batches = []
    for step in range(9):
        batches.append(walked.batch(step))
        for held in batches[-2:]:
            assert held.images[: len(held.rows), 0, 0, 0].tolist() == held.rows.tolist()
    for step in (7, 1, 2, 8, 7, 7):
        found = jumped.batch(step)
        assert found.rows.tolist() == batches[step].rows.tolist()
        assert found.images[:, 0, 0, 0].tolist() == found.rows.tolist()
    orders = [np.concatenate([batches[p * 4 + n].rows for n in range(4)]).tolist() for p in (0, 1)]
    assert orders[0] != orders[1], "another order each pass"
    other = make_stream(samples, tmp_path, 6, seed=4)
    assert other.batch(0).rows.tolist() != batches[0].rows.tolist()
    for stream in (walked, jumped, other):
        stream.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_split_that_fits_in_memory_is_read_once(tmp_path: Path) -> None:
    samples = make_samples(tmp_path, 50, 3)
    stream = make_stream(samples, tmp_path, 7)
    for step in range(stream.steps_per_pass):
        stream.batch(step)
    for file in tmp_path.iterdir():
        file.unlink()
    stream.reader.shards._files.close()
    for step in range(stream.steps_per_pass, 4 * stream.steps_per_pass):
        batch = stream.batch(step)
        assert batch.images[: len(batch.rows), 0, 0, 0].tolist() == batch.rows.tolist()
    stream.close()
