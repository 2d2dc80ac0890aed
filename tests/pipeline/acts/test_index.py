"""The act `index`: one index however it was asked for, nothing read twice, and faults by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts.index import run
from pipeline.config import ShardsConfig
from pipeline.data import index, listing
from pipeline.data.batch import Source
from pipeline.data.pack import load_source
from pipeline.data.tombstones import Tombstones, write_tombstones
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.orders import IndexAnswer, IndexOrder
from tests.pipeline.data.tars import picture, sample, write_tar

SHARDS, SAMPLES = 8, 3


def write_shards(folder: Path, numbers: range = range(SHARDS), first: int = 0) -> None:
    for shard in numbers:
        members = [sample(f"s{shard}/img{place}", shard % 3, first + shard * SAMPLES + place) for place in range(SAMPLES)]
        write_tar(folder / f"train-{shard}.tar", [member for one in members for member in one])


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A folder of eight shards of three images."""
    write_shards(tmp_path / "tars")
    return tmp_path / "tars"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were read, as they were."""
    names: list[str] = []
    kept = index.read_shard

    def noted(uri: str, **options: Any) -> Any:
        names.append(os.path.basename(uri))
        return kept(uri, **options)

    monkeypatch.setattr(index, "read_shard", noted)
    return names


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of several parts even for eight shards."""
    monkeypatch.setattr(listing, "MOST_SHARDS", 2)


def order(*training: str | Path, output: Path, task: tuple[int, int] = (0, 1), **shards: Any) -> IndexOrder:
    source = {"component": "webdataset", "training": [str(uri) for uri in training]}
    return IndexOrder(source=source, output=str(output), shards=ShardsConfig(**shards), task=task)


def keys(answer: IndexAnswer) -> Iterator[str]:
    packed = load_source(answer.folder)
    assert packed is not None
    source = Source(packed, answer.folder)
    for shard in source.training:
        yield from source.rows(shard)["key"].to_pylist()


def test_a_folder_a_glob_a_brace_pattern_and_a_list_mean_the_same_images(tars: Path, tmp_path: Path) -> None:
    given = [[tars], [tars / "train-*.tar"], [tars / "train-{0..7}.tar"], [tars / f"train-{n}.tar" for n in range(SHARDS)]]
    answers = [run(order(*uris, output=tmp_path / "out")) for uris in given]
    wanted = [f"s{shard}/img{place}" for shard in range(SHARDS) for place in range(SAMPLES)]
    assert all(list(keys(answer)) == wanted for answer in answers)
    assert len({answer.folder for answer in answers}) == len(given), "each address has an index of its own"
    first = answers[0]
    assert (first.complete, first.generation, first.shards, first.training, first.unseen) == (True, 1, SHARDS, 24, 0)
    assert (first.classes, first.quarantine) == (3, ())
    assert first.bytes == sum(path.stat().st_size for path in tars.iterdir())


def test_tasks_together_make_the_index_that_one_makes_and_nothing_is_read_twice(
    tars: Path, tmp_path: Path, read: list[str], many_parts: None
) -> None:
    whole = run(order(tars, output=tmp_path / "whole"))
    assert len(list(Path(whole.folder, "index").iterdir())) >= 4
    read.clear()
    for number in (2, 0, 1):
        answer = run(order(tars, output=tmp_path / "tasks", task=(number, 3)))
        assert not answer.complete and not Path(answer.folder, "source.json").exists()
    assert sorted(read) == sorted(path.name for path in tars.iterdir()), "each shard by one task"
    read.clear()
    together = run(order(tars, output=tmp_path / "tasks"))
    assert together.complete and not read
    assert Path(together.folder, "source.json").read_bytes() == Path(whole.folder, "source.json").read_bytes()
    parts = [{path.name: path.read_bytes() for path in Path(answer.folder, "index").iterdir()} for answer in (whole, together)]
    assert parts[0] == parts[1]


def test_a_task_that_was_lost_is_made_good_by_the_last_run(tars: Path, tmp_path: Path, read: list[str], many_parts: None) -> None:
    run(order(tars, output=tmp_path / "out", task=(0, 2)))
    done = set(read)
    assert 0 < len(done) < SHARDS
    read.clear()
    assert run(order(tars, output=tmp_path / "out")).training == SHARDS * SAMPLES
    assert set(read) == {path.name for path in tars.iterdir()} - done


def test_a_refresh_reads_only_new_and_changed_shards(tars: Path, tmp_path: Path, read: list[str]) -> None:
    ask = order(tars, output=tmp_path / "out")
    assert run(ask).generation == 1 and len(read) == SHARDS
    read.clear()
    assert run(ask).generation == 1 and not read, "nothing changed"
    write_shards(tars, range(SHARDS, SHARDS + 2))
    write_shards(tars, range(3, 4), first=500)
    (tars / "train-5.tar").unlink()
    answer = run(ask)
    assert (answer.generation, answer.shards, answer.training) == (2, SHARDS + 1, (SHARDS + 1) * SAMPLES)
    assert sorted(read) == ["train-3.tar", "train-8.tar", "train-9.tar"]
    assert not any(key.startswith("s5/") for key in keys(answer))


def spoil(tars: Path, *numbers: int) -> None:
    for number in numbers:
        path = tars / f"train-{number}.tar"
        path.write_bytes(path.read_bytes()[:1000])


def test_a_bad_shard_stops_the_act_and_is_named(tars: Path, tmp_path: Path) -> None:
    spoil(tars, 4)
    with pytest.raises(DataError, match=r"train-4\.tar") as fault:
        run(order(tars, output=tmp_path / "out"))
    assert fault.value.exit_code == 3 and fault.value.cure
    assert not list(tmp_path.glob("out/sources/*/source.json"))


def test_bad_shards_and_samples_are_set_aside_and_listed_up_to_a_limit(tars: Path, tmp_path: Path) -> None:
    spoil(tars, 1, 4)
    write_tar(tars / "train-9.tar", [*sample("s9/good", 0, 900), ("s9/bad.cls", b"0")])
    answer = run(order(tars, output=tmp_path / "out", on_error="quarantine", max_quarantined=3))
    names = [line.split(": ")[0].rpartition("/")[2] for line in answer.quarantine]
    assert names == ["train-1.tar", "train-4.tar", "train-9.tar"] and "s9/bad" in answer.quarantine[2]
    assert (answer.shards, answer.training) == (SHARDS - 2 + 1, (SHARDS - 2) * SAMPLES + 1)
    with pytest.raises(DataError, match=r"train-1\.tar: .*3 faults in all, more than 2"):
        run(order(tars, output=tmp_path / "other", on_error="quarantine", max_quarantined=2))
    # What was tolerated then is not tolerated by a stricter order.
    with pytest.raises(DataError, match=r"train-1\.tar"):
        run(order(tars, output=tmp_path / "out"))


def test_a_shard_that_was_set_aside_comes_in_when_it_is_mended(tars: Path, tmp_path: Path) -> None:
    spoil(tars, 4)
    assert run(order(tars, output=tmp_path / "out", on_error="quarantine")).training == (SHARDS - 1) * SAMPLES
    write_shards(tars, range(4, 5))
    mended = run(order(tars, output=tmp_path / "out"))
    assert (mended.generation, mended.training, mended.quarantine) == (2, SHARDS * SAMPLES, ())


def test_an_image_with_a_tombstone_is_refused_by_key_and_shard_under_any_name(tars: Path, tmp_path: Path) -> None:
    mark = hashlib.sha256(picture(7)).hexdigest()
    run(order(tars, output=tmp_path / "out"))
    write_tombstones(str(tmp_path / "out"), Tombstones(batch_digest="ab" * 32, source="another", keys=(), images=(mark,)))
    assert run(order(tars, output=tmp_path / "out")).generation == 1, "what lay there before waits for its erasure"
    write_tar(tars / "train-8.tar", sample("s8/renamed", 0, 7))
    with pytest.raises(DataError, match=r"train-8\.tar: key 's8/renamed': this image was deleted on request"):
        run(order(tars, output=tmp_path / "out"))


@pytest.mark.parametrize(("number", "tasks"), [(3, 3), (9, 3), (-1, 2)])
def test_a_task_that_is_none_is_refused(tars: Path, tmp_path: Path, number: int, tasks: int) -> None:
    with pytest.raises(ConfigError, match=f"--task {number}/{tasks}: tasks are numbered from 0") as fault:
        run(order(tars, output=tmp_path / "out", task=(number, tasks)))
    assert fault.value.cure == f"write 0/{tasks} to {tasks - 1}/{tasks}"


def test_a_source_that_must_be_packed_is_packed_once_and_by_one_task(tmp_path: Path) -> None:
    source = {"component": "synthetic", "samples": 30, "unseen_samples": 20, "size": 8}
    with pytest.raises(ConfigError, match="source synthetic: packed by one task only"):
        run(IndexOrder(source=source, output=str(tmp_path), task=(0, 2)))
    assert not list(tmp_path.iterdir())
    first = run(IndexOrder(source=source, output=str(tmp_path)))
    assert (first.training, first.unseen, first.complete) == (30, 20, True)
    stamps = {path: path.stat().st_mtime_ns for path in Path(first.folder).rglob("*.tar")}
    assert run(IndexOrder(source=source, output=str(tmp_path))) == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_missing_shard_and_an_empty_folder_are_named(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"train-8\.tar: not found"):
        run(order(tars / "train-{0..12..4}.tar", output=tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty': no \.tar there"):
        run(order(tmp_path / "empty", output=tmp_path / "out"))
