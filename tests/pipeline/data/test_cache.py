"""The folder of ranges: what is in it is used, it stays small, several processes share it, and a shard can be purged."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from pipeline.data.cache import RangeCache
from pipeline.errors import StorageError

MARK = bytes(32)


def content(uri: str, start: int, stop: int) -> bytes:
    return (f"{uri}-{start}|".encode() * (stop - start))[: stop - start]


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def refuse() -> bytes:
    raise AssertionError("must come from the folder")


def test_a_range_is_read_once_and_another_content_has_another_name(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path / "kept"), 1 << 20)
    assert cache.get("s3://a", 5, 25, MARK, lambda: b"x" * 20) == b"x" * 20
    assert RangeCache(str(tmp_path / "kept"), 1 << 20).get("s3://a", 5, 25, MARK, refuse) == b"x" * 20
    for other in (("s3://b", 5, 25, MARK), ("s3://a", 6, 26, MARK), ("s3://a", 5, 25, bytes([1]) * 32)):
        assert cache.get(*other, lambda: b"y" * 20) == b"y" * 20
    cache.drop("s3://a", 5, 25)
    assert cache.get("s3://a", 5, 25, MARK, lambda: b"z" * 20) == b"z" * 20
    assert cache.get("s3://b", 5, 25, MARK, refuse) == b"y" * 20
    for folder in (tmp_path / "kept", *(path for path in (tmp_path / "kept").iterdir())):
        assert folder.stat().st_mode & 0o077 == 0, "images are for the owner only"


def test_a_file_cut_short_is_read_again(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 1 << 20)
    cache.get("s3://a", 0, 20, MARK, lambda: b"x" * 20)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(b"x" * 7)
    assert cache.get("s3://a", 0, 20, MARK, lambda: b"x" * 20) == b"x" * 20
    assert file.read_bytes() == b"x" * 20


def test_the_folder_stays_below_its_limit_and_keeps_what_is_used(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 10_000)
    for number in range(60):
        cache.get("s3://a", number * 1000, number * 1000 + 1000, MARK, lambda: bytes(1000))
        cache.get("s3://a", 0, 1000, MARK, refuse)
        assert size(tmp_path) <= 10_000
        for age, file in enumerate(sorted(tmp_path.rglob("*-*-*"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(file, ns=(age, age))  # clocks of file systems are coarse
    assert size(tmp_path) >= 7000
    cache.get("s3://big", 0, 9000, MARK, lambda: bytes(9000))
    cache.get("s3://a", 0, 1000, MARK, refuse)


def test_purging_removes_every_range_of_a_shard_and_of_no_other(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 1 << 20)
    for uri in ("s3://a", "s3://b"):
        for number in range(5):
            cache.get(uri, number, number + 10, MARK, lambda: b"secret image")
    assert cache.purge(["s3://a", "s3://never"]) == 5
    assert cache.purge(["s3://a"]) == 0
    assert sum(file.is_file() for file in tmp_path.rglob("*")) == 5
    cache.get("s3://b", 3, 13, MARK, lambda: b"secret image")
    assert cache.purge(["s3://b"]) == 5
    assert size(tmp_path) == 0
    cache.get("s3://b", 3, 13, MARK, lambda: b"secret image")
    (folder,) = tmp_path.iterdir()
    folder.rename(f"{folder}.half-purged")
    assert cache.purge(["s3://b"]) == 1, "what a killed purge left goes too"
    assert not list(tmp_path.iterdir())


def _use(folder: str, turn: int) -> int:
    cache, wrong = RangeCache(folder, 40_000), 0
    for number in range(150):
        place = (number * (turn + 3)) % 40 * 1000
        expected = content("s3://a", place, place + 1000)
        wrong += cache.get("s3://a", place, place + 1000, MARK, lambda expected=expected: expected) != expected
        if number % 50 == turn:
            cache.purge(["s3://a"])
    return wrong


def test_processes_fill_evict_and_purge_one_folder_together(tmp_path: Path) -> None:
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_use, [str(tmp_path)] * 3, range(3))) == [0, 0, 0]
    assert size(tmp_path) <= 40_000
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_cannot_be_written_is_named_or_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/kept"):
        RangeCache(str(tmp_path / "file" / "kept"), 1000)
    cache = RangeCache(str(tmp_path / "kept"), 1 << 20)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert cache.get("s3://a", 0, 5, MARK, lambda: b"abcde") == b"abcde"
    assert [record.getMessage() for record in caplog.records] == [
        "reading.cache_folder: ranges are not kept: No space left on device"
    ]
