"""Listings and parts: a partition in order, and a change of one shard stays a change of the parts beside it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import listing
from pipeline.data.listing import MOST_SHARDS, Listed, list_shards, listing_digest, look_at, parts_of
from pipeline.errors import StorageError

NAMES = st.lists(st.integers(0, 10_000), unique=True, max_size=400)


def _listed(numbers: list[int]) -> list[Listed]:
    return [Listed(uri=f"s3://bucket/shard-{number:06d}.tar", bytes=1, stamp="e") for number in numbers]


def _ends(shard: Listed) -> bool:
    """Whether a part ends after this shard wherever it lies."""
    return next(iter(parts_of([shard] * 2))) == (shard,)


@given(numbers=NAMES)
def test_parts_are_a_partition_in_order(numbers: list[int]) -> None:
    shards = _listed(numbers)
    parts = list(parts_of(shards))
    assert list(itertools.chain(*parts)) == shards
    assert all(0 < len(part) <= MOST_SHARDS for part in parts)


@settings(max_examples=100, deadline=None)
@given(start=st.integers(0, 1000), count=st.integers(1, 300), most=st.sampled_from([5, 40, MOST_SHARDS]), data=st.data())
def test_one_inserted_removed_or_renamed_shard_changes_nearby_parts_only(
    start: int, count: int, most: int, data: st.DataObject
) -> None:
    before = _listed(list(range(start, start + count)))
    place, removed, added = (data.draw(st.integers(0, last)) for last in (count - 1, 1, 1))
    after = [*before[:place], *_listed([data.draw(st.integers(10_000, 20_000))])[:added], *before[place + removed :]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "MOST_SHARDS", most)
        old, now = list(parts_of(before)), set(parts_of(after))
    # The next shard whose name ends a part ends it in both lists.
    next_end = next((number for number in range(place + removed, count) if _ends(before[number])), count)
    stop, lost = 0, 0
    for part in old:
        first, stop = stop, stop + len(part)
        if stop <= place or first > next_end:
            assert part in now
        lost += part not in now
    assert lost <= (next_end - place) // most + 2
    assert len(now - set(old)) <= (next_end - place) // most + 3


def test_a_change_among_many_shards_mostly_changes_one_part() -> None:
    rng = np.random.default_rng(0)
    shards = _listed(list(range(20_000)))
    whole = set(parts_of(shards))
    assert 20_000 / 45 < len(whole) < 20_000 / 22
    changes = []
    for place in rng.integers(0, len(shards), 20).tolist():
        changes.append(len(set(parts_of(shards[:place] + shards[place + 1 :])) - whole))
    assert np.mean(changes) < 2 and max(changes) < 6


@given(numbers=NAMES, data=st.data())
def test_a_listing_digest_follows_every_name_size_stamp_and_the_order(numbers: list[int], data: st.DataObject) -> None:
    shards = _listed(numbers)
    assert listing_digest(shards) == listing_digest(tuple(shards))
    if shards:
        place = data.draw(st.integers(0, len(shards) - 1))
        one = shards[place]
        others = [
            Listed(uri=one.uri + "x", bytes=one.bytes, stamp=one.stamp),
            Listed(uri=one.uri, bytes=2, stamp=one.stamp),
            Listed(uri=one.uri, bytes=one.bytes, stamp="f"),
        ]
        lists = [[*shards[:place], other, *shards[place + 1 :]] for other in others] + [shards[:place] + shards[place + 1 :]]
        assert len({listing_digest(shards), *map(listing_digest, lists)}) == 5
    if len(shards) > 1:
        assert listing_digest(shards[::-1]) != listing_digest(shards)


def test_shards_are_listed_in_order_with_their_sizes(tmp_path: Path) -> None:
    uris = []
    for number in range(40):
        (tmp_path / f"{number}.tar").write_bytes(b"x" * number)
        uris.append(f"{tmp_path}/{number}.tar")
    listed = list_shards(uris[::-1])
    assert [(shard.uri, shard.bytes) for shard in listed] == [(uris[n], n) for n in reversed(range(40))]
    assert list_shards(uris[::-1]) == listed


def test_a_stamp_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"one")
    (size, before), again = look_at(str(path)), look_at(str(path))
    assert size == 3 and before and again == (3, before)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))
    assert look_at(str(path))[1] != before


def test_a_stamp_in_other_storage_changes_with_the_content() -> None:
    def put(content: bytes) -> tuple[int, str]:
        with fsspec.open("memory://listing/a.tar", "wb") as out:
            out.write(content)
        return look_at("memory://listing/a.tar")

    first, second = put(b"one"), put(b"two")
    assert first[0] == second[0] == 3 and first[1] and first != second


def test_the_strongest_stamp_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"name": "bucket/a.tar", "size": 1, "LastModified": "yesterday", "ETag": '"abc"'}
    monkeypatch.setattr(listing, "info", lambda uri: facts)
    assert look_at("s3://bucket/a.tar") == (1, '"abc"')


def test_a_missing_shard_is_named_unless_it_was_erased(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"a")
    uris = [f"{tmp_path}/{name}.tar" for name in ("a", "gone", "lost")]
    with pytest.raises(StorageError, match=r"gone\.tar: not found"):
        list_shards(uris[:2])
    assert [shard.uri for shard in list_shards(uris[:2], absent=[uris[1]])] == uris[:1]
    with pytest.raises(StorageError, match=r"lost\.tar: not found"):
        list_shards(uris, absent=[uris[1]])
    (tmp_path / "gone.tar").write_bytes(b"it came back")
    assert [shard.uri for shard in list_shards(uris[:2], absent=[uris[1]])] == uris[:2]
