"""Copies left behind: all of them are found and treated by the strictest request, against a plain model."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.copies import Copies, add_copies
from pipeline.data.rows import SCHEMA, key_hash, write_index
from pipeline.data.selection import Chosen, choose, wanted_by
from pipeline.errors import ConfigError
from pipeline.records import DeletionRequest, FileRef, RequestBatch, Selector

Policy = Literal["ignore", "include", "stop"]
STRICT: tuple[Policy, ...] = ("ignore", "include", "stop")
CLASSES = ("zero", "one")
Row = tuple[str, int, int, int | None]
"""Key, label, number of the image (equal numbers: equal bytes), perceptual hash."""


def _write(folder: Path, layout: list[list[Row]]) -> list[FileRef]:
    refs = []
    for number, rows in enumerate(layout):
        groups = [rows[:1], rows[1:]] if len(rows) > 1 else [rows]
        tables = [
            pa.Table.from_pydict(
                {
                    "key": [row[0] for row in group],
                    "key_hash": [key_hash(row[0]) for row in group],
                    "offset": [0] * len(group),
                    "size": [1] * len(group),
                    "ext": ["png"] * len(group),
                    "label": [row[1] for row in group],
                    "sha256": [hashlib.sha256(str(row[2]).encode()).digest() for row in group],
                },
                schema=SCHEMA,
            )
            for group in groups
            if group
        ]
        refs.append(write_index(f"{folder}/part-{number}.parquet", tables))
    return refs


def _hashes(layout: list[list[Row]]) -> list[np.ma.MaskedArray]:
    return [
        np.ma.MaskedArray(np.array([row[3] or 0 for row in rows], dtype=np.uint64), mask=[row[3] is None for row in rows])
        for rows in layout
    ]


def _batch(*requests: tuple[Policy, str, Sequence[str]]) -> RequestBatch:
    return RequestBatch(
        requests=tuple(
            DeletionRequest(request_id=f"r{n}", selector=Selector(kind=kind, values=tuple(values)), copies=policy)  # type: ignore[arg-type]
            for n, (policy, kind, values) in enumerate(requests)
        )
    )


def _add(folder: Path, layout: list[list[Row]], batch: RequestBatch, bits: int | None) -> tuple[Chosen, Copies]:
    parts = _write(folder, layout)
    chosen = choose(parts, wanted_by(batch, CLASSES), len(CLASSES))
    return add_copies(
        batch,
        chosen,
        classes=CLASSES,
        parts=parts,
        hashes=None if bits is None else lambda: _hashes(layout),
        bits=bits or 0,
        listing=f"{folder}/run/copies.csv",
    )


def _listed(folder: Path) -> list[dict[str, str]]:
    path = folder / "run" / "copies.csv"
    return list(csv.DictReader(io.StringIO(path.read_text(), newline=""))) if path.exists() else []


@st.composite
def layouts(draw: st.DrawFn) -> list[list[Row]]:
    count = draw(st.integers(1, 12))
    rows: list[Row] = []
    for number in range(count):
        image = draw(st.integers(0, 6))
        # Equal bytes have equal hashes; hashes lie 0 to 4 bits apart, or far.
        code = (None, 0, 1, 3, 7, 15, (1 << 64) - 1)[image]
        rows.append((f"k{number}", draw(st.integers(0, 1)), image, code))
    cut = draw(st.integers(0, count))
    return [part for part in (rows[:cut], rows[cut:]) if part]


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(STRICT),
        st.one_of(
            st.tuples(st.just("keys"), st.lists(st.integers(0, 11).map(lambda n: f"k{n}"), min_size=1, max_size=3)),
            st.tuples(st.just("label"), st.sampled_from([["one"], ["zero"]])),
            st.tuples(st.just("prefix"), st.just(["k1"])),
        ),
    ).map(lambda drawn: (drawn[0], *drawn[1])),
    min_size=1,
    max_size=3,
)


def _asked(request: tuple[Policy, str, Sequence[str]], row: Row) -> bool:
    _, kind, values = request
    if kind == "keys":
        return row[0] in values
    return CLASSES[row[1]] in values if kind == "label" else row[0].startswith(tuple(values))


@settings(max_examples=200, deadline=None)
@given(layout=layouts(), requests=REQUESTS, bits=st.one_of(st.none(), st.integers(0, 4)))
def test_copies_are_those_of_a_plain_search_and_the_strictest_request_rules(
    tmp_path_factory: pytest.TempPathFactory,
    layout: list[list[Row]],
    requests: list[tuple[Policy, str, Sequence[str]]],
    bits: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("copies")
    rows = [row for part in layout for row in part]
    forgotten = [row for row in rows if any(_asked(request, row) for request in requests)]
    expected: dict[str, tuple[str, str, int]] = {}  # kind, policy, bits
    for row in (row for row in rows if row not in forgotten):
        found = []
        for other in forgotten:
            policy = max((r[0] for r in requests if _asked(r, other)), key=STRICT.index)
            if row[2] == other[2]:
                found.append((policy, "exact", 0))
            elif bits is not None and row[3] is not None and other[3] is not None and (row[3] ^ other[3]).bit_count() <= bits:
                found.append((policy, "near", (row[3] ^ other[3]).bit_count()))
        if found:
            policy = max((one[0] for one in found), key=STRICT.index)
            exact = any(one[1] == "exact" for one in found)
            nearest = 0 if exact else min(one[2] for one in found if one[0] == policy)
            expected[row[0]] = "exact" if exact else "near", policy, nearest
    stopping = [key for key, (_, policy, _) in expected.items() if policy == "stop"]
    included = [key for key, (_, policy, _) in expected.items() if policy == "include"]
    batch = _batch(*requests)
    if stopping:
        with pytest.raises(ConfigError, match=f"^requests: {len(stopping)} retained images are copies"):
            _add(folder, layout, batch, bits)
    else:
        chosen, copies = _add(folder, layout, batch, bits)
        keys = {row[0] for row in forgotten} | set(included)
        assert chosen.keys == tuple(row[0] for row in rows if row[0] in keys)
        left = [kind for kind, policy, _ in expected.values() if policy == "ignore"]
        assert copies == Copies(exact=left.count("exact"), near=None if bits is None else left.count("near"))
    listed = _listed(folder)
    assert {line["key"]: (line["kind"], line["policy"], int(line["bits"])) for line in listed} == expected
    assert len(listed) == len(expected)
    by_key = {row[0]: row for row in rows}
    for line in listed:
        assert by_key[line["copy_of"]] in forgotten
        if line["kind"] == "exact":
            assert by_key[line["copy_of"]][2] == by_key[line["key"]][2]


LAYOUT: list[list[Row]] = [
    [("a", 0, 1, 0), ("a again", 1, 1, 0)],
    [("b", 0, 2, 0b111), ("far", 0, 3, (1 << 64) - 1), ("no hash", 1, 4, None)],
]


def test_the_batch_stops_with_counts_and_the_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _add(tmp_path, LAYOUT, _batch(("stop", "keys", ["a"])), 3)
    assert "2 retained images are copies of images to be forgotten (1 exact, 1 near)" in caught.value.message
    assert f"{tmp_path}/run/copies.csv" in caught.value.message
    assert "copies: include" in caught.value.cure and "copies: ignore" in caught.value.cure
    assert not any(key in str(caught.value) for key in ("a again", "'b'"))
    assert _listed(tmp_path) == [
        {"key": "a again", "copy_of": "a", "kind": "exact", "bits": "0", "policy": "stop"},
        {"key": "b", "copy_of": "a", "kind": "near", "bits": "3", "policy": "stop"},
    ]


def test_included_copies_are_forgotten_and_ignored_ones_counted(tmp_path: Path) -> None:
    chosen, copies = _add(tmp_path, LAYOUT, _batch(("include", "keys", ["a"])), 3)
    assert chosen.keys == ("a", "a again", "b") and copies == Copies(exact=0, near=0)
    assert chosen.labels.tolist() == [0, 1, 0] and chosen.label_counts.tolist() == [3, 2]
    chosen, copies = _add(tmp_path, LAYOUT, _batch(("ignore", "keys", ["a"])), 3)
    assert chosen.keys == ("a",) and copies == Copies(exact=1, near=1)
    assert [line["policy"] for line in _listed(tmp_path)] == ["ignore", "ignore"]


def test_near_copies_are_looked_for_only_when_asked(tmp_path: Path) -> None:
    chosen, copies = _add(tmp_path, LAYOUT, _batch(("ignore", "keys", ["a"])), None)
    assert chosen.keys == ("a",) and copies == Copies(exact=1, near=None)
    assert _add(tmp_path, LAYOUT, _batch(("ignore", "keys", ["a"])), 2)[1] == Copies(exact=1, near=0)


def test_the_strictest_of_several_requests_for_one_image_rules(tmp_path: Path) -> None:
    layout: list[list[Row]] = [[("a", 0, 1, 0), ("a again", 1, 1, 0), ("c", 1, 2, 9)]]
    one: tuple[Policy, str, list[str]] = ("ignore", "keys", ["a"])
    two: tuple[Policy, str, list[str]] = ("include", "digest", [hashlib.sha256(b"2").hexdigest()])
    three: tuple[Policy, str, list[str]] = ("stop", "label", ["zero"])
    for requests in ((one, two, three), (three, two, one)):
        with pytest.raises(ConfigError, match="1 exact, 0 near"):
            _add(tmp_path, layout, _batch(*requests), 1)
    assert _add(tmp_path, layout, _batch(two, one), 1)[1] == Copies(exact=1, near=0)


def test_an_exact_copy_that_also_looks_like_another_image_is_treated_by_the_stricter_request(tmp_path: Path) -> None:
    layout: list[list[Row]] = [[("a", 0, 1, 0), ("a again", 1, 1, 0), ("c", 1, 2, 1)]]
    with pytest.raises(ConfigError, match="1 exact, 0 near"):
        _add(tmp_path, layout, _batch(("ignore", "keys", ["a"]), ("stop", "keys", ["c"])), 1)


def test_a_copy_that_is_asked_for_itself_is_no_copy(tmp_path: Path) -> None:
    chosen, copies = _add(tmp_path, LAYOUT, _batch(("stop", "keys", ["a", "a again", "b"])), 3)
    assert len(chosen) == 3 and copies == Copies(exact=0, near=0)


def test_an_old_list_is_removed_where_there_are_no_copies(tmp_path: Path) -> None:
    _add(tmp_path, LAYOUT, _batch(("ignore", "keys", ["a"])), 3)
    assert (tmp_path / "run" / "copies.csv").exists()
    _add(tmp_path, LAYOUT, _batch(("stop", "keys", ["far"])), 3)
    assert not (tmp_path / "run" / "copies.csv").exists()


def test_images_without_a_hash_are_no_near_copies(tmp_path: Path) -> None:
    layout: list[list[Row]] = [[("a", 0, 1, None), ("b", 0, 2, None), ("c", 0, 3, 0)]]
    assert _add(tmp_path, layout, _batch(("stop", "keys", ["a"])), 3)[1] == Copies(exact=0, near=0)
    assert _add(tmp_path, layout, _batch(("stop", "keys", ["c"])), 3)[1] == Copies(exact=0, near=0)


def test_keys_with_commas_quotes_and_lines_are_listed_whole(tmp_path: Path) -> None:
    key = 'a,"b"\nc'
    _add(tmp_path, [[("x", 0, 1, 0), (key, 0, 1, 0)]], _batch(("ignore", "keys", ["x"])), 3)
    assert [line["key"] for line in _listed(tmp_path)] == [key]
