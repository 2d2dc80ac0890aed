"""Cutting copies samples byte for byte, headers and sidecars included."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.data.cut import Piece, cut_shards, write_forget_shards
from pipeline.data.shards import read_shard
from pipeline.errors import StorageError
from tests.pipeline.data.tars import sample, write_tar


def _piece(folder: Path, *forgotten: str) -> Piece:
    members = [m for n, key in enumerate("abc") for m in (*sample(key, n, n), (f"{key}.json", f'{{"n":{n}}}'.encode()))]
    uri = write_tar(folder / "source.tar", members)
    return Piece(
        source=uri,
        sha256=read_shard(uri)[1].sha256,
        forgotten=frozenset(forgotten),
        target=str(folder / "rest.tar"),
        spool=str(folder / "spool"),
    )


def _members(uri: str) -> dict[str, bytes]:
    with tarfile.open(uri) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def test_rest_and_taken_together_are_the_source(tmp_path: Path) -> None:
    piece = _piece(tmp_path, "b")
    (rest,), kept, taken = cut_shards([piece])
    shards, offsets = write_forget_shards(["b"], taken, targets=[str(tmp_path / "forget.tar")], per_shard=5)
    assert rest is not None and (rest.samples, rest.origin, shards[0].origin) == (2, "rewritten", "forget")
    whole = _members(piece.source)
    left, gone = _members(rest.uri), _members(shards[0].uri)
    assert list(left) == [name for name in whole if not name.startswith("b")]
    assert list(gone) == [name for name in whole if name.startswith("b")]
    assert {**left, **gone} == whole
    assert {s.key: s.offset for s in read_shard(rest.uri)[0]} == kept
    assert [s.offset for s in read_shard(shards[0].uri)[0]] == offsets


def test_a_shard_of_which_all_is_forgotten_is_not_rewritten(tmp_path: Path) -> None:
    piece = _piece(tmp_path, "a", "b", "c")
    shards, kept, taken = cut_shards([piece])
    assert shards == (None,) and kept == {} and set(taken) == {"a", "b", "c"}
    assert not Path(piece.target).exists()


def test_a_target_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    piece = _piece(tmp_path, "a")
    (tmp_path / "rest.tar").mkdir()
    with pytest.raises(StorageError, match=r"rest\.tar"):
        cut_shards([piece])
    assert not list(tmp_path.glob(".rest.tar*"))
