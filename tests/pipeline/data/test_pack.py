"""Packing: equal bytes for equal images, reuse of a finished folder, and no half-packed one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.index import read_table
from pipeline.data.pack import PackedSource, pack
from pipeline.data.shards import read_shard
from pipeline.data.sources.base import SourceImage
from pipeline.data.sources.synthetic import Config, build
from pipeline.data.sources.webdataset import Config as ShardsConfig
from pipeline.data.sources.webdataset import build as build_shards
from pipeline.decode import decode, digest
from pipeline.errors import DataError
from tests.pipeline.data.tars import picture, sample, write_tar

SMALL = Config(samples=25, unseen_samples=8, size=8)


def _pack(output: Path, **options: object) -> tuple[PackedSource, str]:
    return pack(build(SMALL), name="synthetic", output=str(output), samples_per_shard=10, **options)  # type: ignore[arg-type]


class Broken:
    """An image source that fails, or repeats a key, after a few images."""

    classes = ("zero",)

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def identity(self) -> str:
        return digest(self.fault)

    def training(self) -> Iterator[SourceImage]:
        for number in range(0 if self.fault == "empty" else 5):
            label = 1 if self.fault == "label" and number == 3 else 0
            yield SourceImage(key="k0" if self.fault == "twice" else f"k{number}", image=picture(number), ext="png", label=label)
        if self.fault == "raise":
            raise OSError("gone")

    def unseen(self) -> Iterator[SourceImage]:
        yield SourceImage(key="u", image=picture(99), ext="png", label=0)


def test_all_images_are_packed_in_order_with_their_labels(tmp_path: Path) -> None:
    packed, folder = _pack(tmp_path)
    assert [ref.uri for ref in packed.training] == [f"train-{n:06d}.tar" for n in range(3)]
    assert [ref.samples for ref in packed.shards] == [10, 10, 5, 8]
    found = [s for ref in packed.training for s in read_shard(f"{folder}/{ref.uri}")[0]]
    given = list(build(SMALL).training())
    assert [(s.key, s.label, s.sha256) for s in found] == [(g.key, g.label, hashlib.sha256(g.image).hexdigest()) for g in given]
    table = read_table(f"{folder}/{packed.index.uri}", packed.index)
    assert table["shard"].to_pylist() == [0] * 10 + [1] * 10 + [2] * 5 + [3] * 8


def test_equal_images_give_equal_bytes(tmp_path: Path) -> None:
    (one, first), (two, second) = _pack(tmp_path / "a"), _pack(tmp_path / "b", workers=2)
    assert one == two
    for name in sorted(path.name for path in Path(first).iterdir()):
        assert (Path(first) / name).read_bytes() == (Path(second) / name).read_bytes(), name


def test_a_finished_folder_is_used_again_untouched(tmp_path: Path) -> None:
    packed, folder = _pack(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    told: list[str] = []
    again, where = _pack(tmp_path, progress=lambda act, done: told.append(act))
    assert (again, where, told) == (packed, folder, [])
    assert {path: path.stat().st_mtime_ns for path in Path(folder).iterdir()} == before
    decoded = decode(PackedSource, json.loads((Path(folder) / "source.json").read_bytes()), where="source.json")
    assert decoded == packed


@pytest.mark.parametrize("damage", ["shorter shard", "no shard", "no record", "broken record"])
def test_a_damaged_folder_is_packed_again(tmp_path: Path, damage: str) -> None:
    packed, folder = _pack(tmp_path)
    shard, source = Path(folder) / "train-000001.tar", Path(folder) / "source.json"
    whole, content = shard.read_bytes(), source.read_bytes()
    if damage == "shorter shard":
        shard.write_bytes(whole[:-512])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "no record":
        source.unlink()
    else:
        source.write_bytes(content[:50])
    assert _pack(tmp_path)[0] == packed
    assert shard.read_bytes() == whole and source.read_bytes() == content


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("twice", "key 'k0'"),
        ("label", "key 'k3': label 1, but only 1 classes are named"),
        ("empty", "no training image"),
        ("raise", "gone"),
    ],
)
def test_a_source_that_fails_leaves_no_folder(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises((DataError, OSError), match=message):
        pack(Broken(fault), name="broken", output=str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_shards_stay_where_they_are(tmp_path: Path) -> None:
    uri = write_tar(tmp_path / "far" / "s.tar", [*sample("a", 0), *sample("b", 2)])
    packed, folder = pack(build_shards(ShardsConfig(training=(uri,))), name="webdataset", output=str(tmp_path / "out"))
    assert [ref.uri for ref in packed.training] == [uri] and packed.unseen == ()
    assert packed.classes == ("0", "1", "2")
    assert sorted(path.name for path in Path(folder).iterdir()) == ["index.parquet", "source.json"]


def test_long_and_foreign_keys_are_packed(tmp_path: Path) -> None:
    class Long(Broken):
        def training(self) -> Iterator[SourceImage]:
            yield SourceImage(key="ключ-" * 40, image=picture(1), ext="png", label=0)

    packed, folder = pack(Long("long"), name="long", output=str(tmp_path))
    assert read_shard(f"{folder}/train-000000.tar")[0][0].key == "ключ-" * 40
    assert packed.training[0].samples == 1
