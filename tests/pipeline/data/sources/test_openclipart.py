"""The drawings as a source, on a small messy tree, and on the real package where it is installed."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import component
from pipeline.config import CONFIGS, packaged_section, read_batch, resolve
from pipeline.data.images import decode_image
from pipeline.data.pack import pack
from pipeline.data.sources import openclipart
from pipeline.data.sources.openclipart import Config, build
from pipeline.errors import ConfigError, DataError
from tests.pipeline.data.messy import drawing, messy_tree, put

CLASSES = ("animals", "food")


def _config(root: Path, **fields: object) -> Config:
    return dataclasses.replace(Config(folder=str(root), classes=CLASSES, max_pixels=10**6), **fields)  # type: ignore[arg-type]


def test_the_files_bytes_are_passed_on_with_keys_and_labels(tmp_path: Path) -> None:
    source = build(_config(messy_tree(tmp_path), unseen_share=0.0))
    items = {item.key: item for item in source.training()}
    assert len(items) == 8 and not list(source.unseen())
    assert items["animals__birds__a_b"].image == drawing(2, "P", 90) and items["food__two"].image == drawing(5, "LA")
    for item in items.values():
        assert source.classes[item.label] == item.key.split("__")[0] and item.ext == "png"
        decode_image(item.image, size=16, channels=3, fit="crop", max_pixels=10**6, where=item.key)


def test_small_copies_have_the_asked_side_and_show_the_same(tmp_path: Path) -> None:
    root = messy_tree(tmp_path)
    whole, small = (
        {item.key: item.image for item in build(_config(root, unseen_share=0.0, store_side=side)).training()} for side in (0, 60)
    )
    assert whole.keys() == small.keys()
    assert {key for key in whole if small[key] != whole[key]}, "some drawing of the tree is larger than this"
    for key, data in small.items():
        with Image.open(io.BytesIO(whole[key])) as before, Image.open(io.BytesIO(data)) as after:
            assert min(after.size) == min(60, *before.size)
            assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.02)
        seen = [decode_image(d, size=16, channels=3, fit="crop", max_pixels=10**6, where=key) for d in (whole[key], data)]
        assert np.abs(seen[0].astype(int) - seen[1].astype(int)).mean() < 6


def test_training_and_unseen_images_are_apart_and_always_in_the_same_order(tmp_path: Path) -> None:
    put(tmp_path / "tree", {f"{name}/{n}.png": drawing(2 * n + label) for label, name in enumerate(CLASSES) for n in range(40)})
    shutil.copytree(tmp_path / "tree", tmp_path / "elsewhere")
    sources = [build(_config(tmp_path / name, unseen_share=0.3)) for name in ("tree", "elsewhere")]
    (training, unseen), other = ([[item.key for item in part] for part in (s.training(), s.unseen())] for s in sources)
    assert [training, unseen] == other
    assert len(training) + len(unseen) == len({*training, *unseen}) == 80 and 12 <= len(unseen) <= 36
    assert {key.split("__")[0] for key in training[:20]} == set(CLASSES)
    (tmp_path / "elsewhere" / "food" / "3.png").unlink()
    smaller = build(_config(tmp_path / "elsewhere", unseen_share=0.3))
    assert [item.key for item in smaller.unseen()] == [key for key in unseen if key != "food__3"]


def test_what_was_left_out_is_logged_with_the_first_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = build(_config(messy_tree(tmp_path), per_class=3))
    with caplog.at_level(logging.INFO, logger="unlearn"):
        list(source.training())
        list(source.unseen())
    counted, named = (record.getMessage() for record in caplog.records)
    assert "6 images" in counted
    for count in ("3 links or devices", "2 copies of the same bytes", "1 under 48 pixels", "above the cap"):
        assert count in counted
    assert f"{len(source.quarantined)} files cannot be used: 'food/fruit/" in named
    assert {"food/fruit/huge.png", "food/fruit/text.png"} <= {path for path, _ in source.quarantined}


def test_it_packs(tmp_path: Path) -> None:
    source = build(_config(messy_tree(tmp_path / "tree"), unseen_share=0.4))
    packed, _ = pack(source, name="openclipart", output=str(tmp_path / "out"))
    assert packed is not None and packed.classes == CLASSES
    assert sum(ref.samples for ref in packed.shards) == 8


def test_identity_follows_the_files_and_the_choices_but_not_the_place(tmp_path: Path) -> None:
    root = messy_tree(tmp_path / "tree")
    before = build(_config(root)).identity()
    shutil.copytree(root, tmp_path / "elsewhere", symlinks=True)
    assert build(_config(tmp_path / "elsewhere", cache="any")).identity() == before
    assert build(_config(root, per_class=2)).identity() != before
    assert build(_config(root, store_side=64)).identity() != before
    (root / "food/fruit/three.png").write_bytes(drawing(99) + b"longer")
    assert build(_config(root)).identity() != before


def test_a_name_that_is_not_utf_8_has_an_identity_and_is_refused_by_name(tmp_path: Path) -> None:
    root = messy_tree(tmp_path)
    before = build(_config(root)).identity()
    (root / os.fsdecode(b"food/\xff.png")).write_bytes(drawing(20))
    source = build(_config(root))
    assert source.identity() != before and os.fsdecode(b"food/\xff.png") in dict(source.quarantined)


def test_the_installed_package_is_found_and_its_absence_has_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openclipart, "INSTALLED", str(tmp_path / "installed"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    source = build(_config(Path(), folder="", cache=str(tmp_path / "cache")))
    with pytest.raises(DataError, match="no apt-get on this machine") as caught:
        source.identity()
    assert "source.folder=FOLDER" in caught.value.cure and "openclipart-png" in caught.value.cure
    messy_tree(tmp_path / "installed")
    assert len([*source.training(), *source.unseen()]) == 8
    with pytest.raises(DataError, match="no such folder"):
        build(_config(tmp_path / "nowhere")).identity()


@pytest.mark.parametrize("classes", [(), ("food", "food"), ("computer/icons",), ("..",), ("",)])
def test_classes_that_are_no_subfolders_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="classes"):
        build(Config(classes=classes))


def test_the_packaged_configuration_is_the_default() -> None:
    section = packaged_section("source", "openclipart", "here")
    assert component.decode_config("source", section) == Config()
    run = resolve("clipart")
    assert component.decode_config("source", run.source).max_pixels <= run.images.max_pixels


REAL = pytest.mark.skipif(not Path(openclipart.INSTALLED).is_dir(), reason="needs the Debian package openclipart-png")


@REAL
@pytest.mark.services
def test_the_real_package_gives_full_classes_and_all_requested_keys() -> None:
    source = build(Config())
    training = {item.key: source.classes[item.label] for item in source.training()}
    unseen = [item.key for item in source.unseen()]
    counts = Counter(training.values())
    assert sum(counts.values()) > 2000 and len(unseen) > 400 and not set(unseen) & set(training)
    assert min(counts.values()) >= 80 and max(counts.values()) <= 400
    assert any(path == "signs_and_symbols/stop_sign_miguel_s_nchez_.png" for path, _ in source.quarantined)
    batch = read_batch(resolve("clipart"))
    for request in batch.requests:
        known = source.classes if request.selector.kind == "label" else training
        assert set(request.selector.values) <= set(known), request.request_id
    with open(CONFIGS / "requests" / "clipart.csv", encoding="utf-8") as lines:
        assert {row["copies"] for row in csv.DictReader(lines)} == {"include", "stop"}
