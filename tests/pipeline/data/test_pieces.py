"""Pieces of shards: right bytes, or a named fault; nothing in between."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.config import StreamConfig
from pipeline.data.pieces import TRIES
from pipeline.data.stream import Stream
from pipeline.errors import IntegrityError, StorageError
from tests.pipeline.data.bucket import Bucket, check, make_reader
from tests.pipeline.data.test_stream import picture


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()
    monkeypatch.setattr(storage, "read_range", made.read_range, raising=False)
    return made


@pytest.mark.parametrize("times", [1, TRIES])
def test_a_corrupt_byte_that_heals_leaves_no_trace(bucket: Bucket, times: int) -> None:
    left = collections.Counter({"s3://bucket/1.tar": times})

    def corrupt(uri: str, start: int, stop: int, data: bytes) -> bytes:
        if start <= 700 < stop and left[uri]:
            left[uri] -= 1
            return data[: 700 - start] + bytes([data[700 - start] ^ 1]) + data[701 - start :]
        return data

    bucket.fault = corrupt
    stream = Stream(make_reader(bucket.put(60, 3)), batch_size=8, seed=1, salt="", order=StreamConfig(lanes=3))
    check(stream, stream.steps_per_pass)
    assert not left["s3://bucket/1.tar"]
    stream.close()


def test_bytes_that_stay_wrong_are_named_and_nothing_is_handed_out(bucket: Bucket) -> None:
    samples = bucket.put(60, 3)
    content = bytearray(bucket.objects["s3://bucket/1.tar"])
    row = samples.rows(1)
    content[int(row.offset[4]) + 30] ^= 1
    bucket.objects["s3://bucket/1.tar"] = bytes(content)
    stream = Stream(make_reader(samples), batch_size=8, seed=1, salt="")
    named = 0
    for step in range(stream.steps_per_pass):
        if 24 in stream.order.batch(step)[1]:
            bucket.requests.clear()
            with pytest.raises(IntegrityError, match=r"s3://bucket/1\.tar: k24\.png: bytes differ"):
                stream.batch(step)
            limits = (int(row.offset[4]), int(row.offset[4] + row.size[4]))
            assert sum(request[1:] == limits for request in bucket.requests) >= TRIES
            named += 1
        else:
            stream.batch(step)
    assert named == 1
    stream.close()


def test_a_storage_fault_is_raised_once_and_the_next_try_can_succeed(bucket: Bucket) -> None:
    def refuse(uri: str, start: int, stop: int, data: bytes) -> bytes:
        raise StorageError(f"{uri}: no answer", "try later")

    samples = bucket.put(40, 2)
    bucket.fault = refuse
    reader = make_reader(samples)
    stream = Stream(reader, batch_size=8, seed=1, salt="")
    for _ in range(3):
        with pytest.raises(StorageError, match="no answer"):
            stream.batch(2)
        with pytest.raises(StorageError, match="no answer"):
            reader.fetch(np.array([3]))
    bucket.fault = lambda uri, start, stop, data: data
    check(stream, 5)
    assert reader.fetch(np.array([3]))[0, 0, 0, 0] == 3
    stream.close()


def test_far_samples_are_asked_for_apart_and_near_ones_together(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.pieces.GAP_BYTES", 200)
    samples = bucket.put(64, 1)
    size = len(picture(0))
    chosen = samples.take(np.array([0, 1, 2, 30, 31, 60]))
    reader = make_reader(chosen)
    assert reader.fetch(np.arange(6))[:, 0, 0, 0].tolist() == [0, 1, 2, 30, 31, 60]
    assert sorted(round((stop - start) / size) for _, start, stop in bucket.requests) == [1, 2, 3]
    reader.close()


def test_ranges_kept_in_a_folder_are_used_checked_and_healed(bucket: Bucket, tmp_path: Path) -> None:
    samples, kept = bucket.put(60, 3), {"cache_folder": str(tmp_path / "kept"), "cache_bytes": 1 << 20}
    for turn in range(4):
        bucket.requests.clear()
        stream = Stream(make_reader(samples, ahead=1, in_flight=2, **kept), batch_size=8, seed=1, salt="")
        check(stream, stream.steps_per_pass)
        stream.close()
        files = list((tmp_path / "kept").rglob("*-*-*"))
        if turn == 0:
            assert len(bucket.requests) >= 60
            for file in files:
                if file.name.startswith("0-"):
                    file.write_bytes(bytes(file.stat().st_size))
        if turn == 1:
            assert 3 <= len(bucket.requests) <= 10, "the damaged ones anew, and what is asked for ahead"
        if turn == 3:
            assert not bucket.requests
            assert all(file.read_bytes().strip(b"\0") for file in files)
