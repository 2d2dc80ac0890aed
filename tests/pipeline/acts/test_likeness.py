"""The act `likeness`: a hash for each file, and none for what has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.acts import likeness
from pipeline.data.images import encode_png
from pipeline.data.likeness import perceptual_hash
from pipeline.errors import StorageError
from pipeline.request_orders import LikenessOrder
from tests.pipeline.data.tars import drawing


def test_hashes_are_those_of_the_index(tmp_path: Path) -> None:
    contents = {"a.png": drawing(1), "blank.png": encode_png(np.full((9, 9), 7, dtype=np.uint8)), "b.txt": b"no image"}
    files = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append(str(tmp_path / name))
    assert likeness.run(LikenessOrder(files=tuple(files))).hashes == (f"{perceptual_hash(drawing(1), 10**6):016x}", "", "")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.png"):
        likeness.run(LikenessOrder(files=(str(tmp_path / "none.png"),)))
