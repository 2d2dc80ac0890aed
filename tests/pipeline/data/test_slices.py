"""Slices and set digests: laws over any samples, any shards and any deletion."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.rows import SCHEMA, key_hash
from pipeline.data.samples import Samples, Segment
from pipeline.data.slices import Slicing, passes_of, slice_of, slice_seed

SHARDS = st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), min_size=1, max_size=5).map(
    lambda shards: [[f"s{n}/{key}" for key in dict.fromkeys(shard)] for n, shard in enumerate(shards)]
)
SEEDS = st.integers(0, 2**32 - 1)
SLICES = st.integers(1, 5)


def content(key: str) -> bytes:
    return hashlib.sha256(f"image of {key}".encode()).digest()


def samples(shards: list[list[str]], contents: dict[str, bytes] | None = None, shift: int = 0) -> Samples:
    """Samples of shards of keys; what a shard weighs, and where a sample lies in it, depends on `shift` as well."""
    tables, segments = [], []
    for number, keys in enumerate(shards):
        rows = [
            {
                "key": key,
                "key_hash": key_hash(key),
                "offset": 1000 * row + shift,
                "size": 10 + len(key),
                "ext": "png",
                "label": 0,
                "sha256": (contents or {}).get(key, content(key)),
            }
            for row, key in enumerate(keys)
        ]
        tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
        segments.append(Segment(f"{number}-{shift}.tar", len(keys), 1000 * len(keys) + shift))
    return Samples(segments, tables, split="retain")


@settings(deadline=None, max_examples=50)
@given(SHARDS, SEEDS, SLICES, st.data())
def test_a_deletion_moves_no_other_sample_to_another_slice(shards: list[list[str]], seed: int, slices: int, data: st.DataObject):
    keys = [key for shard in shards for key in shard]
    gone = set(data.draw(st.lists(st.sampled_from(keys), unique=True)))
    left = [kept for shard in shards if (kept := [key for key in shard if key not in gone])]
    before, after = (Slicing(samples(part), seed=seed, slices=slices) for part in (shards, left))
    for upto in range(1, slices + 1):
        assert set(after.prefix(upto).keys) == set(before.prefix(upto).keys) - gone
        assert all(1 <= slice_of(key, seed=seed, slices=slices) <= upto for key in after.prefix(upto).keys)
        touched = any(slice_of(key, seed=seed, slices=slices) <= upto for key in gone)
        assert (after.sets[upto - 1] == before.sets[upto - 1]) is not touched


@settings(deadline=None, max_examples=50)
@given(SHARDS, SEEDS, st.integers(2, 5), st.data())
def test_the_order_of_a_prefix_is_a_function_of_its_samples(shards: list[list[str]], seed: int, slices: int, data: st.DataObject):
    """What lies beside them in their shards, where in these they lie and how the shards are sorted changes nothing."""
    upto = data.draw(st.integers(1, slices))
    gone = {key for shard in shards for key in shard if slice_of(key, seed=seed, slices=slices) > upto}
    gone = set(data.draw(st.lists(st.sampled_from(sorted(gone)), unique=True))) if gone else set()
    left = data.draw(st.permutations([kept for shard in shards if (kept := [key for key in shard if key not in gone])]))
    before = Slicing(samples(shards), seed=seed, slices=slices).prefix(upto)
    after = Slicing(samples(left, shift=7), seed=seed, slices=slices).prefix(upto)
    assert after.keys == before.keys
    assert [(part.samples, part.bytes) for part in after.segments] == [(part.samples, part.bytes) for part in before.segments]
    assert sum(part.bytes for part in after.segments) == sum(10 + len(key) for key in after.keys)


@settings(deadline=None, max_examples=50)
@given(SHARDS, SEEDS, st.data())
def test_a_changed_image_changes_the_digest_of_its_slice_and_all_after(shards: list[list[str]], seed: int, data: st.DataObject):
    changed = data.draw(st.sampled_from([key for shard in shards for key in shard]))
    before = Slicing(samples(shards), seed=seed, slices=3).sets
    after = Slicing(samples(shards, {changed: content("another")}), seed=seed, slices=3).sets
    home = slice_of(changed, seed=seed, slices=3)
    assert [old == new for old, new in zip(before, after, strict=True)] == [number < home for number in (1, 2, 3)]


def test_one_slice_is_the_split_as_it_is() -> None:
    found = samples([["b", "a"], ["c"]])
    slicing = Slicing(found, seed=3, slices=1)
    assert slicing.prefix(1) is found and slicing.sets[0].samples == 3
    assert slice_seed(3, 1, 1) == 3 and len({slice_seed(3, number, 4) for number in (1, 2, 3, 4)} | {3}) == 5


def test_slices_are_of_like_size() -> None:
    counts = [0] * 4
    for number in range(4000):
        counts[slice_of(f"image-{number}", seed=1, slices=4) - 1] += 1
    assert all(900 < count < 1100 for count in counts), counts


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.data())
def test_stages_read_together_what_training_in_one_reads(epochs: int, data: st.DataObject) -> None:
    slices = data.draw(st.integers(1, 2 * epochs - 1))
    passes = passes_of(epochs, slices)
    assert sum(number * each for number, each in enumerate(passes, start=1)) == epochs * slices
    assert len(passes) == slices and min(passes) >= 1 and max(passes) - min(passes) <= 1
    with pytest.raises(ValueError, match="fewer passes"):
        passes_of(epochs, 2 * epochs)
