"""Index rows: equal tables give equal bytes, row groups come back as written, and no changed byte goes unnoticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.rows import (
    RUN_SCHEMA,
    SCHEMA,
    IndexFile,
    KeysDigest,
    key_hash,
    keys_digest,
    open_index,
    read_columns,
    read_row_group,
    write_index,
)
from pipeline.errors import IntegrityError, StorageError

KEYS = st.text(st.characters(codec="utf-8"), max_size=12)


def _table(keys: list[str], seed: int = 0) -> pa.Table:
    rows = [
        {
            "key": key,
            "key_hash": key_hash(key),
            "offset": 1536 * place,
            "size": seed + place,
            "ext": "png" if place % 2 else "jpg",
            "label": (place * 7 + seed) % 1000,
            "sha256": hashlib.sha256(f"{seed}{key}".encode()).digest(),
        }
        for place, key in enumerate(keys)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(keys=st.lists(KEYS, max_size=20), cut=st.integers(0, 20))
def test_keys_digest_is_order_free_and_merges(keys: list[str], cut: int) -> None:
    whole = keys_digest(keys)
    assert keys_digest(reversed(keys)) == whole and len(whole) == 64
    merged = KeysDigest()
    merged.merge(keys_digest(keys[:cut]))
    merged.merge(keys_digest(keys[cut:]))
    assert merged.hex() == whole


@given(key=KEYS, other=KEYS, times=st.integers(0, 5))
def test_keys_digest_counts_repeats_and_tells_keys_apart(key: str, other: str, times: int) -> None:
    counted, merged = KeysDigest("s"), KeysDigest()
    counted.add(key, times)
    one = KeysDigest("s")
    one.add(key)
    merged.merge(one.hex(), times)
    assert merged.hex() == counted.hex()
    assert keys_digest([key, key]) not in (keys_digest([]), keys_digest([key]))
    assert (keys_digest([key]) == keys_digest([other])) == (key == other)
    assert one.hex() != keys_digest([key])


def test_a_key_hash_is_the_beginning_of_its_sha256() -> None:
    assert key_hash("train/17") == int(hashlib.sha256(b"train/17").hexdigest()[:16], 16)


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(st.lists(KEYS, min_size=1, max_size=6), max_size=5), meta=st.binary(max_size=40))
def test_row_groups_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, groups: list[list[str]], meta: bytes) -> None:
    folder = tmp_path_factory.mktemp("rows")
    tables = [_table(keys, number) for number, keys in enumerate(groups)]
    ref = write_index(f"{folder}/a.parquet", tables, meta=meta)
    assert write_index(f"{folder}/b.parquet", iter(tables), meta=meta).sha256 == ref.sha256
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    assert hashlib.sha256((folder / "a.parquet").read_bytes()).hexdigest() == ref.sha256
    file = open_index(ref.uri, ref.sha256)
    assert (file.counts, file.meta) == ([len(keys) for keys in groups], meta)
    for number, table in enumerate(tables):
        assert read_row_group(ref.uri, ref.sha256, number).equals(table)
        assert file.row_group(number, ["label"]).equals(table.select(["label"]))
    found, counts = read_columns(ref.uri, ref.sha256, ["key_hash", "label"])
    assert counts == file.counts
    assert found.equals(pa.concat_tables([SCHEMA.empty_table(), *tables]).select(["key_hash", "label"]))


def test_other_rows_or_other_metadata_give_other_bytes(tmp_path: Path) -> None:
    tables = [_table(["a", "b"]), _table(["c"])]
    refs = [
        write_index(f"{tmp_path}/0.parquet", tables),
        write_index(f"{tmp_path}/1.parquet", tables[::-1]),
        write_index(f"{tmp_path}/2.parquet", [pa.concat_tables(tables)]),
        write_index(f"{tmp_path}/3.parquet", tables, meta=b"x"),
    ]
    assert len({ref.sha256 for ref in refs}) == 4


def test_a_shard_larger_than_the_usual_row_group_stays_one_row_group(tmp_path: Path) -> None:
    rows = 1 << 21
    table = _table(["k"]).take(pa.array([0] * rows))
    ref = write_index(f"{tmp_path}/a.parquet", [table])
    assert IndexFile(ref.uri, ref.sha256).counts == [rows]


def test_a_runs_rows_carry_their_group(tmp_path: Path) -> None:
    table = _table(["a", "b"]).append_column("group", pa.array([0, -1], pa.int32()))
    ref = write_index(f"{tmp_path}/a.parquet", [table], schema=RUN_SCHEMA)
    assert read_row_group(ref.uri, ref.sha256, 0).schema.equals(RUN_SCHEMA)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    path = tmp_path_factory.mktemp("written") / "a.parquet"
    ref = write_index(str(path), [_table(["a", "b", "c"]), _table(["d"])], meta=b"{}")
    return path.read_bytes(), ref.sha256


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, written: tuple[bytes, str], data: st.DataObject
) -> None:
    content, sha256 = written
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytes([content[place] ^ data.draw(st.integers(1, 255))])
    changed = data.draw(st.sampled_from([content[:place], content + b"x", content[:place] + flipped + content[place + 1 :]]))
    path = tmp_path_factory.mktemp("changed") / "changed.parquet"
    path.write_bytes(changed)
    for read in (
        lambda: open_index(str(path), sha256),
        lambda: read_columns(str(path), sha256, ["label"]),
        lambda: read_row_group(str(path), sha256, 1),
    ):
        with pytest.raises(IntegrityError, match=r"changed\.parquet") as caught:
            read()
        assert caught.value.cure


def test_what_is_not_parquet_is_refused_by_name_even_with_the_right_digest(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"text")
    with pytest.raises(IntegrityError, match=r"a\.parquet"):
        open_index(f"{tmp_path}/a.parquet", hashlib.sha256(b"text").hexdigest())


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    for uri in (f"{tmp_path}/none.parquet", "memory://rows/none.parquet"):
        with pytest.raises(StorageError, match=r"none\.parquet"):
            open_index(uri, "0" * 64)


def test_rows_in_other_storage_are_read_and_checked() -> None:
    uri = "memory://rows/a.parquet"
    ref = write_index(uri, [_table(["a"]), _table(["b", "c"])])
    assert read_row_group(uri, ref.sha256, 1)["key"].to_pylist() == ["b", "c"]
    assert read_columns(uri, ref.sha256, ["key"])[0]["key"].to_pylist() == ["a", "b", "c"]
    with fsspec.open(uri, "rb") as stream:
        content = stream.read()
    with fsspec.open("memory://rows/b.parquet", "wb") as out:
        out.write(content[:-9])
    with pytest.raises(IntegrityError, match=r"b\.parquet"):
        open_index("memory://rows/b.parquet", ref.sha256)
