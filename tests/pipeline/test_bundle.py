"""What of a run is published, under which names, and what never is."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from pipeline.bundle import (
    copy_file,
    hash_files,
    is_bundle,
    names_below,
    public_manifest,
    published_names,
    read_receipts,
    read_run_manifest,
    stage_files,
    version_name,
)
from pipeline.decode import canonical, digest
from pipeline.errors import IntegrityError, StorageError
from pipeline.records import FileRef, Receipt
from pipeline.storage import hash_file, publish_bytes
from tests.support.finished import finish


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("run"))


def test_files_are_copied_as_their_receipts_say(run: Path, tmp_path: Path) -> None:
    refs = stage_files(str(run), tmp_path, {"more.json": b"{}"})
    assert {ref.uri: ref.sha256 for ref in refs} == hash_files(str(tmp_path))
    assert hash_file(str(tmp_path / "README.md")).sha256 == hash_file(str(run / "weights/README.md")).sha256
    assert {"model.safetensors", "config.json", "receipts/shard.json", "manifest.json", "more.json"} <= {ref.uri for ref in refs}


def test_the_librarys_own_layout_keeps_its_folder() -> None:
    names = ("weights/pretrained/config.json", "report.json", "metrics/x.jsonl")
    outputs = tuple(FileRef(uri=name, sha256="a", bytes=1) for name in names)
    times = {"started_at": "", "ended_at": ""}
    stage = Receipt(stage="release", inputs={}, outputs=outputs, config_digest="", code_version="", world_size=1, **times)
    assert published_names(stage).keys() == {"pretrained/config.json", "report.json"}


def test_a_changed_file_is_named(run: Path, tmp_path: Path) -> None:
    file = run / "weights" / "model.safetensors"
    before = file.read_bytes()
    file.write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"weights/model\.safetensors: not the bytes"):
        stage_files(str(run), tmp_path, {})
    file.write_bytes(before)


def test_a_run_that_has_not_ended_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has not ended"):
        stage_files(str(tmp_path), tmp_path / "target", {})


def test_the_public_manifest_has_no_address_and_no_digest_of_keys(run: Path) -> None:
    manifest = read_run_manifest(str(run))
    told = canonical(public_manifest(manifest)).decode()
    for split in manifest.splits:
        assert split.keys_digest not in told
        for shard in split.shards:
            assert shard.uri not in told and shard.keys_digest not in told
    found = json.loads(told)
    assert found["manifest_digest"] == digest(manifest)
    assert {split["name"]: split["samples"] for split in found["splits"]}["forget"] == 4
    assert [split["name"] for split in found["splits"] if "contents" in split] == ["retain", "calibration", "holdout"]


def test_equal_files_have_an_equal_name_whatever_their_order(run: Path) -> None:
    refs = [FileRef(uri=name, sha256=name * 2, bytes=1) for name in "abc"]
    assert version_name("demo-1", refs) == version_name("demo-1", refs[::-1])
    assert version_name("demo-1", refs) != version_name("demo-1", refs[1:])


def test_receipts_and_manifest_that_were_changed_are_named(run: Path, tmp_path: Path) -> None:
    assert len(read_receipts(str(run))) == 8
    (tmp_path / "receipts").mkdir()
    (tmp_path / "receipts" / "shard.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"shard\.json: not a receipt"):
        read_receipts(str(tmp_path))
    for content in ("", "{}"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            read_run_manifest(str(tmp_path))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_names_are_relative_on_any_storage(tmp_path: Path, kind: str) -> None:
    folder = str(tmp_path / "a b") if kind == "local" else f"memory://bundle-{uuid.uuid4().hex}/a b"
    assert names_below(folder) == {} and not is_bundle(folder)
    ref = publish_bytes(f"{folder}/x/model.sig", b"1")
    assert hash_files(folder) == {"x/model.sig": ref.sha256}
    assert copy_file(f"{folder}/x/model.sig", f"{folder}/model.sig").sha256 == ref.sha256
    assert is_bundle(folder)
    publish_bytes(f"{folder}/config.yaml", b"")
    assert not is_bundle(folder)
