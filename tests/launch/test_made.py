"""What a run made is read from its manifest and receipts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.batch_run import BatchRun
from launch.made import made_by, stage_seconds
from launch.policy import SchedulePolicy, run_of
from pipeline.config import run_folder
from pipeline.errors import IntegrityError
from pipeline.records import DeletionRequest, RequestBatch, Selector
from tests.support.schedule import write_finished, write_line


def finished(place: Path, **over: object) -> Path:
    config = run_of(SchedulePolicy(), write_line(place, **over))
    batch = RequestBatch(requests=(DeletionRequest(request_id="r1", selector=Selector(kind="keys", values=("k",))),))
    folder = Path(run_folder(config, batch))
    folder.mkdir(parents=True)
    write_finished(folder, BatchRun(batch_id="b", config=config, batch=batch, folder=str(folder), cluster="", jobs={}))
    return folder


def test_models_come_with_their_parents_and_shards(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    original, unlearned = made_by(str(folder))
    assert (original.kind, original.parent, original.verdict) == ("original", None, "")
    assert (unlearned.kind, unlearned.parent, unlearned.verdict) == ("unlearned", original.model_id, "passed")
    sources = str(folder.parent / "sources")
    assert {(Path(item.uri).name, item.role) for item in original.seen} == {("0.tar", "trained"), ("1.tar", "trained")}
    assert {(item.uri, item.role) for item in unlearned.seen} == {
        (f"{sources}/0.tar", "trained"),
        (f"{folder}/shards/rewritten.tar", "trained"),
        (f"{folder}/shards/forget.tar", "forgotten"),
        # The source's own shard that held what was forgotten.
        (f"{sources}/1.tar", "forgotten"),
    }


def test_given_weights_saw_nothing_here(tmp_path: Path) -> None:
    given, unlearned = made_by(str(finished(tmp_path, original="s3://bucket/model.safetensors")))
    assert (given.kind, given.seen) == ("given", ()) and unlearned.parent == given.model_id


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match="not a manifest"):
        made_by(str(folder))


def test_receipts_tell_how_long_a_run_took(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert stage_seconds(str(folder)) == 7200.0
    assert stage_seconds(str(tmp_path / "nowhere")) is None
    receipt = folder / "receipts" / "train.json"
    sealed = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**sealed, "sha256": "0"}))
    assert stage_seconds(str(folder)) is None
