"""The act `tombstone`: streams skip the batch's images from their next batch on, and they do not come in again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.acts import index, tombstone
from pipeline.config import ImagesConfig, ReadingConfig, RunConfig, read_batch, resolve
from pipeline.data import batch
from pipeline.data.samples import read_samples
from pipeline.data.stream import ImageReader, Stream
from pipeline.data.tombstones import read_tombstones, watch
from pipeline.decode import decode
from pipeline.errors import ConfigError, DataError
from pipeline.orders import BatchOrder, IndexOrder, TombstoneAnswer
from pipeline.records import Manifest
from pipeline.stages.runner import run_stage
from tests.pipeline.data.tars import drawing, picture, sample, write_tar
from tests.support.finished import FORGOTTEN, contents, tar_run_file, tar_source
from tests.support.runs import prepare


def order(folder: Path, **over: object) -> BatchOrder:
    config: RunConfig = resolve(str(tar_run_file(folder, **over)))
    return BatchOrder(config=config, batch=read_batch(config))


def marks(keys: list[str]) -> set[str]:
    return {hashlib.sha256(key.encode()).hexdigest() for key in keys}


def stream_of(folder: Path, run: str, split: str) -> Stream:
    """A stream as a stage makes it, of a run whose batch is another one."""
    manifest = decode(Manifest, json.loads(Path(run, "manifest.json").read_bytes()), where="manifest")
    samples = read_samples(run, manifest, split)
    reader = ImageReader(samples, size=4, channels=1, images=ImagesConfig(), folder=run, reading=ReadingConfig(threads=1))
    name = manifest.source_folder.rsplit("/", 1)[-1]
    return Stream(reader, batch_size=2, seed=0, salt="", tombstones=watch(str(folder / "out"), name))


def test_streams_at_work_skip_the_images_from_their_next_batch_on(tmp_path: Path) -> None:
    run = prepare(tmp_path, source=tar_source(tmp_path), requests=[{"request_id": "other", "keys": ["s3/img0"]}])
    run_stage("shard", run)
    stream = stream_of(tmp_path, run, "retain")
    steps = range(stream.steps_per_pass)
    before = [stream.batch(step) for step in steps]
    assert not any(made.skipped for made in before)
    answer = tombstone.run(order(tmp_path))
    assert answer.images == len(FORGOTTEN)
    skipped, keys = 0, []
    for step in steps:
        made = stream.batch(step)
        skipped, keys = skipped + made.skipped, [*keys, made.keys]
        dead = [key in FORGOTTEN for key in made.keys]
        assert made.skipped == sum(dead)
        assert [weight == 0 for weight in made.weights[: len(dead)]] == dead
        assert made.images[: len(dead)].any(axis=(1, 2, 3)).tolist() == [not one for one in dead]
    assert skipped == len(FORGOTTEN)
    assert keys == [made.keys for made in before], "the order of samples stays"
    stream.close()
    other = stream_of(tmp_path, run, "retain")
    assert sum(other.batch(step).skipped for step in steps) == len(FORGOTTEN), "a stream that begins now"
    other.close()


def test_the_source_is_indexed_where_need_be_and_the_file_holds_no_key(tmp_path: Path) -> None:
    answer = tombstone.run(order(tmp_path))
    assert (answer.images, Path(answer.file).parent) == (len(FORGOTTEN), tmp_path / "out" / "tombstones")
    text = answer.file + Path(answer.file).read_text()
    assert not [key for key in FORGOTTEN if key in text]
    (stones,) = read_tombstones(str(tmp_path / "out"))
    assert set(stones.keys) == marks(list(FORGOTTEN))
    assert set(stones.images) == {hashlib.sha256(picture(number)).hexdigest() for number in FORGOTTEN.values()}
    assert (tmp_path / "out" / "sources" / stones.source / "source.json").is_file()


def test_said_again_it_is_one_file_and_another_batch_has_another(tmp_path: Path) -> None:
    first = tombstone.run(order(tmp_path))
    assert tombstone.run(order(tmp_path)) == first
    other = tombstone.run(order(tmp_path, requests=[{"request_id": "r9", "keys": ["s3/img1"]}]))
    assert other.file != first.file and len(read_tombstones(str(tmp_path / "out"))) == 2


def test_a_deleted_image_is_refused_by_key_and_shard_when_it_comes_in_again(tmp_path: Path) -> None:
    asked = order(tmp_path)
    tombstone.run(asked)
    ask = IndexOrder(source=asked.config.source, output=asked.config.output)
    assert index.run(ask).generation == 1, "what waits for its erasure may lie there"
    write_tar(tmp_path / "tars" / "train-9.tar", [*sample("s9/new", 0, 700), *sample("s9/again", 0, FORGOTTEN["s1/img1"])])
    with pytest.raises(DataError, match=r"train-9\.tar: key 's9/again': this image was deleted on request") as fault:
        index.run(ask)
    assert fault.value.exit_code == 3 and fault.value.cure == "take the image out of the shard"
    other = IndexOrder(source={"component": "webdataset", "training": [f"{tmp_path}/tars/train-9.tar"]}, output=ask.output)
    with pytest.raises(DataError, match=r"train-9\.tar: key 's9/again'"):
        index.run(other)
    write_tar(tmp_path / "tars" / "train-9.tar", sample("s9/new", 0, 700))
    assert index.run(ask).training == 12


@pytest.mark.parametrize(("copies", "skipped"), [("include", 2), ("ignore", 1), ("stop", 1)])
def test_copies_have_tombstones_where_they_are_to_be_forgotten_too(tmp_path: Path, copies: str, skipped: int) -> None:
    """A batch that a run would stop for its copies has its tombstones all the same: they must not wait."""
    asked = order(tmp_path, requests=[{"request_id": "r1", "keys": ["s0/img0"], "copies": copies}])
    write_tar(tmp_path / "tars" / "train-9.tar", sample("s9/copy", 0, 1))
    answer: TombstoneAnswer = tombstone.run(asked)
    (stones,) = read_tombstones(asked.config.output)
    assert answer.images == skipped == len(stones.keys) and len(stones.images) == 1
    assert set(stones.keys) == marks(["s0/img0", "s9/copy"][:skipped])
    assert not list(tmp_path.rglob("copies.csv"))


@pytest.mark.parametrize(("copies", "found"), [("include", 2), ("ignore", 1), ("stop", 1)])
def test_near_copies_are_looked_for_only_where_a_request_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: str, found: int
) -> None:
    """The search decodes every image of the source: other batches must not wait for it."""
    searched = []
    kept = batch.hash_images
    monkeypatch.setattr(batch, "hash_images", lambda *words, **more: searched.append(words) or kept(*words, **more))
    asked = order(tmp_path, requests=[{"request_id": "r1", "keys": ["s8/drawn"], "copies": copies}], shards={"near_bits": 3})
    pictures = [("s8/drawn", "png", drawing(1)), ("s8/again", "jpg", drawing(1, "JPEG")), ("s8/other", "png", drawing(2))]
    members = [member for key, ext, image in pictures for member in ((f"{key}.cls", b"0"), (f"{key}.{ext}", image))]
    write_tar(tmp_path / "tars" / "train-8.tar", members)
    assert tombstone.run(asked).images == found
    assert bool(searched) == (copies == "include")


@pytest.mark.parametrize("requests", [[{"keys": ["nobody"]}], [{"prefix": "s"}], [{"label": "ten"}]])
def test_a_batch_that_means_nothing_or_everything_sets_no_tombstone(tmp_path: Path, requests: list[dict[str, object]]) -> None:
    index.run(IndexOrder(source=order(tmp_path).config.source, output=str(tmp_path / "out")))
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match="requests: "):
        tombstone.run(order(tmp_path, requests=[{"request_id": "r1", **requests[0]}]))
    assert contents(tmp_path / "out") == before
