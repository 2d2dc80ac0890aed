"""What a batch means to a source: as a plain reading of all rows says, each image once, and nothing is written."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import listing
from pipeline.data.batch import Selection, Settings, Source, select
from pipeline.data.pack import pack
from pipeline.data.sources.webdataset import Config, build
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import DeletionRequest, RequestBatch, Selector
from tests.pipeline.data.tars import drawing, packed, picture, write_tar
from tests.support.finished import contents

CLASSES = ("zero", "one", "two")
LAYOUT = [[0, 1, 2, 0], [1, 1], [2, 2, 0], [0, 0]]
PREFIXES = ["s0/", "s1", "s2/img1", "s3/img"]


def rows_of(layout: list[list[int]]) -> list[tuple[str, int, str, int]]:
    """Key, label, digest and shard of every training image that `packed` writes."""
    numbers = itertools.count(1)
    return [
        (f"s{shard}/img{place}", label, hashlib.sha256(picture(next(numbers))).hexdigest(), shard)
        for shard, labels in enumerate(layout)
        for place, label in enumerate(labels)
    ]


def requests(*selectors: tuple[str, Sequence[str]], **more: Any) -> RequestBatch:
    return RequestBatch(
        requests=tuple(
            DeletionRequest(request_id=f"r{n}", selector=Selector(kind=kind, values=tuple(values)), **more)  # type: ignore[arg-type]
            for n, (kind, values) in enumerate(selectors)
        )
    )


def meant(kind: str, values: Sequence[str], key: str, label: int, mark: str) -> bool:
    """The plain reading of one request."""
    tests = {"keys": key in values, "label": CLASSES[label] in values, "digest": mark in values}
    return any(key.startswith(value) for value in values) if kind == "prefix" else tests[kind]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """`LAYOUT` as a packed source whose index has two shards a part; no test changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "MOST_SHARDS", 2)
        found, where, _ = packed(tmp_path_factory.mktemp("source"), LAYOUT)
    return Source(found, where)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_batch_means_what_a_plain_reading_of_all_rows_says(source: Source, data: st.DataObject) -> None:
    rows = rows_of(LAYOUT)
    values = {"keys": [row[0] for row in rows], "label": list(CLASSES), "digest": [row[2] for row in rows], "prefix": PREFIXES}
    one = st.sampled_from(sorted(values)).flatmap(
        lambda kind: st.tuples(st.just(kind), st.lists(st.sampled_from(values[kind]), min_size=1, max_size=2))
    )
    asked = data.draw(st.lists(one, min_size=1, max_size=4))
    wanted = [row for row in rows if any(meant(kind, texts, *row[:3]) for kind, texts in asked)]
    share = data.draw(st.sampled_from([0.3, 0.5, 1.0]))
    if len(wanted) == len(rows):
        with pytest.raises(ConfigError, match=f"all {len(rows)} training images"):
            select(requests(*asked), source, Settings(class_share=share))
        return
    found = select(requests(*asked), source, Settings(class_share=share))
    assert list(found.chosen.rows) == [(key, label, bytes.fromhex(mark)) for key, label, mark, _ in wanted]
    assert source.homes(found.chosen).tolist() == [shard for *_, shard in wanted]
    labels = [label for _, label, _, _ in rows]
    assert found.chosen.label_counts.tolist() == [labels.count(number) for number in range(len(CLASSES))]
    assert (found.copies.exact, found.copies.near) == (0, None)
    # Groups: a class of which at least the share is forgotten, and all other images together.
    gone = [label for _, label, _, _ in wanted]
    whole = [label for label in sorted(set(gone)) if gone.count(label) >= share * labels.count(label)]
    names = [f"class {CLASSES[label]}" for label in whole] + (["single images"] if set(gone) - set(whole) else [])
    assert [group.name for group in found.groups] == names
    expected = [whole.index(label) if label in whole else len(whole) for label in gone]
    assert found.group_of.tolist() == expected
    assert [group.samples for group in found.groups] == [expected.count(number) for number in range(len(names))]


def test_images_that_two_requests_mean_count_once(source: Source) -> None:
    mark = next(mark for key, _, mark, _ in rows_of(LAYOUT) if key == "s1/img0")
    found = select(
        requests(("keys", ["s1/img0"]), ("prefix", ["s1/"]), ("label", ["one"]), ("digest", [mark])), source, Settings()
    )
    assert found.chosen.keys == ("s0/img1", "s1/img0", "s1/img1")
    assert [group.samples for group in found.groups] == [3]


def test_addresses_of_a_source_stand_alone_and_give_each_shards_rows(source: Source) -> None:
    assert [[row["key"] for row in source.rows(shard).to_pylist()] for shard in source.training] == [
        [key for key, _, _, shard in rows_of(LAYOUT) if shard == number] for number in range(len(LAYOUT))
    ]
    for shard in (*source.training, *source.unseen):
        assert Path(shard.uri).is_absolute() and Path(shard.uri).stat().st_size == shard.bytes
        assert source.files[shard.index].uri == shard.index and Path(shard.index).is_file()
    parts = source.parts(source.training)
    assert len(parts) == len({part.uri for part in parts}) > 1 and not set(parts) & set(source.parts(source.unseen))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("keys", ["s0/img0", "s9/img0"]), "key 's9/img0': no such training image"),
        (("keys", ["u/3"]), "key 'u/3': no such training image"),
        (("label", ["three"]), "label 'three': no such class"),
        (("prefix", ["s1/", "t"]), "prefix 't': no such training image"),
        (("digest", ["ab" * 32]), "digest 'abab"),
        (("digest", ["abc"]), "digest 'abc': not a sha256"),
        (("prefix", ["s"]), "all 11 training images are to be forgotten"),
        (("label", list(CLASSES)), "all 11 training images are to be forgotten"),
    ],
)
def test_a_batch_that_means_nothing_or_everything_is_refused_and_writes_nothing(
    source: Source, asked: tuple[str, list[str]], message: str
) -> None:
    before = contents(Path(source.folder).parents[1])
    with pytest.raises(ConfigError, match=message) as refusal:
        select(requests(("keys", ["s0/img1"]), asked), source, Settings())
    assert refusal.value.cure
    assert contents(Path(source.folder).parents[1]) == before


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Five pictures in two shards: `a/1` is asked for, `b/exact` has its bytes, `b/near` is its picture as a JPEG."""
    folder = tmp_path_factory.mktemp("album")
    members = {"a": [("a/1", "png", drawing(1)), ("a/2", "png", drawing(2))]}
    members["b"] = [("b/exact", "png", drawing(1)), ("b/near", "jpg", drawing(1, "JPEG")), ("b/other", "png", drawing(3))]
    uris = [
        write_tar(
            folder / f"{shard}.tar", [m for key, ext, image in images for m in ((f"{key}.cls", b"0"), (f"{key}.{ext}", image))]
        )
        for shard, images in members.items()
    ]
    found, where = pack(build(Config(training=tuple(uris))), name="webdataset", output=str(folder / "out"))
    assert found is not None
    return Source(found, where)


def ask(album: Source, copies: str, listing: str = "", near_bits: int | None = 3, *more: str) -> Selection:
    batch = requests(("keys", ["a/1", *more]), copies=copies)
    return select(batch, album, Settings(near_bits=near_bits), listing=listing)


def test_copies_are_included_where_a_request_says_so(album: Source) -> None:
    found = ask(album, "include")
    assert found.chosen.keys == ("a/1", "b/exact", "b/near")
    assert (found.copies.exact, found.copies.near) == (0, 0)
    assert album.homes(found.chosen).tolist() == [0, 1, 1]
    assert len(found.group_of) == 3 and sum(group.samples for group in found.groups) == 3
    without = ask(album, "include", near_bits=None)
    assert without.chosen.keys == ("a/1", "b/exact") and without.copies.near is None


def test_copies_are_counted_and_left_where_a_request_says_so(album: Source) -> None:
    found = ask(album, "ignore")
    assert found.chosen.keys == ("a/1",) and (found.copies.exact, found.copies.near) == (1, 1)


def test_copies_stop_a_batch_that_can_list_them_and_the_list_names_them(album: Source, tmp_path: Path) -> None:
    listing = tmp_path / "run" / "copies.csv"
    with pytest.raises(ConfigError, match=r"2 retained images are copies .*1 exact, 1 near.*copies\.csv"):
        ask(album, "stop", str(listing))
    listed = list(csv.DictReader(listing.read_text().splitlines()))
    assert [(row["key"], row["copy_of"], row["kind"]) for row in listed] == [
        ("b/exact", "a/1", "exact"),
        ("b/near", "a/1", "near"),
    ]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["copies.csv"]


def test_without_a_list_copies_stop_nothing_and_stay(album: Source) -> None:
    """A forecast and a tombstone must not fail, or wait, for what a run will have to decide."""
    found = ask(album, "stop")
    assert found.chosen.keys == ("a/1",) and (found.copies.exact, found.copies.near) == (1, 1)


def test_if_the_copies_are_all_the_rest_nothing_would_be_left(album: Source) -> None:
    with pytest.raises(ConfigError, match="all 5 training images are to be forgotten"):
        ask(album, "include", "", 3, "a/2", "b/other")


def test_a_changed_index_is_named(tmp_path: Path) -> None:
    found, where, _ = packed(tmp_path, LAYOUT)
    source = Source(found, where)
    part = source.parts(source.training)[-1]
    Path(part.uri).write_bytes(Path(part.uri).read_bytes()[:-20] + bytes(20))
    with pytest.raises(IntegrityError, match=Path(part.uri).name):
        select(requests(("label", ["one"])), source, Settings())
