"""What a batch means, against a plain model of it; who is refused, and how forgotten images fall into groups."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import selection
from pipeline.data.rows import SCHEMA, IndexFile, key_hash, write_index
from pipeline.data.selection import Chosen, Wanted, choose, group_labels, means, refuse_unmatched, wanted_by
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import FileRef, Group
from tests.pipeline.data.tars import batch

CLASSES = ["ant", "bee", "1", "fly"]
Row = tuple[str, int, bytes]
Layout = list[list[list[Row]]]
"""Index files of row groups of rows."""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _write(folder: Path, layout: Layout) -> list[FileRef]:
    refs = []
    for number, groups in enumerate(layout):
        tables = []
        for rows in groups:
            columns: dict[str, list[Any]] = {
                "key": [key for key, _, _ in rows],
                "key_hash": [key_hash(key) for key, _, _ in rows],
                "offset": [0] * len(rows),
                "size": [1] * len(rows),
                "ext": ["png"] * len(rows),
                "label": [label for _, label, _ in rows],
                "sha256": [mark for _, _, mark in rows],
            }
            tables.append(pa.Table.from_pydict(columns, schema=SCHEMA))
        refs.append(write_index(f"{folder}/part-{number}.parquet", tables))
    return refs


# Few letters, so that prefixes match; among them what regular expressions, globs and encodings make something of.
KEYS = st.text(st.sampled_from("ab/.*+()[]|\\^$?{}- \n\0é漢🙂"), max_size=5)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Rows with keys of their own, cut anywhere into row groups and files; images may repeat."""
    keys = draw(st.lists(KEYS, unique=True, max_size=24))
    rows = [(key, draw(st.integers(0, 3)), _digest(str(draw(st.integers(0, 9))))) for key in keys]
    ends = sorted({*draw(st.lists(st.integers(0, len(rows)), max_size=6)), len(rows)} - {0})
    groups = [rows[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
    cuts = sorted({*draw(st.lists(st.integers(0, len(groups)), max_size=3)), len(groups)})
    return [groups[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]


WANTED = st.builds(
    Wanted,
    keys=st.lists(KEYS, unique=True, max_size=4).map(tuple),
    labels=st.lists(st.integers(0, 3), unique=True, max_size=2).map(tuple),
    prefixes=st.lists(KEYS, unique=True, max_size=3).map(tuple),
    digests=st.lists(st.integers(0, 12).map(lambda n: _digest(str(n))), unique=True, max_size=2).map(tuple),
)


def _meant(wanted: Wanted, row: Row) -> bool:
    """What the words say."""
    key, label, mark = row
    beginning = any(key.startswith(prefix) for prefix in wanted.prefixes)
    return key in wanted.keys or label in wanted.labels or mark in wanted.digests or beginning


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), wanted=WANTED)
def test_what_is_chosen_is_what_the_words_say_wherever_parts_are_cut(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, wanted: Wanted
) -> None:
    refs = _write(tmp_path_factory.mktemp("choose"), layout)
    chosen = choose(refs, wanted, len(CLASSES))
    expected, counts = [], [0] * len(CLASSES)
    for part, groups in enumerate(layout):
        file_row = 0
        for row_group, rows in enumerate(groups):
            for number, row in enumerate(rows):
                counts[row[1]] += 1
                assert means(wanted, *row) == _meant(wanted, row)
                if _meant(wanted, row):
                    expected.append((part, file_row, row_group, number, row[1], row[0], row[2]))
                file_row += 1
    columns = (chosen.part, chosen.file_row, chosen.row_group, chosen.row, chosen.labels, chosen.keys, chosen.digests)
    assert list(zip(*columns, strict=True)) == expected and len(chosen) == len(expected)
    assert list(chosen.rows) == [(row[5], row[4], row[6]) for row in expected]
    assert chosen.label_counts.tolist() == counts


def test_a_key_that_only_shares_its_hash_is_not_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = _write(tmp_path, [[[("a", 0, _digest("a")), ("b", 0, _digest("b"))]]])
    monkeypatch.setattr(selection, "key_hash", lambda key: key_hash("a"))
    assert choose(refs, Wanted(keys=("b",)), 4).keys == ()
    assert choose(refs, Wanted(keys=("a", "b")), 4).keys == ("a",)


def test_only_the_columns_that_are_compared_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = _write(tmp_path, [[[(f"k{n}", 0, _digest(str(n))) for n in range(9)], [("m", 1, _digest("m"))]]])
    asked: list[Any] = []
    for name in ("columns", "row_group"):
        kept = getattr(IndexFile, name)

        def noted(self: IndexFile, *given: Any, kept: Any = kept, name: str = name) -> Any:
            asked.append((name, *given))
            return kept(self, *given)

        monkeypatch.setattr(IndexFile, name, noted)
    full = ["key", "label", "sha256"]
    for wanted, columns, groups in (
        (Wanted(keys=("k3",)), ["label", "key_hash"], [0]),
        (Wanted(labels=(1,)), ["label"], [1]),
        (Wanted(prefixes=("x",)), ["label", "key"], []),
        (Wanted(digests=(_digest("m"),)), ["label", "sha256"], [1]),
        (Wanted(), ["label"], []),
    ):
        asked.clear()
        choose(refs, wanted, 4)
        assert asked == [("columns", columns), *(("row_group", number, full) for number in groups)]


def test_thousands_of_prefixes_are_quick(tmp_path: Path) -> None:
    refs = _write(tmp_path, [[[(f"person-{n:06d}/{n}", 0, _digest(str(n))) for n in range(0, 60_000, 20)]]])
    prefixes = tuple(f"person-{n:06d}/" for n in range(0, 60_000, 3))
    begun = time.monotonic()
    chosen = choose(refs, Wanted(prefixes=prefixes), 4)
    assert len(chosen) == 1000
    assert time.monotonic() - begun < 5


def test_parts_come_back_in_order_however_many_there_are(tmp_path: Path) -> None:
    refs = _write(tmp_path, [[[(f"{n}", n % 4, _digest(str(n)))]] for n in range(40)])
    assert choose(refs, Wanted(prefixes=("",)), 4).keys == tuple(str(n) for n in range(40))


def test_a_changed_part_is_refused(tmp_path: Path) -> None:
    refs = _write(tmp_path, [[[("a", 0, _digest("a"))]], [[("b", 0, _digest("b"))]]])
    Path(refs[1].uri).write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match=r"part-1\.parquet"):
        choose(refs, Wanted(labels=(0,)), 4)


ROWS: list[Row] = [
    (key, label, _digest(key)) for key, label in zip(["a/1", "a/2", "b/1", "b/10", "c/1", "c/2"], [0, 0, 1, 1, 2, 2], strict=True)
]


def _chosen(folder: Path, **selectors: list[str]) -> Chosen:
    parts = _write(folder, [[ROWS[:2], ROWS[2:3]], [ROWS[3:]], [[("u/1", 0, _digest("u"))]]])
    wanted = wanted_by(batch(**selectors), CLASSES)
    chosen = choose(parts[:2], wanted, len(CLASSES))
    refuse_unmatched(wanted, chosen, classes=CLASSES, unseen=parts[2:], example="a/1")
    return chosen


def test_each_kind_of_selector_finds_its_images(tmp_path: Path) -> None:
    assert _chosen(tmp_path, keys=["b/1", "a/2"]).keys == ("a/2", "b/1")
    assert _chosen(tmp_path, label=["ant"]).keys == ("a/1", "a/2")
    assert _chosen(tmp_path, prefix=["b/1", "c/"]).keys == ("b/1", "b/10", "c/1", "c/2")
    assert _chosen(tmp_path, digest=[_digest("c/1").hex().upper()]).keys == ("c/1",)
    assert _chosen(tmp_path, keys=["a/1"], label=["bee"], prefix=["c/2"]).keys == ("a/1", "b/1", "b/10", "c/2")


def test_a_class_name_wins_over_a_class_number(tmp_path: Path) -> None:
    assert _chosen(tmp_path, label=["1"]).keys == ("c/1", "c/2")
    assert _chosen(tmp_path, label=["0"]).keys == ("a/1", "a/2")


def test_values_that_come_twice_are_looked_for_once() -> None:
    wanted = wanted_by(batch(keys=["b", "a", "b"], label=["ant", "0"], prefix=["p", "p"], digest=["00" * 32] * 2), CLASSES)
    assert wanted == Wanted(keys=("b", "a"), labels=(0,), prefixes=("p",), digests=(bytes(32),))


REFUSALS = [
    ({"keys": ["a/1", "x/1", "x/2"]}, "key 'x/1' and 1 more: no such training image", "look like 'a/1'"),
    ({"keys": ["u/1"]}, "key 'u/1'", "no model trains on these images"),
    ({"keys": ["u/1", "x/1"]}, "key 'x/1': no such", "look like"),
    ({"label": ["bea"]}, "label 'bea': no such class", "did you mean 'bee'?"),
    ({"label": ["7"]}, "label '7': no such class", "known:"),
    ({"label": ["9" * 5000]}, "no such class", "known:"),
    ({"label": ["²"]}, "label '²': no such class", "known:"),
    ({"label": ["fly"]}, "label 'fly': no training image has it", "take the request out"),
    ({"prefix": ["d/", "a/", "e/"]}, "prefix 'd/' and 1 more", "correct the prefixes"),
    ({"prefix": ["a/", "b/", "c/"]}, "all 6 training images", "ask for less"),
    ({"prefix": [""]}, "all 6 training images", "ask for less"),
    ({"digest": ["00" * 32]}, f"digest '{'00' * 32}': no such training image", "sha256 of the stored image"),
    ({"digest": [_digest("u").hex()]}, "no such training image", "sha256 of the stored image"),
    ({"digest": ["beef"]}, "digest 'beef': not a sha256", "64 hexadecimal digits"),
    ({"digest": ["x" * 64]}, "not a sha256", "64 hexadecimal digits"),
    ({}, "no training image is meant", "name at least one"),
]


@pytest.mark.parametrize(("selectors", "message", "cure"), REFUSALS)
def test_refusals_name_the_fault_and_the_cure(tmp_path: Path, selectors: dict[str, list[str]], message: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _chosen(tmp_path, **selectors)
    assert message in caught.value.message and cure in caught.value.cure


def test_a_prefix_that_other_requests_already_cover_is_met(tmp_path: Path) -> None:
    # Met means that an image has it, whoever else asks for that image.
    assert _chosen(tmp_path, prefix=["b/1", "b/"], label=["bee"]).keys == ("b/1", "b/10")


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_groups_partition_the_forgotten_images(labels: list[int], seed: int, share: float) -> None:
    numbers = np.array(labels)
    forgotten = numbers[np.random.default_rng(seed).random(len(labels)) < 0.5]
    counts = np.bincount(numbers, minlength=4)
    groups, group_of = group_labels(forgotten, label_counts=counts, classes=CLASSES, class_share=share)
    assert group_of.dtype == np.int32 and len(group_of) == len(forgotten)
    assert set(group_of.tolist()) == set(range(len(groups)))
    for place, group in enumerate(groups):
        rows = group_of == place
        assert rows.sum() == group.samples and set(forgotten[rows]) == set(group.labels)
        if group.kind == "class":
            (label,) = group.labels
            assert (rows == (forgotten == label)).all()
            assert rows.sum() >= share * counts[label] and group.name == f"class {CLASSES[label]}"
        else:
            assert place == len(groups) - 1
            assert all((forgotten == n).sum() < share * counts[n] for n in group.labels)


def test_group_names_say_what_they_are() -> None:
    groups, group_of = group_labels(np.array([0, 0, 1]), label_counts=np.array([2, 3, 1, 0]), classes=CLASSES, class_share=0.5)
    assert groups == (
        Group(name="class ant", kind="class", labels=(0,), samples=2),
        Group(name="single images", kind="images", labels=(1,), samples=1),
    )
    assert group_of.tolist() == [0, 0, 1]
