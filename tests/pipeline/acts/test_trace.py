"""Where images lie in a run's data, as counts: no key is in the answer, and what the run skipped is not counted as read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.acts import tombstone, trace
from pipeline.config import read_run
from pipeline.decode import canonical, decode
from pipeline.errors import IntegrityError
from pipeline.orders import BatchOrder
from pipeline.records import DeletionRequest, RequestBatch, Selector
from pipeline.requests import batch_digest
from pipeline.schedule_orders import TracedRun, TraceOrder
from pipeline.stages.runner import run_stage
from tests.support.runs import prepare

REQUESTS = [{"request_id": "r1", "keys": ["train-000000", "train-000002"]}, {"request_id": "r2", "label": "shape 1"}]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose first stage is done."""
    run = prepare(tmp_path_factory.mktemp("traced"), requests=REQUESTS)
    run_stage("shard", run)
    return run


def ask(run: str, kind: str, *values: str, skipped: tuple[str, ...] = ()) -> TracedRun:
    asked = DeletionRequest(request_id="asked", selector=Selector(kind=kind, values=values))  # type: ignore[arg-type]
    answer = trace.run(TraceOrder(folders=(run,), requests=(asked,), skipped={run: skipped}))
    assert not any(key in canonical(answer).decode() for key in ("train-000002", "train-000003", "train-000005"))
    return answer.runs[0]


def test_images_are_counted_by_split_and_shard(cut: str) -> None:
    found = ask(cut, "keys", "train-000002", "train-000003")
    assert (found.state, dict(found.images)) == ("read", {"original": 2, "forget": 1, "retain": 1})
    assert {(shard.split, shard.images) for shard in found.shards} == {("original", 2), ("forget", 1), ("retain", 1)}
    assert found.requests == ("r1",)
    manifest = json.loads(Path(cut, "manifest.json").read_text())
    known = {ref["sha256"] for split in manifest["splits"] for ref in split["shards"]}
    assert {shard.sha256 for shard in found.shards} <= known and all(Path(shard.uri).is_file() for shard in found.shards)


def test_requests_of_other_kinds_are_found_by_what_they_mean(cut: str) -> None:
    assert ask(cut, "keys", "train-000005").requests == ("r2",)  # of the class
    assert dict(ask(cut, "prefix", "train-00000").images) == {"original": 10, "forget": 5, "retain": 5}
    assert ask(cut, "label", "no such class") == TracedRun(
        folder=cut, state="read", images={"original": 0, "forget": 0, "retain": 0}
    )
    assert ask(cut, "likeness", "0f" * 8).images == {"original": 0, "forget": 0, "retain": 0}


def test_what_has_a_tombstone_was_read_by_nobody_but_who_was_to_forget_it(cut: str, tmp_path: Path) -> None:
    shutil.copytree(Path(cut).parent, tmp_path / "out")
    run = str(tmp_path / "out" / Path(cut).name)
    other = (DeletionRequest(request_id="x", selector=Selector(kind="keys", values=("train-000002", "train-000003"))),)
    batch = RequestBatch(requests=other)
    config = read_run(cut)
    config = decode(type(config), {**json.loads(canonical(config)), "output": str(tmp_path / "out")}, where="test")
    tombstone.run(BatchOrder(config=config, batch=batch))
    digest = batch_digest(batch)
    asked = ("train-000002", "train-000003", "train-000004")
    assert dict(ask(run, "keys", *asked).images) == {"original": 3, "forget": 1, "retain": 2}
    assert dict(ask(run, "keys", *asked, skipped=(digest,)).images) == {"original": 1, "forget": 1, "retain": 1}


def test_what_is_gone_is_told(cut: str, tmp_path: Path) -> None:
    shutil.copytree(Path(cut).parent, tmp_path / "out")
    run = tmp_path / "out" / Path(cut).name
    (run / "shards" / "index.parquet").unlink()
    (run / "shards" / "batch.json").unlink()
    found = ask(str(run), "keys", "train-000003")
    assert (found.state, found.requests, found.images["forget"]) == ("part", (), 0)
    shutil.rmtree(tmp_path / "out" / "sources")
    assert ask(str(run), "keys", "train-000003") == TracedRun(folder=str(run), state="gone")
    (run / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match="changed after it was written"):
        ask(str(run), "keys", "train-000003")
    (run / "manifest.json").unlink()
    assert ask(str(run), "keys", "train-000003").state == "gone"
