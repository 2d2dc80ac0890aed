"""Samples of a split, against a plain list of them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import samples as module
from pipeline.data.partition import Settings, partition
from pipeline.data.rows import RUN_SCHEMA, key_hash, open_index, write_index
from pipeline.data.samples import Samples, Segment, read_samples
from pipeline.errors import IntegrityError, StorageError
from tests.pipeline.data.tars import batch, packed

Row = dict[str, Any]


def _rows(sizes: list[int]) -> list[list[Row]]:
    return [
        [
            {
                "key": f"s{shard}/k{row}",
                "key_hash": key_hash(f"s{shard}/k{row}"),
                "offset": 1000 * row + shard,
                "size": 10 + row,
                "ext": "jpg" if row % 2 else "png",
                "label": (shard + row) % 5,
                "sha256": hashlib.sha256(f"{shard}{row}".encode()).digest(),
                "group": row % 3 - 1,
            }
            for row in range(size)
        ]
        for shard, size in enumerate(sizes)
    ]


def _samples(folder: Path, sizes: list[int]) -> tuple[Samples, list[list[Row]]]:
    rows = _rows(sizes)
    ref = write_index(f"{folder}/i.parquet", [pa.Table.from_pylist(r, schema=RUN_SCHEMA) for r in rows], schema=RUN_SCHEMA)
    segments = [Segment(f"{n}.tar", len(r), 100 * n, ref.uri, ref.sha256, n) for n, r in enumerate(rows)]
    return Samples(segments, split="retain"), rows


def _same(found: Samples, rows: list[Row]) -> None:
    """All that is asked of samples, equal to the model."""
    assert len(found) == len(rows) == sum(segment.samples for segment in found.segments)
    assert found.keys == [row["key"] for row in rows]
    assert found.labels.tolist() == [row["label"] for row in rows] and found.labels.dtype == np.int64
    assert found.groups.tolist() == [row["group"] for row in rows] and found.groups.dtype == np.int64
    for position, row in enumerate(rows):
        segment, place = found.place(position)
        assert found.starts[segment] + place == position and 0 <= place < found.segments[segment].samples
        one = found.rows(segment, place, place + 1)
        assert (one.keys, one.ext, one.sha256) == ([row["key"]], [row["ext"]], [row["sha256"]])
        assert [getattr(one, name).tolist() for name in ("offset", "size", "label", "group")] == [
            [row[name]] for name in ("offset", "size", "label", "group")
        ]
        assert found.segments[segment].uri == f"{row['key'][1 : row['key'].index('/')]}.tar"


SIZES = st.lists(st.integers(1, 5), max_size=5)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, data=st.data())
def test_samples_and_any_choice_of_them_are_the_rows_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    found, model = _samples(tmp_path_factory.mktemp("samples"), sizes)
    rows = [row for shard in model for row in shard]
    _same(found, rows)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)
    chosen, by_number = found.take(mask), found.take(np.flatnonzero(mask))
    left = [row for row, kept in zip(rows, mask, strict=True) if kept]
    for taken in (chosen, by_number):
        _same(taken, left)
        assert taken.split == "retain"
    # A choice of a choice is a choice.
    again = np.array(data.draw(st.lists(st.booleans(), min_size=len(left), max_size=len(left))), dtype=bool)
    _same(chosen.take(again), [row for row, kept in zip(left, again, strict=True) if kept])


@given(sizes=SIZES.filter(len), data=st.data())
@settings(max_examples=30, deadline=None)
def test_rows_of_a_segment_are_a_slice(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject) -> None:
    found, model = _samples(tmp_path_factory.mktemp("slice"), sizes)
    segment = data.draw(st.integers(0, len(sizes) - 1))
    start = data.draw(st.integers(0, sizes[segment]))
    stop = data.draw(st.none() | st.integers(start, sizes[segment]))
    rows = found.rows(segment, start, stop)
    expected = model[segment][start:stop]
    assert list(rows.keys) == [row["key"] for row in expected]
    for name in ("offset", "size", "label", "group"):
        column = getattr(rows, name)
        assert column.dtype == np.int64 and column.tolist() == [row[name] for row in expected]


@given(sizes=SIZES, limit=st.integers(0, 12), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_spread_is_a_choice_in_order_and_a_function_of_the_seed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, seed: int
) -> None:
    found, model = _samples(tmp_path_factory.mktemp("spread"), sizes)
    by_key = {row["key"]: row for shard in model for row in shard}
    some = found.spread(limit, seed)
    assert len(some) == min(limit, len(found))
    positions = [list(by_key).index(key) for key in some.keys]
    assert positions == sorted(set(positions))
    _same(some, [by_key[key] for key in some.keys])
    assert found.spread(limit, seed).keys == some.keys


def test_every_sample_is_as_likely_as_any_other_in_a_spread(tmp_path: Path) -> None:
    found, _ = _samples(tmp_path, [1, 29, 3, 7])
    counts = dict.fromkeys(found.keys, 0)
    for seed in range(600):
        for key in found.spread(10, seed).keys:
            counts[key] += 1
    # 600 draws of 10 of 40: each 150 times, within five standard deviations of the binomial.
    assert all(abs(count - 150) < 5 * (600 * 0.25 * 0.75) ** 0.5 for count in counts.values())
    assert len(set(counts.values())) > 5


def test_rows_without_groups_belong_to_none(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(_rows([3])[0], schema=RUN_SCHEMA).drop_columns(["group"])
    ref = write_index(f"{tmp_path}/i.parquet", [table])
    found = Samples([Segment("0.tar", 3, 1, ref.uri, ref.sha256, 0)])
    assert found.groups.tolist() == [-1, -1, -1] and found.groups.dtype == np.int64


def test_row_groups_are_read_when_they_are_wanted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _samples(tmp_path, [2, 3, 2])
    read: list[int] = []
    kept = module.read_row_group

    def noted(uri: str, sha256: str, number: int) -> pa.Table:
        read.append(number)
        return kept(uri, sha256, number)

    monkeypatch.setattr(module, "read_row_group", noted)
    assert len(found) == 7 and found.place(4) == (1, 2) and read == []
    found.rows(1, 2, 3)
    found.rows(1)
    assert read == [1]
    assert found.take(np.array([0, 6])).keys == ["s0/k0", "s2/k1"] and read == [1, 0, 2]


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    found, model = _samples(tmp_path, [5] * 8)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda n: list(found.rows(n % 8).keys), range(64)))
    assert read == [[row["key"] for row in model[n % 8]] for n in range(64)]


def test_samples_of_a_manifest_are_checked_when_they_are_read(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2], [1, 1]])
    out = str(tmp_path / "out")
    manifest = partition(
        batch(keys=["s0/img1"]),
        source,
        source_folder=where,
        folder=f"{out}/run",
        output=out,
        run_id="run",
        seed=0,
        settings=Settings(),
    )
    forget = read_samples(f"{out}/run", manifest, "forget")
    assert (forget.keys, forget.split, forget.groups.tolist()) == (["s0/img1"], "forget", [0])
    assert forget.segments[0].uri == f"{out}/run/shards/forget-000000.tar"
    with pytest.raises(KeyError):
        read_samples(f"{out}/run", manifest, "all")
    index = Path(out) / "run" / "shards" / "index.parquet"
    content = index.read_bytes()
    open_index.cache_clear()
    index.write_bytes(content[:-1] + b"X")
    with pytest.raises(IntegrityError, match=r"shards/index\.parquet"):
        _ = read_samples(f"{out}/run", manifest, "forget").keys
    index.unlink()
    with pytest.raises(StorageError, match=r"shards/index\.parquet: not found"):
        _ = read_samples(f"{out}/run", manifest, "forget").keys
