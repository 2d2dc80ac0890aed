"""Classes drawn by a seed or named by a file, caps by key hash, and a request file that the project itself reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from pipeline.data.class_split import ClassSplit, Picture, SplitSource, capped, choose, picture, pictures_below, subfolders
from pipeline.data.selection import wanted_by
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.requests import read_requests
from tests.pipeline.data.tars import picture as png

NAMES = tuple(f"class {number}" for number in range(40))


def _choose(
    available: tuple[str, ...] = NAMES, *, forget: int = 3, retain: int = 5, seed: int = 0, split: str = ""
) -> ClassSplit:
    config = SimpleNamespace(forget_classes=forget, retain_classes=retain, seed=seed, split=split)
    return choose(config, available, source="big", where="FOLDER")


def _put(root: Path, *paths: str) -> str:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(number))
    return str(root)


def test_a_draw_depends_on_names_and_seed_alone() -> None:
    split = _choose()
    assert (len(split.forget), len(split.retain), len(set(split.classes))) == (3, 5, 8)
    assert split.classes == (*split.forget, *split.retain)
    assert _choose(tuple(reversed(NAMES))) == split
    assert len({_choose(seed=seed).classes for seed in range(10)}) == 10
    often = [name for seed in range(200) for name in _choose(seed=seed).forget]
    assert set(often) == set(NAMES)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="source: big: 40 classes in FOLDER, but 45 are") as caught:
        _choose(forget=40)
    assert "source.forget_classes" in caught.value.cure


def test_a_file_names_the_classes_in_its_own_order(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"forget": ["class 9", "class 1"], "retain": ["class 5"]}))
    assert _choose(split=str(path)).classes == ("class 9", "class 1", "class 5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", r"split\.json: "),
        ('{"forget": ["class 1"]}', "retain: missing"),
        ('{"forget": ["class 1"], "retain": [3]}', r"retain\.0: "),
        ('{"forget": ["class 1"], "retain": ["class 2"], "other": []}', "other: unknown field"),
        ('{"forget": [], "retain": ["class 2"]}', "no class to forget"),
        ('{"forget": ["class 1"], "retain": ["class 2", "class 1"]}', "class 'class 1' comes twice"),
        ('{"forget": ["klass 1"], "retain": ["class 2"]}', "class 'klass 1' is not one of the 40 in FOLDER"),
        ('{"forget": ["\\ud800"], "retain": ["class 2"]}', "invalid JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_the_cure(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        _choose(split=str(path))
    assert caught.value.cure
    with pytest.raises(StorageError, match="not found"):
        _choose(split=str(tmp_path / "none.json"))


def test_a_cap_takes_the_same_images_however_they_are_listed() -> None:
    some = [Picture(f"k{number}", f"u{number}", "jpg", number % 3) for number in range(90)]
    few = capped(some, 4)
    assert sorted(item.label for item in few) == [0] * 4 + [1] * 4 + [2] * 4
    assert set(capped(reversed(some), 4)) == set(few) <= set(capped(some, 5))
    assert set(capped(some, 0)) == set(some)


def test_folders_are_listed_with_links_and_without_hidden_ones(tmp_path: Path) -> None:
    root = _put(tmp_path, "a/b/1.jpg", "a/.trash/1.jpg", "a/loose.jpg", "far/1.jpg")
    os.symlink("../far", tmp_path / "a" / "linked")
    os.symlink("loose.jpg", tmp_path / "a" / "other.jpg")
    assert subfolders(f"{root}/a") == ["b", "linked"]
    assert subfolders(f"{root}/none") == []
    assert subfolders(f"{root}/a/loose.jpg") == []
    assert [item.key for item in pictures_below(f"{root}/a", ["linked"], part="train", per_class=0)] == ["train__linked__1"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.data.class_split.ask", refuse)
    with pytest.raises(DataError, match="Permission denied") as caught:
        subfolders(str(tmp_path))
    assert caught.value.cure


def test_other_storage_works_too() -> None:
    for number in range(3):
        with fsspec.open(f"memory://split/train/c{number % 2}/deep/x.{number}.JPEG", "wb") as out:
            out.write(png(number))
    assert subfolders("memory://split/train") == ["c0", "c1"]
    found = pictures_below("memory://split/train", ["c0", "c1", "c2"], part="train", per_class=0)
    assert {(item.key, item.ext, item.label) for item in found} == {
        ("train__c0__deep__x_0", "jpg", 0),
        ("train__c0__deep__x_2", "jpg", 0),
        ("train__c1__deep__x_1", "jpg", 1),
    }


def test_a_file_of_another_kind_is_named() -> None:
    with pytest.raises(DataError, match=r"far/notes\.txt: not named NAME\.jpg") as caught:
        picture("far/notes.txt", "notes.txt", part="val", name="c", label=0)
    assert caught.value.cure


def _source(root: str, split: ClassSplit, per_class: int = 0) -> SplitSource:
    near = pictures_below(f"{root}/train", split.classes, part="train", per_class=per_class)
    far = pictures_below(f"{root}/val", split.classes, part="val", per_class=0)
    return SplitSource("big", split, training=near, unseen=far, readable={"b": 'words, with "quotes"'}, where=root)


SPLIT = ClassSplit(forget=("b",), retain=("a", "c"))


def test_classes_to_forget_come_first_and_images_in_an_order_of_hashes(tmp_path: Path) -> None:
    root = _put(tmp_path, *(f"train/{name}/{n}.png" for name in "abcd" for n in range(20)), "val/a/1.png", "val/d/1.png")
    source = _source(root, SPLIT)
    items = list(source.training())
    assert source.classes == ("b", "a", "c") and source.forget_labels == (0,)
    assert {(item.key.split("__")[1], item.label) for item in items} == {("b", 0), ("a", 1), ("c", 2)}
    assert len({item.label for item in items[:15]}) == 3
    assert len(items) == 60 and [item.key for item in items] == [item.key for item in source.training()]
    assert [(item.key, item.image) for item in source.unseen()] == [("val__a__1", png(80))]
    assert len(list(_source(root, SPLIT, per_class=7).training())) == 21


def test_identity_follows_the_choices_and_the_chosen_files(tmp_path: Path) -> None:
    root = _put(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "train/d/1.png", "val/a/1.png", "train/a/2.png")
    before = _source(root, SPLIT).identity()
    (tmp_path / "train/d/1.png").write_bytes(b"of another class")
    assert _source(root, SPLIT).identity() == before
    others = [ClassSplit(forget=("a",), retain=("b", "c")), ClassSplit(forget=("b",), retain=("a",))]
    assert len({before, *(_source(root, other).identity() for other in others), _source(root, SPLIT, 1).identity()}) == 4
    (tmp_path / "train/c/1.png").write_bytes(png(7) + b"longer")
    assert _source(root, SPLIT).identity() != before


def test_the_request_file_asks_for_the_classes_to_forget(tmp_path: Path) -> None:
    root = _put(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/1.png")
    source = _source(root, SPLIT)
    path = tmp_path / "forget.csv"
    path.write_text(source.requests_csv())
    batch = read_requests(str(path))
    assert [(r.request_id, r.selector.values, r.note) for r in batch.requests] == [("forget-b", ("b",), 'words, with "quotes"')]
    assert wanted_by(batch, source.classes).labels == source.forget_labels


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], "no training image of class 'c'"),
        (["train/a/1.png", "train/b/1.png", "train/c/1.png"], "no image for validation"),
        (["train/a/1.png", "train/a/1.jpg", "train/b/1.png", "train/c/1.png", "val/a/1.png"], "both get the key 'train__a__1'"),
        (["train/a/1.png", "train/b/1.png", "train/c/1.gif", "val/a/1.png"], r"c/1\.gif: not named"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(tmp_path: Path, paths: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _source(_put(tmp_path, *paths), SPLIT)
    assert caught.value.cure
