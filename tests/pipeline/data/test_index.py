"""The index agrees with plain WebDataset, whatever the number of workers, and keys digests add up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.index import KeysDigest, build_index, keys_digest, read_table, write_table
from pipeline.errors import DataError, IntegrityError
from tests.pipeline.data.tars import sample, write_tar


def _shards(folder: Path, count: int) -> list[str]:
    return [
        write_tar(folder / f"s{n}.tar", [m for k in range(n + 1) for m in sample(f"s{n}/k{k}", k % 3, 10 * n + k)])
        for n in range(count)
    ]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves files to the collector
def test_plain_webdataset_reads_exactly_the_rows_of_the_index(tmp_path: Path) -> None:
    import webdataset

    uris = _shards(tmp_path, 4)
    table, refs = build_index(uris)
    read = [
        (item["__key__"], int(item["cls"]), hashlib.sha256(item["png"]).hexdigest(), item["__url__"])
        for item in webdataset.WebDataset(uris, shardshuffle=False, empty_check=False)
    ]
    rows = [(row["key"], row["label"], row["sha256"], uris[row["shard"]]) for row in table.to_pylist()]
    assert rows == read
    assert [ref.samples for ref in refs] == [1, 2, 3, 4]


def test_offsets_give_bytes_with_the_recorded_digest(tmp_path: Path) -> None:
    uris = _shards(tmp_path, 3)
    for row in build_index(uris)[0].to_pylist():
        content = Path(uris[row["shard"]]).read_bytes()
        image = content[row["offset"] : row["offset"] + row["size"]]
        assert hashlib.sha256(image).hexdigest() == row["sha256"]


def test_the_index_does_not_depend_on_workers_and_is_published_as_equal_bytes(tmp_path: Path) -> None:
    uris = _shards(tmp_path, 5)
    alone, several = build_index(uris, workers=1), build_index(uris, workers=2)
    assert alone[1] == several[1] and alone[0].equals(several[0])
    first, second = (write_table(t, str(tmp_path / f"{n}.parquet")) for n, t in enumerate((alone[0], several[0])))
    assert first.sha256 == second.sha256
    assert read_table(str(tmp_path / "0.parquet"), first).equals(alone[0])


def test_a_fault_in_a_worker_comes_back_as_itself(tmp_path: Path) -> None:
    bad = write_tar(tmp_path / "bad.tar", [("k.cls", b"1")])
    with pytest.raises(DataError, match="key 'k': no image") as caught:
        build_index([*_shards(tmp_path, 2), bad], workers=2)
    assert caught.value.cure


def test_a_key_in_two_shards_is_refused_with_both(tmp_path: Path) -> None:
    uris = [write_tar(tmp_path / f"{n}.tar", sample("k", 1)) for n in range(2)]
    with pytest.raises(DataError, match=r"1\.tar: key 'k': also in .*0\.tar"):
        build_index(uris)


def test_shards_in_memory_are_indexed(tmp_path: Path) -> None:
    content = Path(write_tar(tmp_path / "s.tar", sample("k", 1))).read_bytes()
    with fsspec.open("memory://index/s.tar", "wb") as out:
        out.write(content)
    table, _ = build_index(["memory://index/s.tar"], workers=2)
    assert table["key"].to_pylist() == ["k"]


def test_a_changed_index_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "index.parquet")
    ref = write_table(build_index(_shards(tmp_path, 1))[0], uri)
    Path(uri).write_bytes(Path(uri).read_bytes() + b"x")
    with pytest.raises(IntegrityError, match=r"index\.parquet"):
        read_table(uri, ref)


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    build_index(_shards(tmp_path, 3), progress=lambda act, done: told.append((act, done)))
    assert told == [("index", 1), ("index", 3), ("index", 6)]


@given(keys=st.lists(st.text(), max_size=20), cut=st.integers(0, 20))
def test_keys_digest_is_order_free_and_merges(keys: list[str], cut: int) -> None:
    whole = keys_digest(keys, "salt")
    assert keys_digest(reversed(keys), "salt") == whole
    merged = KeysDigest("salt")
    merged.merge(keys_digest(keys[:cut], "salt"))
    merged.merge(keys_digest(keys[cut:], "salt"))
    assert merged.hex() == whole and len(whole) == 64


@given(key=st.text(), times=st.integers(0, 5))
def test_keys_digest_counts_repeats(key: str, times: int) -> None:
    counted = KeysDigest("s")
    counted.add(key, times)
    assert counted.hex() == keys_digest([key] * times, "s")
    assert keys_digest([key, key], "s") != keys_digest([], "s")
    assert keys_digest([key], "s") != keys_digest([key], "other salt")
