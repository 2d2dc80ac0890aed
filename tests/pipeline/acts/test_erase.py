"""The act `erase`: refuses what it must, proves what it did, and leaves nothing that shows or names a deleted image."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from launch.verify import verify
from pipeline.acts import tombstone
from pipeline.config import read_batch, resolve
from pipeline.data.cache import RangeCache
from pipeline.data.pack import load_source
from pipeline.data.samples import read_samples
from pipeline.data.tombstones import read_tombstones
from pipeline.decode import decode, digest
from pipeline.errors import ConfigError, IntegrityError, StorageError
from pipeline.orders import BatchOrder
from pipeline.records import Erasure, Manifest
from pipeline.stages.runner import run_stage
from pipeline.storage import lock
from tests.pipeline.data.tars import picture, sample, write_tar
from tests.support.finished import FORGOTTEN, REQUESTS, contents, do, finish, holders, plan, tar_run_file, tar_source
from tests.support.runs import prepare

pytestmark = pytest.mark.usefixtures("plain_page")


def place_of(run: Path) -> Path:
    return run.parents[1]


def set_config(run: Path, **sections: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **sections}))


def test_the_plan_touches_nothing_and_says_what_is_then_done(finished: Path) -> None:
    tars = place_of(finished) / "tars"
    before = contents(place_of(finished))
    told = plan(finished)
    assert contents(place_of(finished)) == before
    assert told.replaced == (f"{tars}/train-0.tar", f"{tars}/train-2.tar") and told.removed == (f"{tars}/train-1.tar",)
    assert (told.images, told.locked) == (len(FORGOTTEN), ())
    proof = do(finished)
    assert (told.versions, told.bytes) == (len(proof.removed), sum(item.bytes for item in proof.removed))
    assert proof.images == told.images and set(told.remaining) <= set(proof.remaining)


def test_what_an_audit_and_a_sliced_training_left_is_named(finished: Path) -> None:
    assert not any("twin" in line or "slice" in line for line in plan(finished).remaining)
    (finished / "audit").mkdir()
    (finished / "audit" / "planted.json").write_text(json.dumps({"twin": "tiny-planted-1a2b3c4d"}))
    (finished / "checkpoints/original/slice-1").mkdir(parents=True)
    (finished / "checkpoints/original/slice-1/model.safetensors").write_bytes(b"weights")
    told = plan(finished).remaining
    assert any(line.startswith("tiny-planted-1a2b3c4d: the planted twin") for line in told)
    assert any("original/slice-*" in line for line in told)


def test_the_proof_is_sealed_true_and_makes_a_later_check_intact(finished: Path) -> None:
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in place_of(finished).rglob("*") if path.is_file()}
    answer = do(finished)
    sealed = json.loads((finished / "erasure.json").read_bytes())
    proof = decode(Erasure, sealed["erasure"], where="erasure.json")
    assert sealed["sha256"] == digest(proof) and proof == answer
    for item in proof.removed:
        path = Path(os.path.normpath(finished / item.uri))
        assert before[path] == item.sha256, f"{item.uri} was known by its bytes"
    for ref in proof.replaced:
        content = (finished / ref.uri).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (ref.sha256, ref.bytes)
    source = load_source(str(next((place_of(finished) / "out" / "sources").iterdir())))
    assert source is not None and proof.generation == source.generation == 2
    assert proof.swept["versions"] == len(proof.removed) and proof.swept["index_rows"] == 11 - 4 + 12
    assert proof.started_at < proof.ended_at and not (finished / "erasure-plan.json").exists()
    found = verify(str(finished))
    assert (found.faults, found.erased) == ((), len(proof.removed))
    (finished / "erasure.json").write_bytes((finished / "erasure.json").read_bytes().replace(b'"images":4', b'"images":5'))
    assert any("erasure.json: changed" in fault for fault in verify(str(finished)).faults)


def test_no_file_holds_an_image_or_its_key(finished: Path) -> None:
    place = place_of(finished)
    (finished / "shards" / ".forget-000000.tar.x.part").write_bytes((finished / "shards" / "forget-000000.tar").read_bytes())
    assert len(holders(place / "out", place / "tars")) > len(FORGOTTEN)
    proof = do(finished)
    assert not holders(place / "out", place / "tars")
    for path in place.rglob("*.parquet"):  # whose pages may be compressed
        assert not set(FORGOTTEN) & set(pq.read_table(path, columns=["key"])["key"].to_pylist())
    assert proof.swept["temporary_parts"] == 1
    (stones,) = read_tombstones(str(place / "out"))
    assert set(stones.keys) == {hashlib.sha256(key.encode()).hexdigest() for key in FORGOTTEN}


def test_the_page_shows_no_picture_of_a_deleted_image_and_the_others_still(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real page
    pictures = {name: (finished / "evaluation" / f"grid_{name}.png").read_bytes() for name in ("0", "1", "retain")}
    shown = {name: base64.b64encode(content).decode() for name, content in pictures.items()}
    page = (finished / "report.html").read_text()
    assert all(text in page for text in shown.values()), "all are shown before"
    do(finished)
    page = (finished / "report.html").read_text()
    assert {name for name, text in shown.items() if text in page} == {"retain"}
    assert {path.name for path in (finished / "evaluation").glob("*.png")} == {"grid_retain.png"}
    figures = json.loads((finished / "report.json").read_text())["table"]
    assert figures and all(row["group"] in page for row in figures), "its figures stay"


def test_an_erased_run_is_refused_and_so_are_a_run_under_way_and_a_folder_without_one(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: no run lies here"):
        plan(tmp_path)
    receipt = finished / "receipts" / "release.json"
    kept = receipt.read_bytes()
    receipt.unlink()
    before = contents(place_of(finished))
    for act in (plan, do):
        with pytest.raises(ConfigError, match="the run has not ended, and needs these images"):
            act(finished)
    assert contents(place_of(finished)) == before
    receipt.write_bytes(kept)
    with lock(str(finished)), pytest.raises(StorageError, match="another run is at work"):
        do(finished)
    do(finished)
    after = contents(place_of(finished))
    for act in (plan, do):
        with pytest.raises(ConfigError, match=r"erased already; erasure\.json is the proof"):
            act(finished)
    assert contents(place_of(finished)) == after


def test_a_new_run_on_the_source_does_not_see_the_images_and_cannot_ask_for_them(finished: Path) -> None:
    place = place_of(finished)
    do(finished)
    run = prepare(place, source=tar_source(place), requests=[{"request_id": "r1", "keys": ["s0/img0", "s3/img1"]}])
    run_stage("shard", run)
    manifest = decode(Manifest, json.loads(Path(run, "manifest.json").read_bytes()), where="manifest")
    kept = {f"s{shard}/img{number}" for shard, count in enumerate((4, 2, 3, 2)) for number in range(count)} - set(FORGOTTEN)
    assert set(read_samples(run, manifest, "original").keys) == kept
    for requests in (REQUESTS[1:], [{"request_id": "r1", "prefix": "s1/"}]):
        again = prepare(place, source=tar_source(place), requests=requests)
        with pytest.raises(ConfigError, match="no such training image"):
            run_stage("shard", again)


def test_kept_ranges_of_all_that_is_removed_are_purged(finished: Path) -> None:
    folder = place_of(finished) / "cache"
    cache = RangeCache(str(folder), 1 << 20)
    tars = place_of(finished) / "tars"
    gone, stays = [f"{tars}/train-1.tar", f"{tars}/train-0.tar", f"{finished}/shards/forget-000000.tar"], f"{tars}/train-3.tar"
    for uri in (*gone, stays):
        for start in (0, 8):
            cache.get(uri, start, start + 8, b"m", lambda: b"8 bytes.")
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 8
    config = yaml.safe_load((finished / "config.yaml").read_text())
    set_config(finished, reading={**config["reading"], "cache_folder": str(folder)})
    assert do(finished).cached_ranges == 6
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert len(left) == 2 and {path.parent.name for path in left} == {hashlib.sha256(stays.encode()).hexdigest()}


def test_what_is_not_removed_is_named(finished: Path) -> None:
    """Other runs that hold the images, and weights of models that saw them."""
    place = place_of(finished)
    other = prepare(place, source=tar_source(place), requests=[{"request_id": "r1", "keys": ["s0/img0", "s2/img2"]}])
    run_stage("shard", other)
    (finished / "checkpoints" / "original").mkdir(parents=True)
    (finished / "checkpoints" / "original" / "model.safetensors").write_bytes(b"")
    remaining = do(finished).remaining
    assert remaining[0] == "checkpoints/original: weights of models that saw the images"
    assert remaining[1].startswith(f"{other}: 2 of the images in shards of this run: ") and len(remaining) == 2


def test_faulty_samples_that_nobody_looked_into_are_named(tmp_path: Path) -> None:
    section = tar_source(tmp_path)
    write_tar(tmp_path / "tars" / "train-8.tar", [*sample("s8/img0", 0, 800), ("s1/img9.png", picture(801))])
    run = finish(tmp_path, source=section, shards={"on_error": "quarantine"})
    told = "1 faulty shards or samples that were set aside: whose images they hold is not known"
    assert told in plan(run).remaining and told in do(run).remaining


def test_a_run_whose_shards_another_erasure_changed_is_refused_and_a_new_run_of_its_batch_is_not(finished: Path) -> None:
    """Both were cut from the same shards. With the other's rest in place of a shard, its images would come back."""
    place = place_of(finished)
    requests = [{"request_id": "q1", "keys": ["s0/img0"]}, {"request_id": "q2", "label": "two"}]
    groups = (("class two", "class"), ("single images", "images"))
    other = finish(place, requests=requests, groups=groups)
    do(finished)
    before = contents(place)
    for act in (plan, do):
        with pytest.raises(IntegrityError, match=r"train-0\.tar: changed or gone since .*; nothing was touched") as fault:
            act(other)
        assert "under another name=" in fault.value.cure
    assert contents(place) == before, "it can be looked into, and run again"
    again = finish(place, name="again", requests=requests, groups=groups)
    proof = do(again)
    assert (proof.images, proof.generation) == (1 + 3, 3)
    assert any(f"{other}: 4 of the images" in line for line in proof.remaining)
    left = load_source(str(next((place / "out" / "sources").iterdir())))
    assert left is not None and sum(shard.samples for shard in left.training) == 11 - 4 - 4


def test_tombstones_that_were_set_early_serve(finished: Path) -> None:
    place = place_of(finished)
    config = resolve(str(tar_run_file(place)))
    tombstone.run(BatchOrder(config=config, batch=read_batch(config)))
    before = contents(place / "out" / "tombstones")
    proof = do(finished)
    assert contents(place / "out" / "tombstones") == before
    assert proof.images == len(FORGOTTEN)


def test_a_moved_output_folder_is_erased_where_it_lies_now(tmp_path: Path) -> None:
    source = {"component": "synthetic", "samples": 40, "unseen_samples": 20, "size": 8, "classes_count": 3}
    run = finish(
        tmp_path,
        source=source,
        requests=[{"request_id": "r1", "label": "shape 1"}, {"request_id": "r2", "keys": ["train-000000"]}],
    )
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    before = contents(tmp_path / "out")
    proof = do(tmp_path / "moved" / run.name)
    assert contents(tmp_path / "out") == before
    assert len(list((tmp_path / "moved" / "tombstones").iterdir())) == 1
    assert not any(os.path.isabs(item.uri) for item in (*proof.removed, *proof.replaced))
    assert verify(str(tmp_path / "moved" / run.name)).faults == ()


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_shard_that_is_a_link_is_refused_because_its_bytes_would_stay(finished: Path, kind: str) -> None:
    place = place_of(finished)
    shard, other = place / "tars" / "train-0.tar", place / "elsewhere.tar"
    if kind == "hard":
        os.link(shard, other)
    else:
        shutil.move(shard, other)
        shard.symlink_to(other)
    before = contents(place)
    for act in (plan, do):
        with pytest.raises(StorageError, match=rf"train-0\.tar: .*{kind} link.*nothing was touched") as fault:
            act(finished)
        assert fault.value.cure
    assert contents(place) == before
    content = shard.read_bytes()
    shard.unlink()
    other.unlink()
    shard.write_bytes(content)
    do(finished)
    assert not holders(place / "out", place / "tars")


def test_a_changed_shard_is_named_and_nothing_is_removed(finished: Path) -> None:
    tars = place_of(finished) / "tars"
    (tars / "train-2.tar").write_bytes((tars / "train-3.tar").read_bytes())
    with pytest.raises(IntegrityError, match=r"train-2\.tar: changed since this run cut it") as fault:
        do(finished)
    assert fault.value.exit_code == 3 and fault.value.cure
    assert (tars / "train-1.tar").exists() and not (finished / "erasure.json").exists()
