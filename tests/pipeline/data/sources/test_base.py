"""Fingerprints notice what changed without reading it."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.data.sources.base import fingerprint
from pipeline.errors import ConfigError, StorageError


def test_a_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = fingerprint([str(path)])
    assert fingerprint([str(path)]) == before
    os.utime(path, ns=(1, 1))
    touched = fingerprint([str(path)])
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 1))
    assert len({before, touched, fingerprint([str(path)]), fingerprint([])}) == 4


def test_other_storage_has_a_fingerprint_too() -> None:
    with fsspec.open("memory://prints/a", "wb") as out:
        out.write(b"one")
    assert fingerprint(["memory://prints/a"]) == fingerprint(["memory://prints/a"])


def test_what_is_not_there_or_not_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not found"):
        fingerprint([str(tmp_path / "none")])
    with pytest.raises(ConfigError):
        fingerprint(["pipe:ls"])
