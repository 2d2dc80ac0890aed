"""Laws of the partition, on real shards of any layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.index import keys_digest
from pipeline.data.pack import PackedSource
from pipeline.data.partition import RUN_SCHEMA, partition
from pipeline.data.shards import read_shard
from pipeline.decode import canonical, decode
from pipeline.errors import ConfigError, IntegrityError
from pipeline.records import Manifest, RequestBatch
from pipeline.requests import batch_digest
from pipeline.storage import join
from tests.pipeline.data.tars import batch, packed

LAYOUTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4).filter(
    lambda shards: sum(map(len, shards)) > 1
)


def _cut(root: Path, source: PackedSource, where: str, wanted: RequestBatch, name: str = "run", **options: Any) -> Manifest:
    out = str(root / "out")
    options = {"seed": 0, "samples_per_shard": 3, **options}
    return partition(wanted, source, source_folder=where, folder=f"{out}/{name}", output=out, run_id=name, **options)


def _rows(root: Path, manifest: Manifest, name: str = "run") -> dict[str, list[dict[str, Any]]]:
    table = pq.read_table(root / "out" / name / manifest.index.uri)
    assert table.schema.equals(RUN_SCHEMA)
    rows: dict[str, list[dict[str, Any]]] = {split.name: [] for split in manifest.splits}
    for row in table.to_pylist():
        rows[row["split"]].append(row)
    return rows


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, data=st.data())
def test_forget_and_retain_partition_the_source_for_any_layout(
    tmp_path_factory: pytest.TempPathFactory, layout: list[list[int]], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("law")
    source, where, uris = packed(root, layout)
    keys = [f"s{shard}/img{place}" for shard, labels in enumerate(layout) for place in range(len(labels))]
    forgotten = set(data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=len(keys) - 1)))
    wanted = batch(keys=sorted(forgotten))
    manifest = _cut(root, source, where, wanted)
    rows = _rows(root, manifest)
    names = {split: [row["key"] for row in found] for split, found in rows.items()}

    # A partition, in fixed order, with group numbers on exactly the forgotten images.
    assert names["original"] == keys
    assert set(names["forget"]) == forgotten and len(names["forget"]) == len(forgotten)
    assert names["retain"] == [key for key in keys if key not in forgotten]
    assert not set(names["calibration"]) & set(names["holdout"])
    assert sorted(names["calibration"] + names["holdout"]) == sorted(f"u/{n}" for n in range(12))
    for row in (row for found in rows.values() for row in found):
        assert (row["group"] >= 0) == (row["key"] in forgotten)
    assert [group.samples for group in manifest.groups] == [
        sum(row["group"] == place for row in rows["forget"]) for place in range(len(manifest.groups))
    ]

    # Every row gives the bytes it promises, and they are the source's.
    by_key = {row["key"]: row for row in rows["original"]}
    for row in (row for found in rows.values() for row in found):
        content = Path(join(str(root / "out" / "run"), row["shard"])).read_bytes()
        assert hashlib.sha256(content[row["offset"] : row["offset"] + row["size"]]).hexdigest() == row["sha256"]
        if row["key"] in by_key:
            assert {k: row[k] for k in ("sha256", "label", "size", "ext", "group")} == {
                k: by_key[row["key"]][k] for k in ("sha256", "label", "size", "ext", "group")
            }

    # Shards hold exactly their split, by digest; only shards with a forgotten key are rewritten.
    for split in manifest.splits:
        assert split.samples == len(rows[split.name])
        assert split.keys_digest == keys_digest(names[split.name], batch_digest(wanted))
        held: list[tuple[str, int, str, str]] = []
        for ref in split.shards:
            samples, found = read_shard(join(str(root / "out" / "run"), ref.uri))
            assert (found.sha256, found.bytes, found.samples) == (ref.sha256, ref.bytes, ref.samples)
            held += [(s.key, s.label, s.sha256, ref.uri) for s in samples]
        if split.name in ("original", "forget", "retain"):
            assert held == [(row["key"], row["label"], row["sha256"], row["shard"]) for row in rows[split.name]]
    touched = [n for n, labels in enumerate(layout) if any(f"s{n}/img{p}" in forgotten for p in range(len(labels)))]
    emptied = [n for n in touched if all(f"s{n}/img{p}" in forgotten for p in range(len(layout[n])))]
    origins = [(ref.uri, ref.origin) for ref in manifest.split("retain").shards]
    assert origins == [
        (f"shards/rewritten-{n:06d}.tar", "rewritten") if n in touched else (uris[n], "original")
        for n in range(len(layout))
        if n not in emptied
    ]
    assert manifest.shards_clean == len(layout) - len(touched)
    assert manifest.shards_rewritten == len(touched) - len(emptied)
    written = {path.name for path in (root / "out" / "run" / "shards").iterdir()}
    new = {ref.uri.split("/")[-1] for s in ("forget", "retain") for ref in manifest.split(s).shards if ref.origin != "original"}
    assert written == new | {"index.parquet"}
    assert decode(Manifest, json.loads(canonical(manifest)), where="manifest") == manifest


def test_the_partition_does_not_depend_on_workers_and_repeats_byte_for_byte(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2], [0, 0], [2, 1, 0]])
    wanted = batch(keys=["s0/img1", "s1/img0", "s1/img2", "s3/img2"], label=["two"])
    one = _cut(tmp_path, source, where, wanted, "run1", workers=1)
    two = _cut(tmp_path, source, where, wanted, "run2", workers=2)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / "out" / f"run{n}" / "shards").iterdir()} for n in (1, 2))
    assert first == second
    assert canonical(one).replace(b"run1", b"run2") == canonical(two)
    again = _cut(tmp_path, source, where, wanted, "run1")
    assert again == one
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "run1" / "shards").iterdir()} == first


def test_the_order_of_requests_and_values_changes_nothing(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]])
    wanted = batch(keys=["s0/img1", "s1/img0"], label=["two"])
    shuffled = batch(keys=["s1/img0", "s0/img1"], label=["two"])
    one = _cut(tmp_path, source, where, wanted)
    two = _cut(tmp_path, source, where, RequestBatch(requests=tuple(reversed(shuffled.requests))))
    assert one == two


def test_the_seed_orders_forget_shards_and_halves_the_unseen(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0] * 12, [1] * 12], unseen=40)
    wanted = batch(label=["zero"], keys=["s1/img0"])
    orders, halves = [], []
    for seed in (0, 1):
        rows = _rows(tmp_path, _cut(tmp_path, source, where, wanted, seed=seed))
        orders.append([row["key"] for row in rows["forget"]])
        halves.append({row["key"] for row in rows["holdout"]})
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert halves[0] != halves[1] and all(8 <= len(half) <= 32 for half in halves)


def test_packed_shards_are_named_relative_to_the_run_folder(tmp_path: Path) -> None:
    from pipeline.data.pack import pack
    from pipeline.data.sources.synthetic import Config, build

    source, where = pack(build(Config(samples=20, unseen_samples=10)), name="synthetic", output=str(tmp_path / "out"))
    manifest = _cut(tmp_path, source, where, batch(keys=["train-000003"]))
    assert manifest.split("original").shards[0].uri == f"../sources/{Path(where).name}/train-000000.tar"
    assert manifest.split("holdout").shards[0].uri == f"../sources/{Path(where).name}/unseen-000000.tar"


def test_leftovers_of_another_attempt_are_removed(tmp_path: Path) -> None:
    source, where, _ = packed(tmp_path, [[0, 1, 2, 0], [1, 1, 2]])
    old = tmp_path / "out" / "run" / "shards"
    (old / ".spool").mkdir(parents=True)
    for name in ("forget-000007.tar", "rewritten-000009.tar", ".spool/3", "batch.json"):
        (old / name).write_bytes(b"old")
    _cut(tmp_path, source, where, batch(keys=["s0/img0"]))
    assert sorted(path.name for path in old.iterdir()) == [
        "batch.json",
        "forget-000000.tar",
        "index.parquet",
        "rewritten-000000.tar",
    ]


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
        _cut(tmp_path, source, where, wanted)
    assert caught.value.cure and not (tmp_path / "out" / "run").exists()


def test_a_shard_that_changed_since_it_was_indexed_is_named(tmp_path: Path) -> None:
    source, where, uris = packed(tmp_path, [[0, 1], [1, 1]])
    content = bytearray(Path(uris[0]).read_bytes())
    content[-1] = 1
    Path(uris[0]).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"train-0\.tar: changed"):
        _cut(tmp_path, source, where, batch(keys=["s0/img0"]))
    _cut(tmp_path, source, where, batch(keys=["s1/img0"]))


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
        samples_per_shard=3,
    )
    here = _cut(tmp_path, source, where, wanted)
    assert [split.keys_digest for split in there.splits] == [split.keys_digest for split in here.splits]
    assert there.split("forget").shards == here.split("forget").shards
