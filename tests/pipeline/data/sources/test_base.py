"""Fingerprints notice what changed without reading it; the two kinds of sources are told apart."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.data.sources import synthetic, webdataset
from pipeline.data.sources.base import ShardSource, fingerprint
from pipeline.errors import ConfigError, StorageError
from tests.pipeline.data.tars import sample, write_tar


def test_a_fingerprint_follows_names_sizes_times_and_order(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    other.write_bytes(b"one")
    before = fingerprint([str(path)])
    assert fingerprint([str(path)]) == before
    both = fingerprint([str(path), str(other)]), fingerprint([str(other), str(path)])
    os.utime(path, ns=(1, 1))
    touched = fingerprint([str(path)])
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 1))
    assert len({before, touched, *both, fingerprint([str(path)]), fingerprint([])}) == 6


def test_a_fingerprint_reads_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    before = fingerprint([str(path)])
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert fingerprint([str(path)]) == before


def test_other_storage_has_a_fingerprint_too() -> None:
    def put(content: bytes) -> str:
        with fsspec.open("memory://prints/a", "wb") as out:
            out.write(content)
        return fingerprint(["memory://prints/a"])

    assert put(b"one") == fingerprint(["memory://prints/a"]) != put(b"longer")


def test_what_is_not_there_or_not_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not found"):
        fingerprint([str(tmp_path / "none")])
    for command in ("pipe:ls", "simplecache::s3://b/x", "ssh://host/x"):
        with pytest.raises(ConfigError, match="not a plain storage address"):
            fingerprint([command])


def test_sources_of_shards_are_told_from_sources_of_images(tmp_path: Path) -> None:
    shards = webdataset.build(webdataset.Config(training=(write_tar(tmp_path / "a.tar", sample("k", 0)),)))
    assert isinstance(shards, ShardSource)
    assert not isinstance(synthetic.build(synthetic.Config()), ShardSource)
