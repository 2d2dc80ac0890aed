"""ImageNet from folders, a flat validation folder, and shards, on small ones of the same layout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.pack import pack
from pipeline.data.sources.imagenet import Config, ImageNetShards, build
from pipeline.errors import ConfigError, DataError
from pipeline.requests import read_requests
from tests.pipeline.data.tars import drawing, sample, write_tar

SYNSETS = [f"n0144{number:04d}" for number in range(6)]
SMALL: dict[str, Any] = {"forget_classes": 2, "retain_classes": 2, "train_per_class": 3, "unseen_per_class": 2}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six classes of five training and three validation images."""
    root = tmp_path / "ILSVRC"
    for number, name in enumerate(SYNSETS):
        for part, count in (("train", 5), ("val", 3)):
            (root / part / name).mkdir(parents=True)
            for place in range(count):
                content = drawing(100 * number + 10 * count + place, "PNG" if place == 0 else "JPEG", side=8)
                (root / part / name / f"{name}_{part}_{place}.JPEG").write_bytes(content)
    return root


def _flatten(root: Path) -> None:
    """The official layout of the validation part, with Kaggle's solution file."""
    lines = ["ImageId,PredictionString"]
    for path in sorted((root / "val").rglob("*.JPEG")):
        lines.append(f"{path.stem},{path.parent.name} 85 1 499 272 {path.parent.name} 1 2 3 4 ")
        path.rename(root / "val" / path.name)
    for name in SYNSETS:
        (root / "val" / name).rmdir()
    (root / "LOC_val_solution.csv").write_text("\n".join(lines))


def test_only_the_drawn_classes_are_used_and_only_so_many_images(tree: Path) -> None:
    source = build(Config(root=str(tree), **SMALL))
    training, unseen = list(source.training()), list(source.unseen())
    assert len(source.classes) == 4 and set(source.classes) < set(SYNSETS)
    assert Counter(item.label for item in training) == dict.fromkeys(range(4), 3)
    assert Counter(item.label for item in unseen) == dict.fromkeys(range(4), 2)
    for part, items in (("train", training), ("val", unseen)):
        for item in items:
            name = source.classes[item.label]
            assert item.key.startswith(f"{part}__{name}__{name}_{part}_") and item.ext == "jpg"
    assert {build(Config(root=str(tree), seed=seed, **SMALL)).classes for seed in range(9)} > {source.classes}


def test_a_flat_validation_folder_gives_the_same_images(tree: Path) -> None:
    before = {(item.key, item.image, item.label) for item in build(Config(root=str(tree), **SMALL)).unseen()}
    _flatten(tree)
    assert {(item.key, item.image, item.label) for item in build(Config(root=str(tree), **SMALL)).unseen()} == before
    other = tree.parent / "truth.txt"
    lines = (tree / "LOC_val_solution.csv").read_text().splitlines()[1:]
    other.write_text("".join(f"{line.split(',')[0]}.JPEG {line.split(',')[1].split()[0]}\n" for line in lines))
    (tree / "LOC_val_solution.csv").unlink()
    source = build(Config(root=str(tree), solution=str(other), **SMALL))
    assert {(item.key, item.image, item.label) for item in source.unseen()} == before


def test_a_file_chooses_the_classes_and_the_request_file_names_them(tree: Path) -> None:
    split = tree / "split.json"
    split.write_text(json.dumps({"forget": [SYNSETS[4], SYNSETS[1]], "retain": [SYNSETS[0]]}))
    (tree / "synset_words.txt").write_text("".join(f"{name} crane, number {n}\n" for n, name in enumerate(SYNSETS)))
    source = build(Config(root=str(tree), split=str(split)))
    assert source.classes == (SYNSETS[4], SYNSETS[1], SYNSETS[0]) and source.forget_labels == (0, 1)
    assert len(list(source.training())) == 15
    (tree / "forget.csv").write_text(source.requests_csv())
    batch = read_requests(str(tree / "forget.csv"))
    assert [(r.selector.values, r.note) for r in batch.requests] == [
        ((SYNSETS[4],), "crane, number 4"),
        ((SYNSETS[1],), "crane, number 1"),
    ]


def test_it_packs(tree: Path, tmp_path: Path) -> None:
    source = build(Config(root=str(tree), **SMALL))
    packed, _ = pack(source, name="imagenet", output=str(tmp_path / "out"))
    assert packed is not None and packed.classes == source.classes
    assert [ref.samples for ref in packed.shards] == [12, 8]


def _break(tree: Path, what: str) -> dict[str, Any]:
    """Spoil the tree; returns fields of the configuration."""
    if what == "strange folder":
        (tree / "train" / "tench").mkdir()
    elif what == "empty":
        return {"root": str(tree / "val" / SYNSETS[0])}
    elif what == "notes":
        for name in SYNSETS:
            (tree / "train" / name / "notes.txt").write_text("x")
    elif what == "no validation":
        return {"unseen": "none"}
    elif what == "bad names":
        (tree / "LOC_synset_mapping.txt").write_text(f"{SYNSETS[0]} tench\n0 goldfish\n")
    elif what != "few":
        _flatten(tree)
        solution = tree / "LOC_val_solution.csv"
        if what == "no solution":
            solution.unlink()
        elif what == "short solution":
            solution.write_text("\n".join(solution.read_text().splitlines()[:5]))
        else:
            solution.write_text("ImageId,PredictionString\nwords\n")
    return {} if what != "few" else {"forget_classes": 5}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("few", "6 classes in .*train, but 7 are to be"),
        ("strange folder", "tench: not named as a synset"),
        ("empty", "train: no folders by synset"),
        ("notes", r"notes\.txt: not named NAME\.jpg"),
        ("no validation", "none: no such folder"),
        ("bad names", "line 2: '0 goldfish' does not begin with a new synset"),
        ("no solution", "no folders by synset in it, and .*LOC_val_solution.csv is not there"),
        ("short solution", "LOC_val_solution.csv does not say its class"),
        ("bad solution", "line 2: 'words' is not an image and its synset"),
    ],
)
def test_what_is_not_as_it_should_be_is_named_with_the_cure(tree: Path, what: str, message: str) -> None:
    fields = {"root": str(tree), **SMALL, **_break(tree, what)}
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        build(Config(**fields))
    assert caught.value.cure


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Any]:
    """Training shards of two rounds through the six classes, and unseen ones of one."""
    members = [sample(f"{SYNSETS[n % 6]}_{n}", n % 6, n) for n in range(24)]
    near = [write_tar(tmp_path / f"t-{k}.tar", [m for s in members[12 * k : 12 * k + 12] for m in s]) for k in (0, 1)]
    far = write_tar(tmp_path / "v.tar", [m for n in range(12) for m in sample(f"ILSVRC2012_val_{n:08d}", n % 6, 100 + n)])
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text("".join(f"{name} words {n}\n" for n, name in enumerate(SYNSETS)))
    return {"shards": tuple(near), "unseen_shards": (far,), "names": str(names)}


def test_chosen_images_are_taken_out_of_shards(shards: dict[str, Any], tmp_path: Path) -> None:
    source = build(Config(**shards, **SMALL))
    assert isinstance(source, ImageNetShards)
    training, unseen = list(source.training()), list(source.unseen())
    assert Counter(item.label for item in training) == dict.fromkeys(range(4), 3)
    assert Counter(item.label for item in unseen) == dict.fromkeys(range(4), 2)
    for item in training:
        name, number = item.key.split("__")[2].split("_")
        assert source.classes[item.label] == name and item.image == sample("k", 0, int(number))[1][1]
    assert source.forget_labels == (0, 1) and f"forget-{source.classes[0]},label," in source.requests_csv()
    packed, _ = pack(source, name="imagenet", output=str(tmp_path / "out"))
    assert packed is not None and [ref.samples for ref in packed.shards] == [12, 8]


def test_both_ways_of_storing_draw_the_same_classes(tree: Path, shards: dict[str, Any]) -> None:
    assert build(Config(root=str(tree), **SMALL)).classes == build(Config(**shards, **SMALL)).classes


def test_shards_are_not_read_further_than_needed(shards: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t-1.tar").write_bytes(b"damaged")
    source = build(Config(**shards, **(SMALL | {"train_per_class": 2})))
    assert len(list(source.training())) == 8
    with pytest.raises(DataError, match=r"t-1\.tar"):
        list(build(Config(**shards, **SMALL)).training())


def test_identity_follows_the_shards_and_the_choices(shards: dict[str, Any], tmp_path: Path) -> None:
    before = build(Config(**shards, **SMALL)).identity()
    assert build(Config(**shards, **SMALL)).identity() == before
    others = [SMALL | {"seed": 1}, SMALL | {"train_per_class": 2}]
    changed = {build(Config(**shards, **other)).identity() for other in others}
    write_tar(tmp_path / "v.tar", sample("k", 0))
    assert len({before, *changed, build(Config(**shards, **SMALL)).identity()}) == 4


def test_shards_that_cannot_be_are_refused(shards: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("".join(f"{name} x\n" for name in SYNSETS[:5]))
    source = build(Config(**(shards | {"names": str(tmp_path / "short.txt")}), **SMALL))
    with pytest.raises(DataError, match="label 5, but only 5 synsets are named"):
        list(source.training())
    copied = write_tar(tmp_path / "copy.tar", [m for n in range(6) for m in sample(f"{SYNSETS[n]}_{n}", n, n)])
    twice = build(Config(**(shards | {"shards": (*shards["shards"], copied)}), **(SMALL | {"train_per_class": 0})))
    with pytest.raises(DataError, match="both give the key"):
        list(twice.training())
    few = build(Config(**(shards | {"shards": (write_tar(tmp_path / "one.tar", sample("k", 0)),)}), **SMALL))
    with pytest.raises(DataError, match="no training image of class"):
        list(few.training())


def test_a_configuration_that_cannot_work_is_refused(shards: dict[str, Any]) -> None:
    for fields in ({}, {"root": "x", **shards}):
        with pytest.raises(ConfigError, match="either root or shards"):
            build(Config(**fields))
    for missing in ("names", "unseen_shards"):
        with pytest.raises(ConfigError, match="shards also need names"):
            build(Config(**{name: value for name, value in shards.items() if name != missing}))
