"""The act `forecast`: what it names from the index alone is what the shard stage then does; nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import forecast, index
from pipeline.config import read_batch, resolve
from pipeline.decode import decode
from pipeline.errors import ConfigError, StorageError
from pipeline.orders import BatchOrder, IndexOrder
from pipeline.records import Manifest
from pipeline.stages.runner import run_stage
from pipeline.storage import join
from tests.pipeline.data.tars import sample, write_tar
from tests.support.finished import REQUESTS, contents, tar_run_file, tar_source
from tests.support.runs import prepare

BATCHES: dict[str, list[dict[str, Any]]] = {
    "a class and an image": REQUESTS,
    "one image": [{"request_id": "r1", "keys": ["s3/img1"]}],
    "a whole shard": [{"request_id": "r1", "prefix": "s1/"}],
    "two requests for one image": [{"request_id": "r1", "keys": ["s0/img3"]}, {"request_id": "r2", "prefix": "s0/img3"}],
    "an image and its copy": [{"request_id": "r1", "keys": ["s0/img0"], "copies": "include"}],
    "an image whose copy stays": [{"request_id": "r1", "keys": ["s0/img0"], "copies": "ignore"}],
    "an image of each shard": [
        {"request_id": "r1", "keys": [f"s{n}/img1" for n in range(4)]},
        {"request_id": "r2", "prefix": "s2/"},
    ],
}


def order(folder: Path, **over: Any) -> BatchOrder:
    config = resolve(str(tar_run_file(folder, **over)))
    return BatchOrder(config=config, batch=read_batch(config))


def indexed(folder: Path) -> None:
    source = tar_source(folder)
    write_tar(folder / "tars" / "train-4.tar", sample("s4/copy", 0, 1))
    index.run(IndexOrder(source=source, output=str(folder / "out")))


@pytest.mark.parametrize("name", BATCHES)
def test_what_is_foretold_is_what_the_shard_stage_does(tmp_path: Path, name: str) -> None:
    indexed(tmp_path)
    before = contents(tmp_path / "out")
    asked = order(tmp_path, requests=BATCHES[name])
    told = forecast.run(asked)
    assert contents(tmp_path / "out") == before, "a forecast writes nothing"
    run = prepare(tmp_path, source=tar_source(tmp_path), requests=BATCHES[name])
    run_stage("shard", run)
    manifest = decode(Manifest, json.loads(Path(run, "manifest.json").read_bytes()), where="manifest")
    retain, forget, original = (manifest.split(split) for split in ("retain", "forget", "original"))
    kept = {shard.uri for shard in retain.shards}
    cut = [join(run, shard.uri) for shard in original.shards if shard.uri not in kept]
    assert list(told.rewrite) == cut
    assert told.bytes_to_rewrite == sum(Path(uri).stat().st_size for uri in cut)
    assert (told.forget_samples, told.retain_samples) == (forget.samples, retain.samples)
    assert told.shards_clean == manifest.shards_clean
    assert list(told.groups) == [f"{group.name} ({group.kind}, {group.samples} images)" for group in manifest.groups]
    assert told.bytes_of["original"] == sum(path.stat().st_size for path in (tmp_path / "tars").glob("*.tar"))
    assert told.bytes_of["unseen"] == (tmp_path / "tars" / "unseen" / "unseen.tar").stat().st_size
    assert told.bytes_of["retain"] + told.bytes_of["forget"] == told.bytes_of["original"]
    own = [ref for ref in manifest.index if ref.uri != "shards/index.parquet"]
    assert told.index_bytes == sum(ref.bytes for ref in own) > 0


def test_a_source_without_an_index_is_said_to_have_none_and_nothing_is_written(tmp_path: Path) -> None:
    asked = order(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(StorageError, match=r"sources/webdataset-\w{8}: the source is not indexed yet") as fault:
        forecast.run(asked)
    assert fault.value.cure and contents(tmp_path) == before


def test_a_forecast_loads_no_torch_so_that_a_plan_answers_soon() -> None:
    code = "import sys, pipeline.__main__, pipeline.acts.forecast; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_shard_is_read(tmp_path: Path) -> None:
    indexed(tmp_path)
    asked = order(tmp_path)
    told = forecast.run(asked)
    for path in (tmp_path / "tars").glob("*.tar"):
        path.write_bytes(b"no longer a tar")
    assert forecast.run(asked) == told


@pytest.mark.parametrize(("requests", "message"), [({"keys": ["nobody"]}, "nobody"), ({"prefix": "s"}, "all 12 training images")])
def test_a_batch_that_means_nothing_or_everything_is_refused(tmp_path: Path, requests: dict[str, Any], message: str) -> None:
    indexed(tmp_path)
    with pytest.raises(ConfigError, match=message):
        forecast.run(order(tmp_path, requests=[{"request_id": "r1", **requests}]))
