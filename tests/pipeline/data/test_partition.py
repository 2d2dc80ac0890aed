"""Laws of the partition, on real shards of any layout."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.pack import PackedSource, pack
from pipeline.data.partition import COPIES, RUN_INDEX, Settings, partition
from pipeline.data.rows import keys_digest, open_index
from pipeline.data.samples import Samples, read_samples
from pipeline.data.shards import read_shard
from pipeline.data.sources.webdataset import Config, build
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import Manifest, RequestBatch
from pipeline.requests import batch_digest
from pipeline.storage import join
from tests.pipeline.data.tars import batch, packed

SPLITS = ("original", "forget", "retain", "calibration", "holdout")
LAYOUTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4).filter(
    lambda shards: sum(map(len, shards)) > 1
)
Layout = list[list[int]]


def cut_one(root: Path, source: PackedSource, where: str, wanted: RequestBatch, name: str = "run", **options: Any) -> Manifest:
    out = str(root / "out")
    settings = Settings(samples_per_shard=3, near_bits=options.pop("near_bits", None))
    options = {"seed": 0, "workers": 1, "settings": settings, **options}
    return partition(wanted, source, source_folder=where, folder=f"{out}/{name}", output=out, run_id=name, **options)


def _samples(root: Path, manifest: Manifest, name: str = "run") -> dict[str, Samples]:
    return {split: read_samples(str(root / "out" / name), manifest, split) for split in SPLITS}


def _keys(layout: Layout) -> list[str]:
    return [f"s{shard}/img{place}" for shard, labels in enumerate(layout) for place in range(len(labels))]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _same_bytes_as_recorded(found: Samples) -> None:
    for number, segment in enumerate(found.segments):
        content, rows = Path(segment.uri).read_bytes(), found.rows(number)
        assert len(content) == segment.bytes and len(rows.keys) == segment.samples
        for offset, size, sha256 in zip(rows.offset.tolist(), rows.size.tolist(), rows.sha256, strict=True):
            assert hashlib.sha256(content[offset : offset + size]).digest() == sha256


@settings(max_examples=25, deadline=None)
@given(layout=LAYOUTS, data=st.data())
def test_forget_and_retain_partition_the_source_for_any_layout(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("law")
    source, where, uris = packed(root, layout)
    keys, untouched = _keys(layout), {uri: (Path(uri).read_bytes(), os.stat(uri).st_mtime_ns) for uri in uris}
    forgotten = set(data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=len(keys) - 1)))
    wanted = batch(keys=sorted(forgotten))
    manifest = cut_one(root, source, where, wanted)
    splits = _samples(root, manifest)
    names = {split: found.keys for split, found in splits.items()}

    # A partition, in fixed order, with group numbers on exactly the forgotten images.
    assert names["original"] == keys
    assert set(names["forget"]) == forgotten and len(names["forget"]) == len(forgotten)
    assert names["retain"] == [key for key in keys if key not in forgotten]
    assert not set(names["calibration"]) & set(names["holdout"])
    assert sorted(names["calibration"] + names["holdout"]) == sorted(f"u/{n}" for n in range(12))
    for split, found in splits.items():
        assert ((found.groups >= 0) == (split == "forget")).all()
    groups = splits["forget"].groups.tolist()
    assert [group.samples for group in manifest.groups] == [groups.count(place) for place in range(len(manifest.groups))]

    # Every row gives the bytes it promises, and they are the source's.
    facts = {}
    for split, found in splits.items():
        _same_bytes_as_recorded(found)
        rows = [found.rows(number) for number in range(len(found.segments))]
        facts[split] = {
            k: v for r in rows for k, *v in zip(r.keys, r.sha256, r.label.tolist(), r.size.tolist(), r.ext, strict=True)
        }
    assert {**facts["forget"], **facts["retain"]} == facts["original"]
    assert splits["original"].labels.tolist() == [label for labels in layout for label in labels]

    # Shards hold exactly their split, by digest.
    for recorded in manifest.splits:
        assert recorded.samples == len(names[recorded.name])
        assert recorded.keys_digest == keys_digest(names[recorded.name])
        held: list[str] = []
        for ref in recorded.shards:
            samples, whole, _ = read_shard(join(str(root / "out" / "run"), ref.uri))
            assert (whole.sha256, whole.bytes) == (ref.sha256, ref.bytes)
            held += [s.key for s in samples]
            if recorded.name in ("original", "forget", "retain"):
                assert (ref.samples, ref.keys_digest) == (len(samples), keys_digest(s.key for s in samples))
        if recorded.name in ("original", "forget", "retain"):
            assert held == names[recorded.name]

    # Only shards with a forgotten key are rewritten; the others stay as they are and are referenced.
    touched = [n for n, labels in enumerate(layout) if any(f"s{n}/img{p}" in forgotten for p in range(len(labels)))]
    emptied = [n for n in touched if all(f"s{n}/img{p}" in forgotten for p in range(len(layout[n])))]
    assert [(ref.uri, ref.origin) for ref in manifest.split("retain").shards] == [
        (f"shards/rewritten-{n:06d}.tar", "rewritten") if n in touched else (uris[n], "original")
        for n in range(len(layout))
        if n not in emptied
    ]
    assert manifest.shards_clean == len(layout) - len(touched)
    assert manifest.shards_rewritten == len(touched) - len(emptied)
    assert {uri: (Path(uri).read_bytes(), os.stat(uri).st_mtime_ns) for uri in uris} == untouched
    new = {ref.uri for s in ("forget", "retain") for ref in manifest.split(s).shards if ref.origin != "original"}
    assert set(files_below(root / "out" / "run")) == new | {RUN_INDEX}

    # The manifest names every index file by its digest, and decodes as it was written.
    for file in manifest.index:
        content = Path(join(str(root / "out" / "run"), file.uri)).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file.sha256, file.bytes)
    assert {ref.index for one in manifest.splits for ref in one.shards} <= {file.uri for file in manifest.index}
    assert (manifest.batch_digest, manifest.requests) == (batch_digest(wanted), 1)
    assert decode(Manifest, json.loads(canonical(manifest)), where="manifest") == manifest


@settings(max_examples=12, deadline=None)
@given(layout=LAYOUTS.filter(lambda shards: sum(map(len, shards)) > 2), data=st.data())
def test_a_partition_of_a_partition_is_one_partition(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, data: st.DataObject
) -> None:
    root, keys = tmp_path_factory.mktemp("twice"), _keys(layout)
    first = data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=len(keys) - 2))
    left = [key for key in keys if key not in first]
    second = data.draw(st.sets(st.sampled_from(left), min_size=1, max_size=len(left) - 1))
    source, where, _ = packed(root, layout)
    one = cut_one(root, source, where, batch(keys=sorted(first)), "one")
    both = cut_one(root, source, where, batch(keys=sorted(first | second)), "both")
    # What is left after the first batch is the training set of another source.
    rest = tuple(join(str(root / "out" / "one"), ref.uri) for ref in one.split("retain").shards)
    config = Config(training=rest, unseen=(f"{root}/tars/unseen.tar",), classes=source.classes)
    again, there = pack(build(config), name="rest", output=str(root / "out"))
    assert again is not None
    two = cut_one(root, again, there, batch(keys=sorted(second)), "two")
    halves = _samples(root, one, "one"), _samples(root, two, "two")
    assert set(halves[0]["forget"].keys) | set(halves[1]["forget"].keys) == first | second
    assert halves[1]["original"].keys == left
    whole = _samples(root, both, "both")
    assert halves[1]["retain"].keys == whole["retain"].keys
    assert halves[1]["retain"].labels.tolist() == whole["retain"].labels.tolist()
    assert two.split("retain").keys_digest == both.split("retain").keys_digest
    for name in ("calibration", "holdout"):
        assert two.split(name).keys_digest == both.split(name).keys_digest
    _same_bytes_as_recorded(halves[1]["retain"])


def test_the_partition_does_not_depend_on_workers_and_repeats_byte_for_byte(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2], [0, 0], [2, 1, 0]])
    wanted = batch(keys=["s0/img1", "s1/img0", "s1/img2", "s3/img2"], label=["two"])
    one = cut_one(tmp_path, source, where, wanted, "run1", workers=1)
    two = cut_one(tmp_path, source, where, wanted, "run2", workers=2)
    first, second = (files_below(tmp_path / "out" / f"run{n}") for n in (1, 2))
    assert first == second and len(first) > 4
    assert canonical(one).replace(b"run1", b"run2") == canonical(two)
    assert cut_one(tmp_path, source, where, wanted, "run1") == one
    assert files_below(tmp_path / "out" / "run1") == first


def test_the_order_of_requests_and_values_changes_nothing(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]])
    wanted = batch(keys=["s0/img1", "s1/img0"], label=["two"])
    shuffled = batch(keys=["s1/img0", "s0/img1"], label=["two"])
    one = cut_one(tmp_path, source, where, wanted)
    files = files_below(tmp_path / "out" / "run")
    assert cut_one(tmp_path, source, where, RequestBatch(requests=tuple(reversed(shuffled.requests)))) == one
    assert files_below(tmp_path / "out" / "run") == files


def test_every_kind_of_selector_forgets_the_same_image_in_the_same_bytes(tmp_path: Path) -> None:
    source, where, uris = packed(tmp_path, [[0, 1, 0], [0, 0]])
    image = read_shard(uris[0])[0][1].sha256.hex()
    written = []
    for number, wanted in enumerate(
        (batch(keys=["s0/img1"]), batch(label=["one"]), batch(prefix=["s0/img1"]), batch(digest=[image]))
    ):
        manifest = cut_one(tmp_path, source, where, wanted, f"run{number}")
        assert read_samples(str(tmp_path / "out" / f"run{number}"), manifest, "forget").keys == ["s0/img1"]
        written.append(files_below(tmp_path / "out" / f"run{number}"))
    assert written[1:] == written[:-1]


def test_the_seed_orders_forget_shards_and_halves_the_unseen(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0] * 12, [1] * 12], unseen=40)
    wanted = batch(label=["zero"], keys=["s1/img0"])
    orders, halves = [], []
    for seed in (0, 1):
        found = _samples(tmp_path, cut_one(tmp_path, source, where, wanted, seed=seed))
        orders.append(found["forget"].keys)
        halves.append(set(found["holdout"].keys))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert halves[0] != halves[1] and all(8 <= len(half) <= 32 for half in halves)


def test_packed_shards_are_named_relative_to_the_run_folder(tmp_path: Path) -> None:
    from pipeline.data.sources.synthetic import Config, build

    source, where = pack(build(Config(samples=20, unseen_samples=10)), name="synthetic", output=str(tmp_path / "out"))
    assert source is not None
    manifest = cut_one(tmp_path, source, where, batch(keys=["train-000003"]))
    folder = f"../sources/{Path(where).name}"
    assert manifest.split("original").shards[0].uri == f"{folder}/train-000000.tar"
    assert manifest.split("holdout").shards[0].uri == f"{folder}/unseen-000000.tar"
    assert manifest.source_folder == folder
    assert [ref.uri for ref in manifest.index] == [*(f"{folder}/{ref.uri}" for ref in source.index), RUN_INDEX]
    # So that a copy of the output folder is whole.
    keys = _samples(tmp_path, manifest)["retain"].keys
    shutil.copytree(tmp_path / "out", tmp_path / "copy" / "out")
    shutil.rmtree(tmp_path / "out")
    open_index.cache_clear()
    found = _samples(tmp_path / "copy", manifest)
    assert found["retain"].keys == keys
    _same_bytes_as_recorded(found["original"])


def test_leftovers_of_another_attempt_are_removed(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]])
    old = tmp_path / "out" / "run" / "shards"
    (old / ".spool").mkdir(parents=True)
    for name in ("forget-000007.tar", "rewritten-000009.tar", ".forget-000000.tar.x1.part", ".spool/3", "batch.json"):
        (old / name).write_bytes(b"old")
    cut_one(tmp_path, source, where, batch(keys=["s0/img0"]))
    expected = ["batch.json", "forget-000000.tar", "index.parquet", "rewritten-000000.tar"]
    assert sorted(path.name for path in old.iterdir()) == expected


@pytest.mark.parametrize(
    ("wanted", "unseen", "message"),
    [
        (batch(keys=["nobody"]), 12, "key 'nobody'"),
        (batch(label=["zero", "one", "two"]), 12, "all 7 training images"),
        (batch(keys=["u/1"]), 12, "key 'u/1'"),
        (batch(keys=["s0/img0"]), 1, "1 unseen images do not fill"),
    ],
)
def test_a_refused_batch_writes_nothing(tmp_path: Path, wanted: RequestBatch, unseen: int, message: str) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]], unseen=unseen)
    with pytest.raises(ConfigError, match=message) as caught:
        cut_one(tmp_path, source, where, wanted)
    assert caught.value.cure and not (tmp_path / "out" / "run").exists()


def test_a_shard_that_changed_since_it_was_indexed_is_named(tmp_path: Path) -> None:
    source, where, uris = packed(tmp_path, [[0, 1], [1, 1]])
    content = bytearray(Path(uris[0]).read_bytes())
    content[-1] = 1
    Path(uris[0]).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"train-0\.tar: changed"):
        cut_one(tmp_path, source, where, batch(keys=["s0/img0"]))
    cut_one(tmp_path, source, where, batch(keys=["s1/img0"]))


def test_a_run_folder_in_memory_works(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]])
    wanted = batch(keys=["s0/img0", "s1/img1"])
    there = partition(
        wanted,
        source,
        source_folder=where,
        folder="memory://out/run",
        output="memory://out",
        run_id="run",
        seed=0,
        settings=Settings(samples_per_shard=3),
    )
    here = cut_one(tmp_path, source, where, wanted)
    assert [split.keys_digest for split in there.splits] == [split.keys_digest for split in here.splits]
    assert there.split("forget").shards == here.split("forget").shards
    assert read_samples("memory://out/run", there, "forget").keys == _samples(tmp_path, here)["forget"].keys
    assert here.index[-1] == there.index[-1]


def test_copies_that_a_request_includes_are_cut_out_too(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]])
    # Pictures of one pattern have one perceptual hash but different bytes.
    wanted = batch(keys=["s0/img0"])
    with pytest.raises(ConfigError, match=r"6 retained images are copies .*\(0 exact, 6 near\): .*shards/copies\.csv"):
        cut_one(tmp_path, source, where, wanted, near_bits=3)
    assert set(files_below(tmp_path / "out" / "run")) == {COPIES}
    assert cut_one(tmp_path, source, where, wanted).near_copies is None
    kinder = RequestBatch(requests=(dataclasses.replace(wanted.requests[0], copies="ignore"),))
    manifest = cut_one(tmp_path, source, where, kinder, near_bits=3)
    assert (manifest.exact_copies, manifest.near_copies) == (0, 6)
    assert manifest.split("forget").samples == 1
    stricter = RequestBatch(requests=(dataclasses.replace(wanted.requests[0], copies="include"),))
    with pytest.raises(ConfigError, match="all 7 training images are to be forgotten"):
        cut_one(tmp_path, source, where, stricter, near_bits=3)
