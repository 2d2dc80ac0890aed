"""Packing: equal bytes for equal images, reuse of a finished folder, refresh of shards in place, no half-packed folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ShardsConfig
from pipeline.data import index, listing
from pipeline.data.index import read_part
from pipeline.data.pack import PackedSource, load_source, pack, source_folder
from pipeline.data.rows import read_row_group
from pipeline.data.shards import read_shard
from pipeline.data.sources.base import SourceImage
from pipeline.data.sources.synthetic import Config, build
from pipeline.data.sources.webdataset import Config as InPlace
from pipeline.data.sources.webdataset import build as build_shards
from pipeline.data.tombstones import Tombstones, write_tombstones
from pipeline.decode import decode, digest
from pipeline.errors import DataError, StorageError
from pipeline.storage import join, read_bytes
from tests.pipeline.data.tars import picture, sample, write_tar

SMALL = Config(samples=25, unseen_samples=8, size=8)


def _pack(output: object, **options: Any) -> tuple[PackedSource, str]:
    packed, folder = pack(build(SMALL), name="synthetic", output=str(output), samples_per_shard=10, **options)
    assert packed is not None
    return packed, folder


def _in_place(root: Path, **options: Any) -> tuple[PackedSource, str]:
    """The shards `root/t/*.tar` as training images and `root/u/*.tar` as unseen ones, indexed below `root/out`."""
    unseen = (f"{root}/u",) if (root / "u").exists() else ()
    config = InPlace(training=(f"{root}/t",), unseen=unseen, classes=options.pop("classes", ()))
    packed, folder = pack(build_shards(config), name="webdataset", output=str(root / "out"), workers=1, **options)
    assert packed is not None
    return packed, folder


def _keys(packed: PackedSource, folder: str) -> list[str]:
    digests = {ref.uri: ref.sha256 for ref in packed.index}
    tables = (read_row_group(join(folder, ref.index), digests[ref.index], ref.row_group) for ref in packed.shards)
    return [key for table in tables for key in table["key"].to_pylist()]


def _files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


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
    assert [(s.key, s.label, s.sha256) for s in found] == [(g.key, g.label, hashlib.sha256(g.image).digest()) for g in given]
    assert _keys(packed, folder) == [g.key for g in (*given, *build(SMALL).unseen())]
    assert packed.classes == build(SMALL).classes and packed.generation == 1 and packed.quarantine == ()


def test_equal_images_give_equal_bytes(tmp_path: Path) -> None:
    (_, first), (_, second) = _pack(tmp_path / "a"), _pack(tmp_path / "b", workers=2)
    tars = sorted(Path(first).glob("*.tar"))
    assert len(tars) == 4
    for path in tars:
        assert (Path(second) / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_finished_folder_is_used_again_untouched(tmp_path: Path) -> None:
    packed, folder = _pack(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}
    told: list[str] = []
    again, where = _pack(tmp_path, progress=lambda act, done: told.append(act))
    assert (again, where, told) == (packed, folder, [])
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")} == before
    decoded = decode(PackedSource, json.loads((Path(folder) / "source.json").read_bytes()), where="source.json")
    assert decoded == packed == load_source(folder)


def test_progress_is_told_of_both_acts(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    _pack(tmp_path, progress=lambda act, done: told.append((act, done)))
    assert told[:4] == [("pack", 10), ("pack", 20), ("pack", 25), ("pack", 8)]
    assert told[-1] == ("index", 33) and {act for act, _ in told[4:]} == {"index"}


@pytest.mark.parametrize("damage", ["shorter shard", "no shard", "no record", "broken record", "no index"])
def test_a_damaged_folder_is_packed_again(tmp_path: Path, damage: str) -> None:
    packed, folder = _pack(tmp_path)
    shard, source = Path(folder) / "train-000001.tar", Path(folder) / "source.json"
    whole = shard.read_bytes()
    if damage == "shorter shard":
        shard.write_bytes(whole[:-512])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "no record":
        source.unlink()
    elif damage == "no index":
        (Path(folder) / packed.index[0].uri).unlink()
    else:
        source.write_bytes(source.read_bytes()[:50])
    assert load_source(folder) is None
    again = _pack(tmp_path)[0]
    assert shard.read_bytes() == whole and load_source(folder) == again
    assert [ref.sha256 for ref in again.shards] == [ref.sha256 for ref in packed.shards]


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


def test_long_and_foreign_keys_are_packed(tmp_path: Path) -> None:
    class Long(Broken):
        def training(self) -> Iterator[SourceImage]:
            yield SourceImage(key="ключ-" * 40, image=picture(1), ext="png", label=0)

    packed, folder = pack(Long("long"), name="long", output=str(tmp_path))
    assert packed is not None and _keys(packed, folder) == ["ключ-" * 40, "u"]
    assert read_shard(f"{folder}/train-000000.tar")[0][0].key == "ключ-" * 40


def test_a_packed_image_with_a_tombstone_is_refused(tmp_path: Path) -> None:
    image = hashlib.sha256(picture(2)).hexdigest()
    write_tombstones(str(tmp_path), Tombstones(batch_digest="b" * 64, source="other", keys=(), images=(image,)))
    with pytest.raises(DataError, match="key 'k2': this image was deleted on request"):
        pack(Broken(""), name="broken", output=str(tmp_path))
    assert not list(tmp_path.rglob("*.tar"))


def test_two_runs_do_not_pack_at_once(tmp_path: Path) -> None:
    _, folder = source_folder(build(SMALL), name="synthetic", output=str(tmp_path), samples_per_shard=10)
    text = (
        f"import sys\nfrom pipeline.storage import lock\nwith lock({folder!r}):\n    print(1, flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        with pytest.raises(StorageError, match="another run is at work") as caught:
            _pack(tmp_path)
        assert folder in caught.value.message
        other.communicate(b"\n")
    assert _pack(tmp_path)[1] == folder


def test_other_storage_takes_packed_sources() -> None:
    packed, folder = _pack("memory://packed")
    assert folder.startswith("memory://packed/sources/synthetic-")
    assert len(_keys(packed, folder)) == 33 and _pack("memory://packed") == (packed, folder)
    assert hashlib.sha256(read_bytes(f"{folder}/{packed.training[0].uri}")).hexdigest() == packed.training[0].sha256


def test_shards_stay_where_they_are(tmp_path: Path) -> None:
    uri = write_tar(tmp_path / "t" / "s.tar", [*sample("a", 0), *sample("b", 2)])
    packed, folder = _in_place(tmp_path)
    assert [ref.uri for ref in packed.training] == [uri] and packed.unseen == ()
    assert packed.classes == ("0", "1", "2")
    assert set(_files(folder)) - {".lock"} == {packed.index[0].uri, "source.json"}
    assert _keys(packed, folder) == ["a", "b"]


def test_a_label_beyond_the_named_classes_is_named(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / "t" / f"{number}.tar", [*sample(f"{number}/a", 0), *sample(f"{number}/b", number)])
    with pytest.raises(DataError, match=r"2\.tar: key '2/b': label 2, but only 2 classes are named"):
        _in_place(tmp_path, classes=("zero", "one"))
    assert not list(tmp_path.rglob("source.json"))


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def counted(uri: str, **options: Any) -> Any:
        found.append(Path(uri).stem)
        return read_shard(uri, **options)

    monkeypatch.setattr(index, "read_shard", counted)
    return found


def test_shards_in_place_are_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_SHARDS", 2)
    for number in range(5):
        write_tar(tmp_path / "t" / f"t{number}.tar", sample(f"t{number}/a", 0, number))
    write_tar(tmp_path / "u" / "u.tar", sample("u/a", 1, 50))
    reads = _count_reads(monkeypatch)
    first, folder = _in_place(tmp_path)
    assert first.generation == 1 and len(reads) == 6
    files = _files(folder)
    reads.clear()
    assert _in_place(tmp_path) == (first, folder) and reads == []
    # One shard more, one changed, one taken away.
    write_tar(tmp_path / "t" / "t5.tar", sample("t5/a", 0, 5))
    changed = tmp_path / "t" / "t1.tar"
    later = changed.stat().st_mtime_ns + 10_000_000
    write_tar(changed, [*sample("t1/a", 0, 1), *sample("t1/b", 2, 11)])
    os.utime(changed, ns=(later, later))
    (tmp_path / "t" / "t3.tar").unlink()
    second, same = _in_place(tmp_path)
    assert same == folder and second.generation == 2 and second.listing != first.listing
    assert sorted(reads) == ["t1", "t5"]
    assert _keys(second, folder) == ["t0/a", "t1/a", "t1/b", "t2/a", "t4/a", "t5/a", "u/a"]
    assert second.classes == ("0", "1", "2")
    # Files of the generation before stay for runs that read them.
    now = _files(folder)
    assert all(now[name] == files[name] for name in files if name.startswith("index/"))
    assert _keys(first, folder) == ["t0/a", "t1/a", "t2/a", "t3/a", "t4/a", "u/a"]
    reads.clear()
    assert _in_place(tmp_path)[0] == second and reads == []


def test_a_missing_shard_is_named_unless_it_was_erased(tmp_path: Path) -> None:
    uris = [write_tar(tmp_path / "t" / f"{n}.tar", sample(f"{n}", 0, n)) for n in range(2)]
    source = build_shards(InPlace(training=tuple(uris)))
    packed, folder = pack(source, name="webdataset", output=str(tmp_path / "out"), workers=1)
    assert packed is not None
    Path(uris[1]).unlink()
    with pytest.raises(StorageError, match=r"1\.tar: not found"):
        pack(source, name="webdataset", output=str(tmp_path / "out"), workers=1)
    record = Path(folder) / "source.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "erased": [uris[1]]}))
    again, _ = pack(source, name="webdataset", output=str(tmp_path / "out"), workers=1)
    assert again is not None and again.erased == (uris[1],) and [ref.uri for ref in again.training] == uris[:1]
    assert again.generation == 2


def test_tasks_of_an_array_build_parts_and_a_whole_call_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_SHARDS", 2)
    uris = tuple(write_tar(tmp_path / "t" / f"t{n}.tar", sample(f"t{n}/a", 0, n)) for n in range(5))
    source, reads = build_shards(InPlace(training=uris)), _count_reads(monkeypatch)
    options: dict[str, Any] = {"name": "webdataset", "output": str(tmp_path / "out"), "workers": 1}
    for number in range(3):
        packed, folder = pack(source, task=(number, 3), **options)
        assert packed is None and load_source(folder) is None
    assert sorted(reads) == [f"t{n}" for n in range(5)]
    packed, folder = pack(source, **options)
    assert packed is not None and len(reads) == 5 and len(_keys(packed, folder)) == 5
    assert pack(source, task=(0, 3), **options)[0] == packed  # nothing left to do


def test_what_was_set_aside_is_listed_and_does_not_pass_where_the_run_is_to_stop(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "a.tar", [*sample("a", 0), ("b.cls", b"0")])
    aside = ShardsConfig(on_error="quarantine")
    packed, _ = _in_place(tmp_path, settings=aside)
    assert [(Path(fault.uri).name, fault.key) for fault in packed.quarantine] == [("a.tar", "b")]
    assert _in_place(tmp_path, settings=aside)[0] == packed
    with pytest.raises(DataError, match=r"a\.tar: key 'b': no image"):
        _in_place(tmp_path)
    with pytest.raises(DataError, match="more than 0"):
        _in_place(tmp_path, settings=ShardsConfig(on_error="quarantine", max_quarantined=0))


def test_a_source_without_a_good_image_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "a.tar", [("b.cls", b"0")])
    with pytest.raises(DataError, match="source webdataset: no good training image"):
        _in_place(tmp_path, settings=ShardsConfig(on_error="quarantine"))


def test_an_image_with_a_tombstone_does_not_come_in_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "a.tar", [*sample("a", 0, 1), *sample("b", 0, 2)])
    packed, folder = _in_place(tmp_path)
    image = hashlib.sha256(picture(1)).hexdigest()
    stones = Tombstones(batch_digest="c" * 64, source=Path(folder).name, keys=(), images=(image,))
    write_tombstones(str(tmp_path / "out"), stones)
    assert _in_place(tmp_path) == (packed, folder)  # it waits for its erasure
    write_tar(tmp_path / "t" / "new.tar", sample("again", 0, 1))
    with pytest.raises(DataError, match=r"new\.tar: key 'again': this image was deleted on request"):
        _in_place(tmp_path)
    assert load_source(folder) == packed


def test_every_part_can_be_read_from_the_source_alone(tmp_path: Path) -> None:
    packed, folder = _pack(tmp_path)
    members = [
        member
        for ref in packed.index
        for member in read_part(type(ref)(uri=join(folder, ref.uri), sha256=ref.sha256, bytes=ref.bytes)).members
    ]
    assert [(Path(m.listed.uri).name, m.samples, m.keys_digest) for m in members] == [
        (ref.uri, ref.samples, ref.keys_digest) for ref in packed.shards
    ]
