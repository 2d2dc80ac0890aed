"""Erasure: nothing of a deleted image is left below the output folder or in the source, whenever it was broken off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import RunConfig, resolve
from pipeline.data import erase
from pipeline.data.batch import Settings
from pipeline.data.erase import Erasing
from pipeline.data.pack import load_source, pack
from pipeline.data.partition import partition
from pipeline.data.shards import read_shard
from pipeline.data.sources.webdataset import Config, build
from pipeline.decode import canonical
from pipeline.errors import DataError, IntegrityError
from pipeline.records import Manifest, RequestBatch
from tests.pipeline.data.tars import batch, packed, picture
from tests.support.runs import write_run_file

LAYOUT = [[0, 1, 2, 0], [1, 1], [2, 2, 0], [0, 0]]
"""Labels by shard: forgetting class one empties the second shard, and leaves the last two as they are."""
FORGOTTEN = {"s0/img1": 2, "s1/img0": 5, "s1/img1": 6, "s2/img2": 9}
"""Key to number of its picture, for label one and a single key."""


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, RunConfig, Manifest]:
    """A run folder as the shard stage leaves it, its configuration and its manifest."""
    source, where, _ = packed(tmp_path, LAYOUT)
    folder = tmp_path / "out" / "run-1"
    wanted: RequestBatch = batch(label=["one"], keys=["s2/img2"])
    manifest = partition(
        wanted,
        source,
        source_folder=where,
        folder=str(folder),
        output=str(tmp_path / "out"),
        run_id="run-1",
        seed=0,
        settings=Settings(near_bits=None),
    )
    (folder / "shards" / "batch.json").write_bytes(canonical(wanted))
    config = resolve(str(write_run_file(tmp_path, name="run")))
    return folder, dataclasses.replace(config, output=str(tmp_path / "out")), manifest


def work(folder: Path, config: RunConfig, manifest: Manifest, planned: tuple | None = None) -> tuple:
    """The acts of an erasure in their order, after its plan."""
    erasing = Erasing(str(folder), config, manifest)
    planned = planned or erasing.plan()
    assert erasing.locks(planned) == ()
    stones = erasing.tombstones()
    erasing.put_rest()
    after = erasing.publish_generation()
    erasing.remove(planned)
    erasing.sweep(after, planned, stones)
    return planned


def traces(root: Path) -> Iterator[str]:
    """Files below a folder that hold the bytes of a forgotten picture, or one of the forgotten keys."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            for key, number in FORGOTTEN.items():
                if picture(number) in content or key.encode() in content:
                    yield f"{path.relative_to(root)}: {key}"


def test_no_trace_is_left_in_place_or_in_the_run(tmp_path: Path, run: tuple[Path, RunConfig, Manifest]) -> None:
    folder, _, manifest = run
    assert list(traces(tmp_path)), "the pictures and keys can be found before"
    planned = work(*run)
    assert not list(traces(tmp_path))
    assert len({item.uri for item in planned if item.uri.endswith(".tar")}) == 3 + 1, "three shards, and the forget shard"
    assert all(item.sha256 for item in planned)
    kept = {sample.key for name in ("train-0", "train-2", "train-3") for sample in read_shard(f"{tmp_path}/tars/{name}.tar")[0]}
    everything = {f"s{shard}/img{place}" for shard, labels in enumerate(LAYOUT) for place in range(len(labels))}
    assert kept == everything - set(FORGOTTEN)
    assert not (tmp_path / "tars" / "train-1.tar").exists(), "nothing was left of it"
    after = load_source(str(folder / manifest.source_folder))
    assert after is not None and after.generation == 2
    assert after.erased == (str(tmp_path / "tars" / "train-1.tar"),)


def test_the_source_can_be_used_again_by_the_same_addresses(tmp_path: Path, run: tuple[Path, RunConfig, Manifest]) -> None:
    work(*run)
    tars = [str(tmp_path / "tars" / f"train-{number}.tar") for number in range(len(LAYOUT))]
    config = Config(training=tuple(tars), unseen=(str(tmp_path / "tars" / "unseen.tar"),), classes=("zero", "one", "two"))
    again, _ = pack(build(config), name="webdataset", output=str(tmp_path / "out"))
    assert again is not None and sum(shard.samples for shard in again.training) == 11 - len(FORGOTTEN)


def test_a_deleted_image_is_refused_when_it_comes_back(tmp_path: Path, run: tuple[Path, RunConfig, Manifest]) -> None:
    original = (tmp_path / "tars" / "train-2.tar").read_bytes()
    work(*run)
    (tmp_path / "tars" / "train-2.tar").write_bytes(original)
    tars = [str(tmp_path / "tars" / f"train-{number}.tar") for number in range(len(LAYOUT))]
    config = Config(training=tuple(tars), unseen=(str(tmp_path / "tars" / "unseen.tar"),), classes=("zero", "one", "two"))
    with pytest.raises(DataError, match=r"train-2\.tar: key 's2/img2': this image was deleted on request"):
        pack(build(config), name="webdataset", output=str(tmp_path / "out"))


@pytest.mark.parametrize("broken_off", range(9))
def test_broken_off_after_any_act_it_is_finished_by_repeating(
    tmp_path: Path, run: tuple[Path, RunConfig, Manifest], monkeypatch: pytest.MonkeyPatch, broken_off: int
) -> None:
    """Every act of the storage counts as one: a shard published, a version removed, `source.json` written."""
    left = broken_off
    planned = Erasing(str(run[0]), run[1], run[2]).plan()

    class Killed(BaseException):
        pass

    def counted(act):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return act(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("_copy", "remove", "regenerate", "write_tombstones"):
            patch.setattr(erase, name, counted(getattr(erase, name)))
        with pytest.raises(Killed):
            work(*run, planned)
    work(*run, planned)
    assert not list(traces(tmp_path))


def test_a_shard_that_another_erasure_changed_is_not_overwritten(tmp_path: Path, run: tuple[Path, RunConfig, Manifest]) -> None:
    """Else what the other batch deleted would come back with our copy of the rest."""
    other = read_shard(f"{tmp_path}/tars/train-3.tar")
    assert other
    (tmp_path / "tars" / "train-0.tar").write_bytes((tmp_path / "tars" / "train-3.tar").read_bytes())
    with pytest.raises(IntegrityError, match=r"train-0\.tar: changed since this run cut it"):
        work(*run)


def test_other_runs_that_hold_the_images_are_named(tmp_path: Path, run: tuple[Path, RunConfig, Manifest]) -> None:
    folder, config, manifest = run
    source = load_source(str(folder / manifest.source_folder))
    assert source is not None
    partition(
        batch(keys=["s0/img0"]),
        source,
        source_folder=str((folder / manifest.source_folder).resolve()),
        folder=str(tmp_path / "out" / "run-2"),
        output=str(tmp_path / "out"),
        run_id="run-2",
        seed=0,
        settings=Settings(near_bits=None),
    )
    erasing = Erasing(str(folder), config, manifest)
    stones = erasing.tombstones()
    (line,) = erasing.elsewhere(stones)
    assert "run-2: 1 of the images" in line, "img1 lies in the other run's rewritten first shard"
