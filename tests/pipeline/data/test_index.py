"""The index agrees with plain WebDataset, reads only what changed, and comes out equal however it was built."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import index as module
from pipeline.data import listing
from pipeline.data.index import Index, build_index, map_shards, read_part
from pipeline.data.listing import list_shards
from pipeline.data.rows import keys_digest, read_row_group
from pipeline.data.shards import read_shard
from pipeline.errors import DataError, IntegrityError
from tests.pipeline.data.tars import picture, sample, write_tar

Rows = list[tuple[str, int, bytes, str]]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two shards at most, so that a handful of shards makes several."""
    monkeypatch.setattr(listing, "MOST_SHARDS", 2)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read, as they are read."""
    return _count_reads(monkeypatch)


def _count_reads(patch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def counted(uri: str, **options: Any) -> Any:
        found.append(Path(uri).stem)
        return read_shard(uri, **options)

    patch.setattr(module, "read_shard", counted)
    return found


def _shard(folder: Path, number: int, samples: int = 0) -> str:
    members = [m for k in range(samples or number % 3 + 1) for m in sample(f"s{number}/k{k}", k % 3, 10 * number + k)]
    return write_tar(folder / f"s{number}.tar", members)


def _shards(folder: Path, count: int) -> list[str]:
    return [_shard(folder, number) for number in range(count)]


def _build(folder: Path, *lists: Iterable[str], **options: Any) -> list[Index]:
    options = {"workers": 1, **options}
    return build_index([list_shards(tuple(uris)) for uris in lists], str(folder / "index"), **options)


def _rows(index: Index) -> Rows:
    files = {part.file.uri: part.file.sha256 for part in index.parts}
    return [
        (row["key"], row["label"], row["sha256"], shard.uri)
        for shard in index.shards
        for row in read_row_group(shard.index, files[shard.index], shard.row_group).to_pylist()
    ]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "index").iterdir()}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves files to the collector
def test_plain_webdataset_reads_exactly_the_rows_of_the_index(tmp_path: Path) -> None:
    import webdataset

    uris = _shards(tmp_path, 6)
    (index,) = _build(tmp_path, uris)
    read = [
        (item["__key__"], int(item["cls"]), hashlib.sha256(item["png"]).digest(), item["__url__"])
        for item in webdataset.WebDataset(uris, shardshuffle=False, empty_check=False)
    ]
    assert _rows(index) == read and len(index.parts) > 1
    assert [shard.samples for shard in index.shards] == [1, 2, 3, 1, 2, 3]


def test_offsets_give_bytes_with_the_recorded_digest(tmp_path: Path) -> None:
    (index,) = _build(tmp_path, _shards(tmp_path, 5))
    files = {part.file.uri: part.file.sha256 for part in index.parts}
    for shard in index.shards:
        content = Path(shard.uri).read_bytes()
        rows = read_row_group(shard.index, files[shard.index], shard.row_group).to_pylist()
        assert shard.sha256 == hashlib.sha256(content).hexdigest() and shard.bytes == len(content)
        assert shard.keys_digest == keys_digest(row["key"] for row in rows) and shard.samples == len(rows)
        for row in rows:
            image = content[row["offset"] : row["offset"] + row["size"]]
            assert hashlib.sha256(image).digest() == row["sha256"] and image.startswith(b"\x89PNG")


def test_the_index_does_not_depend_on_workers(tmp_path: Path) -> None:
    uris = _shards(tmp_path, 6)
    (alone,) = _build(tmp_path / "one", uris)
    (several,) = _build(tmp_path / "two", uris, workers=2)
    assert _rows(alone) == _rows(several)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


@given(count=st.integers(1, 9), tasks=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_tasks_of_an_array_share_the_work_and_leave_nothing_to_read(
    tmp_path_factory: pytest.TempPathFactory, count: int, tasks: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "SHARDS_PER_PART", 2)
        root, found = tmp_path_factory.mktemp("array"), _count_reads(patch)
        uris = _shards(root, count)
        for number in reversed(range(tasks)):
            _build(root, uris[:-1], uris[-1:], task=(number, tasks))
        assert sorted(found) == sorted(Path(uri).stem for uri in uris)
        together = _build(root, uris[:-1], uris[-1:])
        assert len(found) == count
        assert [_rows(index) for index in together] == [_rows(index) for index in _build(root / "x", uris[:-1], uris[-1:])]
        assert _bytes(root) == _bytes(root / "x")


def _touch(uri: str) -> None:
    """Later than before, whatever the clock's grain."""
    os.utime(uri, ns=(1, Path(uri).stat().st_mtime_ns + 10_000_000))


@given(
    count=st.integers(1, 7),
    changed=st.sets(st.integers(0, 6)),
    removed=st.sets(st.integers(0, 6)),
    added=st.integers(0, 3),
    shuffled=st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_a_refresh_reads_only_what_changed_and_equals_a_fresh_index(
    tmp_path_factory: pytest.TempPathFactory, count: int, changed: set[int], removed: set[int], added: int, shuffled: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "SHARDS_PER_PART", 2)
        root = tmp_path_factory.mktemp("refresh")
        uris = _shards(root, count)
        (before,) = _build(root, uris)
        for number in changed & set(range(count)):
            _touch(_shard(root, number, samples=5))
        uris = [uri for number, uri in enumerate(uris) if number not in removed]
        expected = {Path(uri).stem for uri in uris if int(Path(uri).stem[1:]) in changed}
        for number in range(10, 10 + added):
            uris.append(_shard(root, number))
            expected.add(Path(uris[-1]).stem)
        shuffled.shuffle(uris)
        found = _count_reads(patch)
        (after,) = _build(root, uris, before=before)
        assert sorted(found) == sorted(expected)
        (fresh,) = _build(root / "fresh", uris)
        assert _rows(after) == _rows(fresh)
        made = [[(part.file.sha256, part.members) for part in index.parts] for index in (after, fresh)]
        assert made[0] == made[1]


def test_shards_may_change_sides_without_being_read_again(tmp_path: Path, reads: list[str]) -> None:
    uris = _shards(tmp_path, 4)
    before = _build(tmp_path, uris[:3], uris[3:])
    reads.clear()
    whole = Index(parts=tuple(part for index in before for part in index.parts))
    training, unseen = _build(tmp_path, uris[1:], uris[:1], before=whole)
    assert reads == []
    assert [shard.uri for shard in (*training.shards, *unseen.shards)] == [*uris[1:], uris[0]]


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_point_and_a_second_run_give_the_same_index(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    uris = _shards(tmp_path, 6)
    (quiet,) = _build(tmp_path / "quiet", uris)
    write, parts = module.write_index, len(quiet.parts)
    assert parts > 2
    for stop in range(parts):
        written = 0

        def killed(*given: Any, stop: int = stop, **options: Any) -> Any:
            nonlocal written
            if written == stop and not after:
                raise KeyboardInterrupt
            answer = write(*given, **options)
            written += 1
            if written > stop:
                raise KeyboardInterrupt
            return answer

        folder = tmp_path / f"killed-{stop}"
        monkeypatch.setattr(module, "write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            _build(folder, uris)
        monkeypatch.setattr(module, "write_index", write)
        reads.clear()
        (again,) = _build(folder, uris)
        done = stop + after
        assert reads == [Path(m.listed.uri).stem for part in quiet.parts[done:] for m in part.members]
        assert _rows(again) == _rows(quiet) and _bytes(folder) == _bytes(tmp_path / "quiet")


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_part_of_an_unfinished_index_is_built_again(tmp_path: Path, damage: bytes | None) -> None:
    uris = _shards(tmp_path, 3)
    (index,) = _build(tmp_path, uris)
    whole = _bytes(tmp_path)
    path = Path(index.parts[0].file.uri)
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    assert _rows(_build(tmp_path, uris)[0]) == _rows(index)
    assert _bytes(tmp_path) == whole


def test_a_part_of_other_shards_under_this_name_is_built_again(tmp_path: Path) -> None:
    (one,), (two,) = _build(tmp_path, [_shard(tmp_path, 0)]), _build(tmp_path, [_shard(tmp_path, 1)])
    Path(one.parts[0].file.uri).write_bytes(Path(two.parts[0].file.uri).read_bytes())
    assert _rows(_build(tmp_path, [f"{tmp_path}/s0.tar"])[0]) == _rows(one)


def test_a_part_says_itself_what_it_holds(tmp_path: Path) -> None:
    (index,) = _build(tmp_path, _shards(tmp_path, 5))
    assert tuple(read_part(part.file) for part in index.parts) == index.parts
    file = index.parts[0].file
    Path(file.uri).write_bytes(Path(file.uri).read_bytes()[:-1])
    module.open_index.cache_clear()
    with pytest.raises(IntegrityError, match=r"part-.*\.parquet"):
        read_part(file)


def _twins(folder: Path, *keys: str) -> list[str]:
    return [write_tar(folder / f"{number}.tar", sample(key, 1, number)) for number, key in enumerate(keys)]


def test_a_key_in_two_shards_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2\.tar: key 'k': also in .*0\.tar") as caught:
        _build(tmp_path, _twins(tmp_path, "k", "m", "k"))
    assert caught.value.cure


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_key_in_training_and_unseen_is_refused_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "HASHES_AT_ONCE", at_once)
    uris = _twins(tmp_path, *"abcdefgh", "f")
    with pytest.raises(DataError, match=r"8\.tar: key 'f': also in .*5\.tar"):
        _build(tmp_path, uris[:8], uris[8:])
    assert len(_build(tmp_path, uris[:8])[0].shards) == 8


def test_two_keys_with_one_hash_are_no_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "key_hash", lambda key: 7)
    (index,) = _build(tmp_path, _twins(tmp_path, "a", "b"))
    assert [row[0] for row in _rows(index)] == ["a", "b"]


def test_a_fault_in_a_worker_comes_back_as_itself(tmp_path: Path) -> None:
    bad = write_tar(tmp_path / "bad.tar", [("k.cls", b"1")])
    with pytest.raises(DataError, match=r"bad\.tar: key 'k': no image") as caught:
        _build(tmp_path, [*_shards(tmp_path, 4), bad], workers=2)
    assert caught.value.cure


def _faulty(folder: Path) -> list[str]:
    """A good shard, one with a bad sample between good ones, and one that is no tar."""
    mixed = write_tar(folder / "mixed.tar", [*sample("a", 1), ("b.cls", b"1"), *sample("c", 2, 2)])
    (folder / "broken.tar").write_bytes(picture(0))
    return [write_tar(folder / "good.tar", sample("g", 0, 1)), mixed, str(folder / "broken.tar")]


def test_faults_are_set_aside_and_named_under_quarantine(tmp_path: Path, reads: list[str]) -> None:
    uris = _faulty(tmp_path)
    (index,) = _build(tmp_path, uris, on_error="quarantine")
    assert [row[0] for row in _rows(index)] == ["g", "a", "c"]
    assert [(Path(fault.uri).name, fault.key) for fault in index.faults] == [("mixed.tar", "b"), ("broken.tar", "")]
    assert all(fault.reason and fault.cure for fault in index.faults)
    assert [Path(shard.uri).name for shard in index.shards] == ["good.tar", "mixed.tar"]
    reads.clear()
    (again,) = _build(tmp_path, [*uris, _shard(tmp_path, 9)], on_error="quarantine", before=index)
    assert reads == ["s9"] and again.faults == index.faults


def test_too_many_faults_are_refused(tmp_path: Path) -> None:
    uris = _faulty(tmp_path)
    assert len(_build(tmp_path, uris, on_error="quarantine", max_quarantined=2)[0].faults) == 2
    with pytest.raises(DataError, match=r"mixed\.tar: b: no image; 2 faults in all, more than 1") as caught:
        _build(tmp_path, uris, on_error="quarantine", max_quarantined=1)
    assert "max_quarantined" in caught.value.cure


def test_under_stop_the_first_fault_is_named_and_what_was_set_aside_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    uris = _faulty(tmp_path)
    (index,) = _build(tmp_path, uris, on_error="quarantine")
    reads.clear()
    with pytest.raises(DataError, match=r"mixed\.tar: key 'b': no image"):
        _build(tmp_path, uris, on_error="stop", before=index)
    assert reads == ["mixed"]
    (good,) = _build(tmp_path, uris[:1], on_error="stop", before=index)
    assert reads == ["mixed"] and [row[0] for row in _rows(good)] == ["g"]


def _digest(number: int) -> bytes:
    return hashlib.sha256(picture(number)).digest()


def test_a_deleted_image_is_refused_anew_tolerated_where_it_lay_and_refused_once_it_was_gone(tmp_path: Path) -> None:
    path, refused = tmp_path / "s.tar", frozenset({_digest(1)})
    members = [*sample("a", 0, 1), *sample("b", 0, 2)]
    uri = write_tar(path, members)
    with pytest.raises(DataError, match=r"s\.tar: key 'a': this image was deleted on request") as caught:
        _build(tmp_path, [uri], refused=refused)
    assert caught.value.cure
    (before,) = _build(tmp_path, [uri])  # before there was a tombstone
    stamp = path.stat().st_mtime_ns
    # It may wait for its erasure where it is, even when its shard grows.
    assert _rows(_build(tmp_path, [uri], before=before, refused=refused)[0]) == _rows(before)
    write_tar(path, [*members, *sample("c", 0, 3)])
    _touch(uri)
    (grown,) = _build(tmp_path, [uri], before=before, refused=refused)
    assert [row[0] for row in _rows(grown)] == ["a", "b", "c"]
    # Neither a second time in the same shard, nor in another one, nor under another key.
    write_tar(path, [*members, *sample("c", 0, 3), *sample("again", 0, 1)])
    _touch(uri)
    with pytest.raises(DataError, match="key 'again'"):
        _build(tmp_path, [uri], before=grown, refused=refused)
    # Once it was gone it does not come back, not even as the very file that was indexed before.
    write_tar(path, sample("b", 0, 2))
    _touch(uri)
    (without,) = _build(tmp_path, [uri], before=grown, refused=refused)
    write_tar(path, members)
    os.utime(path, ns=(1, stamp))
    with pytest.raises(DataError, match="key 'a'"):
        _build(tmp_path, [uri], before=without, refused=refused)


def test_a_deleted_image_is_refused_in_another_shard(tmp_path: Path) -> None:
    (before,) = _build(tmp_path, [write_tar(tmp_path / "s.tar", sample("a", 0, 1))])
    other = write_tar(tmp_path / "t.tar", [*sample("x", 0, 1), *sample("y", 0, 1)])
    with pytest.raises(DataError, match=r"t\.tar: key 'x' and 1 more: this image was deleted"):
        _build(tmp_path, [f"{tmp_path}/s.tar", other], before=before, refused=frozenset({_digest(1)}))


def test_shards_in_memory_are_indexed(tmp_path: Path) -> None:
    content = Path(write_tar(tmp_path / "s.tar", sample("k", 1))).read_bytes()
    uris = [f"memory://indexed/{name}.tar" for name in "ab"]
    with fsspec.open(uris[0], "wb") as out:
        out.write(content)
    (index,) = build_index([list_shards(uris[:1])], "memory://indexed/index", workers=2)
    assert [row[0] for row in _rows(index)] == ["k"]
    assert index.parts[0].file.uri.startswith("memory://indexed/index/part-")


def test_progress_counts_samples(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    (index,) = _build(tmp_path, _shards(tmp_path, 6), progress=lambda act, done: told.append((act, done)))
    sizes = [sum(member.samples for member in part.members) for part in index.parts]
    assert told == [("index", sum(sizes[: n + 1])) for n in range(len(sizes))] and told[-1][1] == 12


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_come_back_in_order_and_the_first_fault_ends_them(workers: int) -> None:
    assert list(map_shards(math.sqrt, [81.0, 0.0, 16.0, 4.0], workers=workers)) == [9, 0, 4, 2]
    with pytest.raises(ValueError, match="math domain error"):
        list(map_shards(math.sqrt, [1.0, -1.0, 4.0, 9.0], workers=workers))
