"""Places365 from folders by class and from the official lists, on small ones of the same layout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.pack import pack
from pipeline.data.sources.places365 import Config, build
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.requests import read_requests
from tests.pipeline.data.tars import drawing

OFFICIAL = ("/a/airfield", "/a/apartment_building/outdoor", "/b/bar", "/c/church/indoor", "/c/church/outdoor")
NAMES = ("airfield", "apartment_building-outdoor", "bar", "church-indoor", "church-outdoor")
SMALL: dict[str, Any] = {"forget_classes": 2, "retain_classes": 2, "train_per_class": 3, "unseen_per_class": 2}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _folders(root: Path) -> str:
    for number, name in enumerate(NAMES):
        for place in range(4):
            _write(root / "train" / name / f"{place:08d}.jpg", drawing(100 * number + place, "JPEG", side=8))
        for place in range(3):
            _write(
                root / "val" / name / f"Places365_val_{3 * number + place:08d}.jpg", drawing(100 * number + 50 + place, side=8)
            )
    return str(root)


def _lists(root: Path, train: str = "data_large", val: str = "val_large") -> str:
    near, far = [], []
    for number, name in enumerate(OFFICIAL):
        for place in range(4):
            near.append(f"{name}/{place:08d}.jpg {number}")
            _write(root / train / f"{name}/{place:08d}.jpg"[1:], drawing(100 * number + place, "JPEG", side=8))
        for place in range(3):
            far.append(f"Places365_val_{3 * number + place:08d}.jpg {number}")
            _write(root / val / far[-1].split()[0], drawing(100 * number + 50 + place, side=8))
    (root / "places365_train_standard.txt").write_text("\n".join(near))
    (root / "places365_val.txt").write_text("\n".join(far) + "\n")
    (root / "categories_places365.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(OFFICIAL)))
    return str(root)


def test_both_layouts_give_the_same_images(tmp_path: Path) -> None:
    one, two = build(Config(root=_folders(tmp_path / "one"), **SMALL)), build(Config(root=_lists(tmp_path / "two"), **SMALL))
    assert one.classes == two.classes and len(one.classes) == 4 and set(one.classes) < set(NAMES)
    for part, count in (("training", 3), ("unseen", 2)):
        items, others = (list(getattr(source, part)()) for source in (one, two))
        assert items == others
        assert Counter(item.label for item in items) == dict.fromkeys(range(4), count)
        for item in items:
            assert item.key.split("__")[1] == one.classes[item.label]


@pytest.mark.parametrize(("train", "val"), [("data_256_standard", "val_256"), ("mine", "far")])
def test_the_folders_beside_the_lists_may_be_called_otherwise(tmp_path: Path, train: str, val: str) -> None:
    root = _lists(tmp_path, train, val)
    names = {"train": train, "unseen": val} if train == "mine" else {}
    assert len(list(build(Config(root=root, **names, **SMALL)).training())) == 12


def test_folders_by_class_may_have_the_list_of_names_beside_them(tmp_path: Path) -> None:
    root = _folders(tmp_path)
    (tmp_path / "categories_places365.txt").write_text("".join(f"{name} {n}\n" for n, name in enumerate(OFFICIAL)))
    assert len(list(build(Config(root=root, **SMALL)).training())) == 12


def test_a_file_chooses_the_classes_and_the_request_file_names_them(tmp_path: Path) -> None:
    root, split = _lists(tmp_path), tmp_path / "split.json"
    split.write_text(json.dumps({"forget": [NAMES[4], NAMES[1]], "retain": [NAMES[0]]}))
    source = build(Config(root=root, split=str(split)))
    assert source.classes == (NAMES[4], NAMES[1], NAMES[0]) and source.forget_labels == (0, 1)
    (tmp_path / "forget.csv").write_text(source.requests_csv())
    assert [r.selector.values for r in read_requests(str(tmp_path / "forget.csv")).requests] == [(NAMES[4],), (NAMES[1],)]


def test_it_packs_and_identity_follows_the_files(tmp_path: Path) -> None:
    root = _lists(tmp_path / "in")
    source = build(Config(root=root, **(SMALL | {"train_per_class": 0})))
    before = source.identity()
    packed, _ = pack(source, name="places365", output=str(tmp_path / "out"))
    assert packed is not None and packed.classes == source.classes
    assert [ref.samples for ref in packed.shards] == [16, 8]
    path = OFFICIAL[NAMES.index(source.classes[0])][1:]
    (tmp_path / "in" / "data_large" / path / "00000001.jpg").write_bytes(drawing(999, side=16))
    assert build(Config(root=root, **(SMALL | {"train_per_class": 0}))).identity() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("categories_places365.txt", "/a/airfield\n", r"categories_places365\.txt: line 1: not a path and a number"),
        ("categories_places365.txt", "/a/airfield 0\n/b/airfield 1\n", "not a list of different classes"),
        ("categories_places365.txt", "", "not a list of different classes"),
        ("categories_places365.txt", "/a/airfield 0\n", "1 classes in .*categories_places365.txt, but 4"),
        ("places365_train_standard.txt", "/a/airfield/1.jpg 77\n", "no class has the number 77"),
        ("places365_train_standard.txt", "/../../secret.jpg 0\n", "line 1: not a path and a number"),
        ("places365_train_standard.txt", "\xff\xfe\n", "line 1: not a path and a number"),
        ("places365_val.txt", "", "no image for validation"),
        ("places365_val.txt", None, r"places365_val\.txt: not found"),
        ("categories_places365.txt", None, r"categories_places365\.txt: not found"),
    ],
)
def test_lists_that_are_not_as_they_should_be_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    root = _lists(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises((ConfigError, DataError, StorageError), match=message) as caught:
        build(Config(root=root, **SMALL))
    assert caught.value.cure


def test_what_is_not_there_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="root: not set"):
        build(Config())
    with pytest.raises(DataError, match="no folder train in it"):
        build(Config(root=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"5 classes in .*train, but 100 are"):
        build(Config(root=_folders(tmp_path / "small")))
    root = _lists(tmp_path / "lists")
    with pytest.raises(DataError, match="no folder data_512 in it"):
        build(Config(root=root, train="data_512", **SMALL))
    for path in (tmp_path / "lists" / "data_large").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(StorageError, match="not found"):
        build(Config(root=root, **SMALL)).identity()
