"""Messy trees: what is usable is all there, once, and what is not is counted or named."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.gather import Gathered, Limits, gather, list_tree, place
from pipeline.errors import DataError
from tests.pipeline.data.messy import drawing, messy_tree, put

CLASSES = ("animals", "food")
LIMITS = Limits(per_class=0, min_side=48, max_pixels=10**6)


def _gather(root: Path, limits: Limits = LIMITS, classes: tuple[str, ...] = CLASSES) -> tuple[Gathered, int]:
    files, others = list_tree(root, classes)
    return gather(root, files, classes, limits), others


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "b/c", "b/d"]), st.integers(0, 5)), min_size=1, max_size=14), st.integers(1, 4)
)
def test_each_content_stays_once_and_no_class_is_above_its_cap(images: list[tuple[str, int]], cap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, {"a/always.png": drawing(100), "b/always.png": drawing(101)})
        put(root, {f"{where}/{number}.png": drawing(content) for number, (where, content) in enumerate(images)})
        every, _ = _gather(root, classes=("a", "b"))
        capped, _ = _gather(root, Limits(per_class=cap, min_side=1, max_pixels=10**6), ("a", "b"))
        contents = [(root / file.path).read_bytes() for file in every.files]
    firsts = {}
    for path in sorted(f"{where}/{number}.png" for number, (where, _) in enumerate(images)):
        firsts.setdefault(images[int(Path(path).stem)][1], path)
    assert sorted(firsts.values()) == [file.path for file in every.files if "always" not in file.path]
    assert len(set(contents)) == len(contents)
    assert every.left_out.get("copies of the same bytes", 0) == len(images) + 2 - len(every.files)
    assert set(capped.files) <= set(every.files)
    for label in (0, 1):
        of_class = [file for file in every.files if file.label == label]
        assert sum(file.label == label for file in capped.files) == min(cap, len(of_class))
    assert capped.left_out.get("above the cap", 0) == len(every.files) - len(capped.files)


def test_of_a_messy_tree_the_good_images_remain_and_the_rest_is_accounted_for(tmp_path: Path) -> None:
    found, others = _gather(messy_tree(tmp_path))
    assert [(file.key, file.label) for file in found.files] == [
        ("animals__birds__a_b", 0),
        ("animals__birds__copy", 0),
        ("animals__birds__grey", 0),
        ("food__fruit__five", 1),
        ("food__fruit__four", 1),
        ("food__fruit__three", 1),
        ("food__one", 1),
        ("food__two", 1),
    ]
    assert others == 3 and found.left_out == {"copies of the same bytes": 2, "under 48 pixels": 1}
    faults = dict(found.quarantined)
    assert list(faults) == [f"food/fruit/{name}" for name in ("cut.png", "flipped.png", "huge.png", "notes.txt", "text.png")]
    assert faults["food/fruit/huge.png"] == "100000 x 100000 pixels, more than 1000000"
    assert faults["food/fruit/text.png"] == "not a PNG" and "unreadable" in faults["food/fruit/cut.png"]


def test_a_cap_is_shared_by_folders_and_filled_with_good_images(tmp_path: Path) -> None:
    put(tmp_path, {f"food/stars/{n}.png": drawing(n)[: 300 if n % 2 else None] for n in range(40)})
    put(tmp_path, {f"food/fruit/{n}.png": drawing(100 + n) for n in range(4)})
    found, _ = _gather(tmp_path, Limits(per_class=10, min_side=1, max_pixels=10**6), ("food",))
    folders = [file.path.split("/")[1] for file in found.files]
    assert len(folders) == 10 and folders.count("fruit") == 4
    assert found.left_out["above the cap"] == 44 - 10 - len(found.quarantined)


def test_names_that_are_no_plain_text_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, {"food/good.png": drawing(1), "food/li\nne.png": drawing(2)})
    (tmp_path / os.fsdecode(b"food/\xff.png")).write_bytes(drawing(3))
    found, _ = _gather(tmp_path, classes=("food",))
    assert [file.key for file in found.files] == ["food__good"] and len(found.quarantined) == 2


def test_devices_are_not_opened(tmp_path: Path) -> None:
    put(tmp_path, {"food/good.png": drawing(1)})
    os.mkfifo(tmp_path / "food" / "pipe.png")
    found, others = _gather(tmp_path, classes=("food",))
    assert len(found.files) == 1 and others == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"food/a.png": drawing(1)}, "no folder 'animals'"),
        ({"food/a.png": drawing(1), "animals/a.png": b"broken"}, "no usable image of class 'animals'"),
        ({"food/a.b.png": drawing(1), "food/a_b.png": drawing(2), "animals/a.png": drawing(3)}, "both get the key 'food__a_b'"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    put(tmp_path, files)
    with pytest.raises(DataError, match=message) as caught:
        _gather(tmp_path)
    assert caught.value.cure


def test_a_class_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, {"food/a.png": drawing(1)})
    (tmp_path / "animals").symlink_to("food")
    with pytest.raises(DataError, match="no folder 'animals'"):
        _gather(tmp_path)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    put(tmp_path, {"food/a.png": drawing(1)})
    files, _ = list_tree(tmp_path, ("food",))
    (tmp_path / "food/a.png").unlink()
    with pytest.raises(DataError, match=r"food/a\.png: No such file"):
        gather(tmp_path, files, ("food",), LIMITS)


def test_places_of_two_purposes_do_not_go_together() -> None:
    keys = [f"k{n}" for n in range(1000)]
    first, second = ({key for key in keys if place(key, purpose) < 0.3} for purpose in ("cap", "unseen"))
    assert 240 < len(first) < 360 and 55 < len(first & second) < 130
