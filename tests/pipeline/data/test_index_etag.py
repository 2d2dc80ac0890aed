"""A shard is believed only when its bytes agree with its ETag, or with themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import index as module
from pipeline.data.index import build_index
from pipeline.data.listing import Listed
from pipeline.data.rows import read_row_group
from pipeline.data.shards import read_shard
from pipeline.errors import IntegrityError
from tests.pipeline.data.tars import sample, write_tar


@pytest.mark.parametrize(
    ("stamp", "lies", "readings"),
    [("md5", 0, 1), ("md5", 1, 2), ("md5", 2, 3), ("another", 0, 2), ("another", 1, 3), ("parts-2", 0, 1), ("md5", 9, None)],
)
def test_a_shard_whose_bytes_are_not_those_of_its_etag_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp: str, lies: int, readings: int | None
) -> None:
    """A label that changes on the way damages no tar. An object that the store encrypts has an ETag of another kind."""
    uri = write_tar(tmp_path / "s.tar", sample("k", 1, 1))
    content = Path(uri).read_bytes()
    place = content.index(b"k.cls") + 512
    etag = {"md5": hashlib.md5(content).hexdigest(), "another": "0" * 32, "parts-2": "0" * 32 + "-2"}[stamp]
    shard = Listed(uri=uri, bytes=len(content), stamp=f'"{etag}"')
    turns = iter(range(100))

    def changed(uri: str, **options: Any) -> Any:
        turn = next(turns)
        digit = str(2 + turn).encode() if turn < lies else b"1"
        Path(uri).write_bytes(content[:place] + digit + content[place + 1 :])
        return read_shard(uri, **options)

    monkeypatch.setattr(module, "read_shard", changed)
    monkeypatch.setattr(module, "is_s3", lambda uri: True)
    if readings is None:
        with pytest.raises(IntegrityError, match=r"s\.tar: other bytes at each of 3 readings"):
            build_index([[shard]], str(tmp_path / "index"), workers=1)
        return
    (index,) = build_index([[shard]], str(tmp_path / "index"), workers=1)
    assert next(turns) == readings
    assert read_row_group(index.parts[0].file.uri, index.parts[0].file.sha256, 0)["label"].to_pylist() == [1]
