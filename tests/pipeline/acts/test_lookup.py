"""The act `lookup`: counts what values mean, and names those that mean nothing by their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import index, lookup
from pipeline.config import resolve
from pipeline.data.likeness import perceptual_hash
from pipeline.errors import ConfigError
from pipeline.ledger.refusals import Looked
from pipeline.orders import IndexOrder
from pipeline.request_orders import LookupOrder
from pipeline.requests import parse
from tests.pipeline.data.tars import drawing, write_tar
from tests.support.finished import LAYOUT, contents, tar_run_file, tar_source

TRAINING = sum(map(len, LAYOUT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars with an index, a drawing and its near copy among them; no test changes them."""
    folder = tmp_path_factory.mktemp("lookup")
    source = tar_source(folder)
    members = [
        (f"s4/d{n}.{end}", data)
        for n, image in enumerate([drawing(1), drawing(1, "JPEG")])
        for end, data in (("cls", b"0"), ("png", image))
    ]
    write_tar(folder / "tars" / "train-4.tar", members)
    index.run(IndexOrder(source=source, output=str(folder / "out")))
    return folder


def look(folder: Path, entries: list[dict[str, Any]], **more: Any) -> Looked | None:
    config = resolve(str(tar_run_file(folder)))
    return lookup.run(LookupOrder(config=config, batch=parse(entries, where="test"), **more)).looked


@pytest.mark.parametrize(
    ("entry", "images"),
    [
        ({"keys": ["s0/img1", "s0/img2"]}, 2),
        ({"label": "two"}, 3),
        ({"label": "2"}, 3),
        ({"prefix": "s0/"}, 4),
        ({"prefix": ["s0/", "s0/img1"]}, 4),
    ],
)
def test_what_is_meant_is_counted(folder: Path, entry: dict[str, Any], images: int) -> None:
    assert look(folder, [entry]) == Looked(images=images, training=TRAINING + 2)


def test_what_means_nothing_is_named_by_its_place(folder: Path) -> None:
    assert look(folder, [{"keys": ["s0/img1", "none", "s0/img2", "nor"]}]) == Looked(
        images=2, training=TRAINING + 2, unknown=2, first=2, kind="key"
    )
    assert look(folder, [{"prefix": ["s0", "t"]}]) == Looked(images=4, training=TRAINING + 2, unknown=1, first=2, kind="prefix")
    found = look(folder, [{"digest": "ab" * 32}])
    assert found is not None and (found.images, found.unknown, found.kind) == (0, 1, "digest")
    with pytest.raises(ConfigError, match="no such class"):
        look(folder, [{"label": "seven"}])


def test_a_likeness_means_the_image_and_its_near_copy(folder: Path) -> None:
    value = perceptual_hash(drawing(1, side=80), 10**6)
    assert look(folder, [{"likeness": f"{value:016x}"}]) == Looked(images=2, training=TRAINING + 2)
    with pytest.raises(ConfigError, match="no training image looks like"):
        look(folder, [{"likeness": f"{value ^ 0xFFFFFFFF:016x}"}])  # type: ignore[operator]


def test_a_file_is_looked_up_by_its_rows(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("kind,value\nkey,s0/img1\nlabel,two\nkey,nobody\nprefix,s1/\n")
    config = resolve(str(tar_run_file(folder)))
    answer = lookup.run(LookupOrder(config=config, file=str(file)))
    assert answer.looked == Looked(images=6, training=TRAINING + 2, unknown=1, first=3, kind="key")


def test_a_source_without_an_index_is_said_to_have_none(tmp_path: Path) -> None:
    config = resolve(str(tar_run_file(tmp_path)))
    before = contents(tmp_path)
    assert lookup.run(LookupOrder(config=config, batch=parse([{"label": "one"}], where="test"))).looked is None
    assert contents(tmp_path) == before
