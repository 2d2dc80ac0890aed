"""Folders of images: keys that fit WebDataset, a kept-back share, and refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.pack import pack
from pipeline.data.sources.imagefolder import Config, build
from pipeline.errors import ConfigError, DataError
from tests.pipeline.data.tars import picture


def _put(root: Path, *paths: str) -> str:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return str(root)


def test_keys_are_paths_without_dots_and_slashes_and_classes_are_sorted(tmp_path: Path) -> None:
    root = _put(tmp_path, "train/dog/a.b.png", "train/cat/deep/c.JPG", "val/cat/d.jpeg")
    source = build(Config(root=root))
    assert source.classes == ("cat", "dog")
    assert [(i.key, i.ext, i.label) for i in source.training()] == [
        ("train__cat__deep__c", "jpg", 0),
        ("train__dog__a_b", "png", 1),
    ]
    assert [(i.key, i.ext, i.label) for i in source.unseen()] == [("val__cat__d", "jpg", 0)]


def test_the_folder_packs_and_its_name_may_hold_spaces(tmp_path: Path) -> None:
    root = _put(tmp_path / "my pictures", "train/dog/a.png", "train/cat/b.png", "val/cat/c.png")
    packed, _ = pack(build(Config(root=root)), name="imagefolder", output=str(tmp_path / "out"))
    assert packed.classes == ("cat", "dog") and [ref.samples for ref in packed.shards] == [2, 1]


def test_without_an_unseen_folder_a_share_is_kept_back_by_key(tmp_path: Path) -> None:
    root = _put(tmp_path, *(f"train/c{n % 2}/{n}.png" for n in range(100)))
    source = build(Config(root=root, unseen_share=0.3))
    training, unseen = ([item.key for item in part] for part in (source.training(), source.unseen()))
    assert 15 <= len(unseen) <= 45 and sorted(training + unseen) == sorted(f"train__c{n % 2}__{n}" for n in range(100))
    (tmp_path / "train/c0/0.png").unlink()
    assert {item.key for item in build(Config(root=root, unseen_share=0.3)).unseen()} == set(unseen) - {"train__c0__0"}


def test_identity_follows_the_files(tmp_path: Path) -> None:
    root = _put(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    before = build(Config(root=root)).identity()
    assert build(Config(root=root)).identity() == before
    (tmp_path / "train/a/1.png").write_bytes(picture(7) + b"more")
    assert build(Config(root=root)).identity() != before


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/1.png", "train/a/notes.txt", "train/loose.png"], "2 files that are not CLASS/NAME.png"),
        (["train/a/1.png", "train/a/1.jpg"], "both get the key 'train__a__1'"),
        (["train/a/b.c.png", "train/a/b_c.png"], "both get the key 'train__a__b_c'"),
        (["train/a/1.png", "val/b/1.png"], "no training image of class 'b'"),
        (["val/b/1.png"], "no images"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, paths: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build(Config(root=_put(tmp_path, *paths)))
    assert caught.value.cure


def test_a_configuration_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="root"):
        build(Config())
    with pytest.raises(ConfigError, match="unseen_share"):
        build(Config(root="x", unseen_share=1.0))
